"""Has the teacher collapsed? Its answers over a batch tell: whether they differ from image to image, and in how many
ways (RankMe, arXiv 2210.02885; DINO's own remark on both kinds of collapse, arXiv 2104.14294, section 5.3)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_LEAST_SHARPNESS = 0.05
"""Nats below ln K: an answer nearer to ln K is spread as if over 95 of 100 prototypes (exp of -0.05), and asks of the
student hardly more than to answer nothing."""
_LEAST_INFORMATION = 1e-4
"""Nats that a prototype tells of an image: small early in training, nothing at all after a collapse."""
_LEAST_DEVIATION = 1e-3
_LEAST_RANK = 1.5


@dataclass(frozen=True, slots=True)
class Signs:
    """`entropy`: of one image's distribution over prototypes, mean; `used_entropy`: of the batch's mean distribution;
    `most_entropy`: ln K, the most that both can be; in nats. `deviation`: of a feature over the batch, mean over
    dimensions, for features of length 1 times √D. `effective_rank`: exp of the entropy of the centred features'
    normalised singular values."""

    entropy: float
    used_entropy: float
    most_entropy: float
    deviation: float
    effective_rank: float

    @property
    def sharpness(self) -> float:
        """Nats by which an answer differs from one that says nothing, ln K - entropy, mean."""
        return self.most_entropy - self.entropy

    @property
    def information(self) -> float:
        """Nats that a prototype tells of the image, used_entropy - entropy: 0 where all images get the same answer."""
        return self.used_entropy - self.entropy

    @property
    def uniform(self) -> bool:
        """Whether the teacher answers (nearly) nothing: all prototypes alike, to every image."""
        return self.sharpness < _LEAST_SHARPNESS

    def record(self) -> dict[str, Any]:
        """As a log and metrics.json keep them."""
        return {
            "entropy": self.entropy,
            "used_entropy": self.used_entropy,
            "most_entropy": self.most_entropy,
            "sharpness": self.sharpness,
            "information": self.information,
            "uniform": self.uniform,
            "deviation": self.deviation,
            "effective_rank": self.effective_rank,
        }

    def alarm(self) -> str | None:
        """What has collapsed, in a few words."""
        if self.deviation < _LEAST_DEVIATION:
            return "all images have the same feature"
        if self.effective_rank < _LEAST_RANK:
            return "the features vary along one line only"
        if self.uniform:
            return "the teacher answers nothing: every answer is nearly uniform over the prototypes"
        if self.information < _LEAST_INFORMATION:
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
        most_entropy=math.log(q_BK.shape[1]),
        deviation=float(unit_BD.std(0).mean()),
        effective_rank=float(_entropy(shares).exp()),
    )


def _entropy(p_K: Tensor) -> Tensor:
    return torch.special.entr(p_K).sum(-1)
