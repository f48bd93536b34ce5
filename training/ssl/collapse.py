"""Has the teacher collapsed? Its answers over a batch tell: whether they differ from image to image, and in how many
ways (RankMe, arXiv 2210.02885; DINO's own remark on both kinds of collapse, arXiv 2104.14294, section 5.3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

_LEAST_INFORMATION = 1e-4
"""Nats that a prototype tells of an image: small early in training, nothing at all after a collapse."""
_LEAST_DEVIATION = 1e-3
_LEAST_RANK = 1.5


@dataclass(frozen=True, slots=True)
class Signs:
    """`entropy`: of one image's distribution over prototypes, mean; `used_entropy`: of the batch's mean distribution,
    both in nats. `deviation`: of a feature over the batch, mean over dimensions, for features of length 1 times √D.
    `effective_rank`: exp of the entropy of the centred features' normalised singular values."""

    entropy: float
    used_entropy: float
    deviation: float
    effective_rank: float

    def alarm(self) -> str | None:
        """What has collapsed, in a few words."""
        if self.deviation < _LEAST_DEVIATION:
            return "all images have the same feature"
        if self.effective_rank < _LEAST_RANK:
            return "the features vary along one line only"
        if self.used_entropy - self.entropy < _LEAST_INFORMATION:
            return "all images have the same distribution over prototypes"
        return None


@torch.no_grad()
def signs(features_BD: Tensor, q_BK: Tensor) -> Signs:
    """The teacher's features and probabilities of a batch's crops."""
    q_BK, features_BD = q_BK.float(), features_BD.float()
    unit_BD = torch.nn.functional.normalize(features_BD, dim=-1) * features_BD.shape[1] ** 0.5
    values = torch.linalg.svdvals(unit_BD - unit_BD.mean(0))
    shares = values / values.sum().clamp(min=1e-12)
    return Signs(
        entropy=float(_entropy(q_BK).mean()),
        used_entropy=float(_entropy(q_BK.mean(0))),
        deviation=float(unit_BD.std(0).mean()),
        effective_rank=float(_entropy(shares).exp()),
    )


def _entropy(p_K: Tensor) -> Tensor:
    return torch.special.entr(p_K).sum(-1)
