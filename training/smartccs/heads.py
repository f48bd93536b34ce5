"""The slide heads of Smart-CCS (arXiv 2502.09662): from cells' features to a slide's seven logits.

All take `features_BND`, `mask_BN` (True: a cell, False: padding) and the adaptation of a site as inputs, `gamma_BD` and
`beta_BD`: f' = gamma·f + beta comes before everything. All give the slide's `logits_BC` and `cell_logits_BNC`, of which
the slide's are the mean, the maximum or the attention-weighted sum over cells: `gateway.slides.cell_evidence` takes
them apart again. A bag without any cell has no meaning here.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from gateway.domain.bethesda import CLASSES
from gateway.domain.model import Pool

HeadKind = Literal["mean", "max", "abmil"]
POOLS: dict[HeadKind, Pool] = {"mean": "mean", "max": "max", "abmil": "attention"}
_MASKED = -1e4
"""Not infinite: half precision holds it, and a softmax of it is 0 all the same."""
_ATTENTION = 256


class Answer(NamedTuple):
    """A graph's outputs; `attention_BN` of a head with attention alone."""

    logits_BC: Tensor
    cell_logits_BNC: Tensor
    attention_BN: Tensor | None = None


class SlideHead(nn.Module):
    """What the heads share."""

    def forward(self, features_BND: Tensor, mask_BN: Tensor, gamma_BD: Tensor, beta_BD: Tensor) -> Answer:
        return self.pooled(gamma_BD[:, None] * features_BND + beta_BD[:, None], mask_BN)

    def pooled(self, features_BND: Tensor, mask_BN: Tensor) -> Answer:
        """The answer to features that are adapted already."""
        raise NotImplementedError

    def take_raw(self, mean_D: Tensor, deviation_D: Tensor) -> None:
        """Fold a standardisation of features into the layers that read them: a head that was trained on (f - mean) /
        deviation takes f from then on."""
        with torch.no_grad():
            for layer in self.readers():
                layer.weight /= deviation_D
                layer.bias -= layer.weight @ mean_D

    def readers(self) -> tuple[nn.Linear, ...]:
        """The linear layers that read features."""
        raise NotImplementedError


class _OfCells(SlideHead):
    """A network of its own for each cell."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.cell = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, len(CLASSES)))
        _begin(self)

    def readers(self) -> tuple[nn.Linear, ...]:
        return (self.cell[0],)


class MeanMIL(_OfCells):
    """The mean of the cells' logits, over those that are there: a cell adds exactly its share."""

    def pooled(self, features_BND: Tensor, mask_BN: Tensor) -> Answer:
        logits_BNC = self.cell(features_BND)
        there_BN1 = mask_BN[..., None]
        count_B1 = there_BN1.sum(1).clamp(min=1).to(logits_BNC.dtype)
        return Answer(torch.where(there_BN1, logits_BNC, 0.0).sum(1) / count_B1, logits_BNC)


class MaxMIL(_OfCells):
    """Of each class the largest of the cells' logits."""

    def pooled(self, features_BND: Tensor, mask_BN: Tensor) -> Answer:
        logits_BNC = self.cell(features_BND)
        return Answer(torch.where(mask_BN[..., None], logits_BNC, _MASKED).amax(1), logits_BNC)


class ABMIL(SlideHead):
    """Gated attention (arXiv 1802.04712, eq. 9) over the features themselves, and a linear head on their mean. The
    attention sums to one, so that the head's bias is shared out by it too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tanh, self.gate = nn.Linear(width, _ATTENTION), nn.Linear(width, _ATTENTION)
        self.score = nn.Linear(_ATTENTION, 1)
        self.classifier = nn.Linear(width, len(CLASSES))
        _begin(self)

    def pooled(self, features_BND: Tensor, mask_BN: Tensor) -> Answer:
        scores_BN = self.score(self.tanh(features_BND).tanh() * self.gate(features_BND).sigmoid())[..., 0]
        attention_BN = torch.where(mask_BN, scores_BN, _MASKED).softmax(1)
        logits_BNC = self.classifier(features_BND)
        return Answer((attention_BN[..., None] * logits_BNC).sum(1), logits_BNC, attention_BN)

    def readers(self) -> tuple[nn.Linear, ...]:
        return self.tanh, self.gate, self.classifier


def build_head(kind: HeadKind, width: int, hidden: int) -> SlideHead:
    """A head of `width`-wide features with fresh weights; `hidden` is of no use to ABMIL."""
    if kind == "abmil":
        return ABMIL(width)
    return {"mean": MeanMIL, "max": MaxMIL}[kind](width, hidden)


def _begin(head: nn.Module) -> None:
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight)
            nn.init.zeros_(module.bias)
