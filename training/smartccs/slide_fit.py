"""A slide head trained on bags of cells, and what a card says of its answers: calibration and operating point.

Adam on one bag at a time with cross-entropy (arXiv 2502.09662). The epoch that is kept is the one of the highest area
under the curve, abnormal against NILM, on validation bags: accuracy, which the published training selects by, rewards
saying NILM where three quarters are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field as Setting
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from torch import Tensor
from torch.nn import functional as F

from gateway.domain.bethesda import CLASSES, NILM
from gateway.domain.screening import ScreeningPoint
from gateway.slides.site_fit import SiteCells
from training.errors import TaskInvalid
from training.runs import Part
from training.smartccs.bags import Bag
from training.smartccs.heads import HeadKind, SlideHead, build_head
from training.statistics import macro_auroc

_TOGETHER = 32
"""Bags that are answered at once."""
_BIAS = 3.0
_LOG_TEMPERATURE = float(np.log(20))
_FLAT = 0.01
"""A feature's deviation counts as no less than this share of the mean deviation."""


class HeadTraining(Part):
    """Adam, a bag a step."""

    epochs: int = Setting(default=50, gt=0)
    rate: float = Setting(default=1e-4, gt=0)
    decay: float = Setting(default=1e-4, ge=0)


@dataclass(frozen=True, slots=True, eq=False)
class Slides:
    """What a head is asked: for each of B bags the features of its cells (K,D) float32, and its class labels_B."""

    features: tuple[np.ndarray, ...]
    labels_B: np.ndarray

    @classmethod
    def of(cls, bags: Sequence[Bag], features_ND: np.ndarray) -> "Slides":
        """Bags of cells whose features are in `features_ND`."""
        return cls(
            tuple(features_ND[bag.cells_K] for bag in bags), np.array([bag.label for bag in bags], np.int64).reshape(-1)
        )

    def cells(self) -> np.ndarray:
        """The cells of all bags, in their order; one that is in two bags is there twice."""
        return np.concatenate(self.features)


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A head in eval mode that takes features as the encoder gives them; epoch: after how many it was kept; auc: of the
    validation bags then."""

    head: SlideHead
    epoch: int
    auc: float


def fit_head(
    kind: HeadKind, hidden: int, settings: HeadTraining, train: Slides, validation: Slides, seed: int
) -> Fitted:
    """Train a head. It learns on standardised features, and the standardisation is folded into it at the end, so that
    encoders of any scale are treated alike. Raises TaskInvalid where the validation has one side only."""
    cells_ND = train.cells()
    mean_D, spread_D = cells_ND.mean(0), cells_ND.std(0)
    deviation_D = np.maximum(spread_D, _FLAT * spread_D.mean())
    train, validation = (
        Slides(tuple((cells - mean_D) / deviation_D for cells in part.features), part.labels_B)
        for part in (train, validation)
    )
    torch.manual_seed(seed)
    head = build_head(kind, cells_ND.shape[1], hidden)
    optimiser = torch.optim.Adam(head.parameters(), lr=settings.rate, weight_decay=settings.decay)
    bags = [torch.from_numpy(cells)[None] for cells in train.features]
    targets_B = torch.from_numpy(train.labels_B)
    best_auc, best_epoch, best = -1.0, 0, {}
    for epoch in range(settings.epochs):
        head.train()
        for place in torch.randperm(len(bags)).tolist():
            here = torch.ones(bags[place].shape[:2], dtype=torch.bool)
            loss = F.cross_entropy(head.pooled(bags[place], here).logits_BC, targets_B[place : place + 1])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        auc = auc_of(chances_of(logits_of(head, validation.features)), validation.labels_B)
        if np.isnan(auc):
            raise TaskInvalid("The validation bags are all normal or all abnormal. Deal more of them.")
        if auc > best_auc:
            best_auc, best_epoch = auc, epoch + 1
            best = {name: value.clone() for name, value in head.state_dict().items()}
    head.load_state_dict(best)
    head.take_raw(torch.from_numpy(mean_D), torch.from_numpy(deviation_D))
    return Fitted(head.eval().requires_grad_(False), best_epoch, best_auc)


def padded_bags(features: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """features_BND and mask_BN of bags of different sizes."""
    most = max(len(cells_KD) for cells_KD in features)
    features_BND = torch.zeros(len(features), most, features[0].shape[1])
    mask_BN = torch.zeros(len(features), most, dtype=torch.bool)
    for place, cells_KD in enumerate(features):
        features_BND[place, : len(cells_KD)] = torch.from_numpy(cells_KD)
        mask_BN[place, : len(cells_KD)] = True
    return features_BND, mask_BN


@torch.inference_mode()
def logits_of(
    head: SlideHead,
    features: Sequence[np.ndarray],
    gamma_D: np.ndarray | None = None,
    beta_D: np.ndarray | None = None,
) -> np.ndarray:
    """(B,7) float32: the logits of bags, under an adaptation if one is given."""
    head.eval()
    found = []
    for start in range(0, len(features), _TOGETHER):
        features_BND, mask_BN = padded_bags(features[start : start + _TOGETHER])
        shape = (len(features_BND), features_BND.shape[2])
        gamma_BD = torch.ones(shape) if gamma_D is None else torch.from_numpy(gamma_D).expand(shape)
        beta_BD = torch.zeros(shape) if beta_D is None else torch.from_numpy(beta_D).expand(shape)
        found.append(head(features_BND, mask_BN, gamma_BD, beta_BD).logits_BC.numpy())
    return np.concatenate(found)


@torch.inference_mode()
def nilm_of_cells(head: SlideHead, features_ND: np.ndarray) -> np.ndarray:
    """(N,) float64: how surely each cell is NILM, by the head's own logits of it."""
    here = torch.ones(1, len(features_ND), dtype=torch.bool)
    logits_NC = head.pooled(torch.from_numpy(features_ND)[None], here).cell_logits_BNC[0]
    return chances_of(logits_NC.numpy())[:, NILM]


