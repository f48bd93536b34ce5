"""Adaptation of a slide head to another centre, by the features of its cells: what is served (`site`), and what that is
compared with. The head's weights never change: all of it is in (gamma, beta), f' = gamma·f + beta.

A batch is 16 slides (here: bags) of one centre. `site` is fitted once (`gateway.slides.site_fit`); `batch` takes the
moments of the batch at hand; `gradient` aligns slides with prototypes and keeps the answers to two views alike;
`released` is what the published code of arXiv 2502.09662 comes to, which changes nothing but by rounding. All but
`site` are research.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gateway.domain.bethesda import CLASSES
from gateway.slides.site_fit import SiteCells, affine
from gateway.slides.site_state import Source
from training.errors import TaskInvalid
from training.smartccs.heads import SlideHead
from training.smartccs.slide_fit import Slides, logits_of, padded_bags, site_cells

BATCH = 16
_MOST_PROTOTYPES = 100
_TAU = 0.1
_STEPS, _RATE = 8, 1e-2
_RELEASED_WIDTH, _RELEASED_RATE = 128, 1e-5


@dataclass(frozen=True, slots=True, eq=False)
class Bank:
    """Prototypes of each class: the mean cell features (P,D) float32 of slides whose *true* label it is, those nearest
    to the class's medoid first. A class without slides has none."""

    prototypes: tuple[Tensor, ...]

    @classmethod
    def of(cls, slides: Slides, most: int = _MOST_PROTOTYPES) -> "Bank":
        """Of labelled slides. (The published bank goes by predicted probability, so that a rare class's prototypes are
        mostly slides of others.)"""
        means_BD = np.stack([cells_KD.mean(0) for cells_KD in slides.features])
        held = []
        for number in range(len(CLASSES)):
            own_PD = means_BD[slides.labels_B == number]
            apart_PP = np.linalg.norm(own_PD[:, None] - own_PD[None], axis=2)
            order = np.argsort(apart_PP[apart_PP.sum(1).argmin()], kind="stable")[:most] if len(own_PD) else []
            held.append(torch.from_numpy(own_PD[order] if len(own_PD) else own_PD))
        return cls(tuple(held))


class Losses(NamedTuple):
    """Of one step of `gradient`."""

    align: Tensor
    consistency: Tensor


def batch(
    head: SlideHead,
    source: Source,
    features: Sequence[np.ndarray],
    scores: Sequence[np.ndarray] | None = None,
    *,
    anchored: bool,
) -> np.ndarray:
    """(B,7) logits under the moments of these slides themselves. `anchored`: cells weighed by how surely they are NILM;
    otherwise all alike, which takes a batch of abnormal slides for a shift. `scores`: see `site_cells`."""
    cells_ND = np.concatenate(features)
    cells = site_cells(head, cells_ND, None if scores is None else np.concatenate(scores))
    if not anchored:
        cells = all_alike(cells_ND)
    return logits_of(head, features, *affine(cells, source))


def all_alike(features_ND: np.ndarray) -> SiteCells:
    """Cells that all count the same: the baseline of fitting a site by the moments of all its cells."""
    return SiteCells(features_ND, lambda adapted_ND: np.ones(len(adapted_ND)))


def aligned(shares_BC: Tensor, means_BD: Tensor, bank: Bank) -> Tensor:
    """The alignment loss: -mean over slides of (1 - H(p)/log 7) · Σ_c p(c) log q(c), where q(c) grows with the *mean*
    over the prototypes of c of exp(cos/τ), so that a class of few prototypes is not at a disadvantage. Classes without
    prototypes take no part. Raises TaskInvalid where no class has any."""
    known = [number for number, held in enumerate(bank.prototypes) if len(held)]
    if not known:
        raise TaskInvalid("No class has a prototype: the bank is of no use. Give it labelled slides.")
    near_BC = torch.stack(
        [
            torch.logsumexp(F.normalize(means_BD, dim=1) @ F.normalize(bank.prototypes[c], dim=1).T / _TAU, 1)
            - np.log(len(bank.prototypes[c]))
            for c in known
        ],
        1,
    )
    entropy_B = -(shares_BC * shares_BC.clamp(min=1e-12).log()).sum(1)
    sure_B = 1 - entropy_B / np.log(len(CLASSES))
    return -(sure_B * (shares_BC[:, known] * near_BC.log_softmax(1)).sum(1)).mean()


class _Seen(NamedTuple):
    """What no adaptation changes of a batch: the teacher's answers, the slides' mean features, the other view."""

    taught_BC: Tensor
    means_BD: Tensor
    viewed_BND: Tensor
    mask_BN: Tensor