def site_cells(head: SlideHead, features_ND: np.ndarray, scores_N: np.ndarray | None = None) -> SiteCells:
    """Cells, weighed by how surely they are NILM: by the head's own logits of a cell, or, where `scores_N` is given, by
    one minus the detector's score, which no adaptation changes."""
    if scores_N is None:
        return SiteCells(features_ND, lambda adapted_ND: nilm_of_cells(head, adapted_ND))
    return SiteCells(features_ND, lambda _: 1 - scores_N)


def chances_of(logits_NC: np.ndarray) -> np.ndarray:
    """(N,7) float64 probabilities, not calibrated. In single precision the surest bags would all be as sure."""
    return softmax(logits_NC.astype(np.float64), axis=1)


def odds_of(probabilities_NC: np.ndarray) -> np.ndarray:
    """(...,) float64: the logarithm of abnormal's odds, which orders bags as 1 - p(NILM) does, those too that are so
    sure that 1 - p(NILM) is 0 or 1 to the last digit."""
    nilm, rest = probabilities_NC[..., NILM], np.delete(probabilities_NC, NILM, axis=-1).sum(-1)
    least = np.finfo(np.float64).tiny
    return np.log(np.maximum(rest, least)) - np.log(np.maximum(nilm, least))


def auc_of(probabilities_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """Of 1 - p(NILM), abnormal against NILM; NaN where one side is missing."""
    odds_N = odds_of(probabilities_NC)
    return macro_auroc(np.column_stack([-odds_N, odds_N]), (labels_N != NILM).astype(np.int64))


@dataclass(frozen=True, slots=True)
class Calibration:
    """What makes logits probabilities: softmax(logits / temperature + biases), a bias for each class (bias-corrected
    temperature scaling, arXiv 1901.06852). A temperature alone draws a head that is surer than it should be towards
    all classes alike, where three quarters of the slides are of one."""

    temperature: float
    biases: tuple[float, ...]

    def __call__(self, logits_NC: np.ndarray) -> np.ndarray:
        """(N,7) float64 probabilities."""
        return softmax(logits_NC.astype(np.float64) / self.temperature + np.array(self.biases), axis=1)


def calibration_of(logits_NC: np.ndarray, labels_N: np.ndarray) -> Calibration:
    """That of least log loss over all seven classes, to four digits. The temperature is between 1/20 and 20; biases
    are held near 0 by a normal prior of deviation `_BIAS`, which is what a class without any slide rests on."""
    logits_NC, truth_NC = logits_NC.astype(np.float64), np.eye(logits_NC.shape[1])[labels_N]

    def loss(settings: np.ndarray) -> tuple[float, np.ndarray]:
        cooled_NC = logits_NC / np.exp(settings[0])
        logs_NC = log_softmax(cooled_NC + settings[1:], axis=1)
        wrong_NC = np.exp(logs_NC) - truth_NC
        slopes = np.concatenate([[-(wrong_NC * cooled_NC).sum()], wrong_NC.sum(0) + settings[1:] / _BIAS**2])
        total = -(truth_NC * logs_NC).sum() + np.square(settings[1:]).sum() / (2 * _BIAS**2)
        return total / len(labels_N), slopes / len(labels_N)

    bounds = [(-_LOG_TEMPERATURE, _LOG_TEMPERATURE), *[(None, None)] * logits_NC.shape[1]]
    found = minimize(loss, np.zeros(len(bounds)), jac=True, method="L-BFGS-B", bounds=bounds).x
    return Calibration(round(float(np.exp(found[0])), 4), tuple(round(float(bias), 4) for bias in found[1:]))


def operating_point(
    probabilities_NC: np.ndarray, labels_N: np.ndarray, sensitivity: float, supported: tuple[bool, ...]
) -> ScreeningPoint:
    """The highest threshold of 1 - p(NILM) at which this share of the abnormal bags is called abnormal; halfway to the
    next lower score, so that it does not hang on a last digit. Raises TaskInvalid where no bag is abnormal."""
    if not len(supported) == len(CLASSES) == probabilities_NC.shape[1]:
        raise TaskInvalid(f"A screening point is of {len(CLASSES)} classes.")
    scores_N = 1 - probabilities_NC[:, NILM]
    positive_P = np.sort(scores_N[labels_N != NILM])[::-1]
    if not len(positive_P):
        raise TaskInvalid("No validation bag is abnormal: there is no sensitivity to choose by. Deal more of them.")
    least = positive_P[int(np.ceil(sensitivity * len(positive_P) - 1e-9)) - 1]
    below = scores_N[scores_N < least].max(initial=0.0)
    return ScreeningPoint(float((least + below) / 2), supported)