class Gradient:
    """The experimental mode (after arXiv 2502.09662): Adam on (gamma, beta) of a batch, begun anew for each. The frozen
    head's answers to the clean view teach those of the adapted head to another view; that the views differ makes the
    first gradient more than rounding."""

    def __init__(self, head: SlideHead, bank: Bank, *, steps: int = _STEPS, rate: float = _RATE) -> None:
        self._head, self._bank, self._steps, self._rate = head, bank, steps, rate

    def losses(
        self, clean: Sequence[np.ndarray], view: Sequence[np.ndarray], gamma_D: Tensor, beta_D: Tensor
    ) -> Losses:
        """Of a batch, as they depend on the adaptation."""
        return self._losses(self._seen(clean, view), gamma_D, beta_D)

    def _seen(self, clean: Sequence[np.ndarray], view: Sequence[np.ndarray]) -> _Seen:
        features_BND, mask_BN = padded_bags(clean)
        with torch.no_grad():
            taught_BC = self._head.pooled(features_BND, mask_BN).logits_BC.softmax(1)
        means_BD = torch.where(mask_BN[..., None], features_BND, 0.0).sum(1) / mask_BN.sum(1, keepdim=True)
        return _Seen(taught_BC, means_BD, *padded_bags(view))

    def _losses(self, seen: _Seen, gamma_D: Tensor, beta_D: Tensor) -> Losses:
        said_BC = self._head.pooled(gamma_D * seen.viewed_BND + beta_D, seen.mask_BN).logits_BC.log_softmax(1)
        align = aligned(seen.taught_BC, seen.means_BD * gamma_D + beta_D, self._bank)
        return Losses(align, -(seen.taught_BC * said_BC).sum(1).mean())

    def __call__(self, clean: Sequence[np.ndarray], view: Sequence[np.ndarray]) -> np.ndarray:
        """(B,7) logits of a batch, whose crops were also seen in another view."""
        width = clean[0].shape[1]
        gamma_D, beta_D = torch.ones(width, requires_grad=True), torch.zeros(width, requires_grad=True)
        optimiser = torch.optim.Adam([gamma_D, beta_D], lr=self._rate)
        seen = self._seen(clean, view)
        for _ in range(self._steps):
            found = self._losses(seen, gamma_D, beta_D)
            optimiser.zero_grad()
            (found.align + found.consistency).backward()
            optimiser.step()
        return logits_of(self._head, clean, gamma_D.detach().numpy(), beta_D.detach().numpy())


class ReleasedStep(NamedTuple):
    """logits_BC: of a batch after it; aligned: whether the alignment alone gave any weight of the classifier a
    gradient; slope: the greatest gradient that any of these weights had of both losses."""

    logits_BC: np.ndarray
    aligned: bool
    slope: float


class Released:
    """What the published adaptation does, for the one test that it does nothing: features carry no gradient, the
    alignment reaches a fresh random projection only, and at the single step the student is the teacher, so that their
    consistency has a gradient of rounding size. Adam takes a step of its rate, 1e-5, whatever the size of a gradient:
    what is rounding moves every weight by so much, and a head of many weights by more than a small one."""

    def __init__(self, head: SlideHead, bank: Bank, seed: int) -> None:
        self._head, self._bank, self._seed = head, bank, seed

    def __call__(self, features: Sequence[np.ndarray]) -> ReleasedStep:
        """One step on a batch."""
        student = copy.deepcopy(self._head).requires_grad_(True)
        torch.manual_seed(self._seed)
        width = features[0].shape[1]
        projection = nn.Sequential(
            nn.Linear(width, _RELEASED_WIDTH), nn.ReLU(), nn.Linear(_RELEASED_WIDTH, _RELEASED_WIDTH)
        )
        features_BND, mask_BN = padded_bags(features)
        with torch.no_grad():
            taught_BC = self._head.pooled(features_BND, mask_BN).logits_BC.softmax(1)
            means_BD = torch.where(mask_BN[..., None], features_BND, 0.0).sum(1) / mask_BN.sum(1, keepdim=True)
        projected = Bank(tuple(projection(held) if len(held) else held for held in self._bank.prototypes))
        align = aligned(taught_BC, projection(means_BD), projected)
        weights = list(student.parameters())
        reached = any(
            found is not None for found in torch.autograd.grad(align, weights, allow_unused=True, retain_graph=True)
        )
        said_BC = student.pooled(features_BND, mask_BN).logits_BC.log_softmax(1)
        optimiser = torch.optim.Adam([*weights, *projection.parameters()], lr=_RELEASED_RATE)
        (align - (taught_BC * said_BC).sum(1).mean()).backward()
        slope = max(float(each.grad.abs().max()) for each in weights if each.grad is not None)
        optimiser.step()
        return ReleasedStep(logits_of(student, features), reached, slope)
