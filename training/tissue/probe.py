"""A linear probe on fixed features, cross-validated in a nest: what it may choose, it chooses on training folds only.

Outer folds give the figures. Inside each, the augmentation, the strength of the L2 penalty and the temperature are
chosen on inner folds of the outer training part. Both levels keep groups together and classes balanced.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from training.data.views import VIEWS
from training.runs import Part
from training.statistics import best_temperature

Features = Callable[[np.ndarray], np.ndarray]
"""Indices of the training tiles to the views' features of all tiles, (N,V,D) float32; view 0 is the tile itself.
Frozen features do not depend on the indices; an encoder that is trained does."""


class Protocol(Part):
    """How a probe is fitted and measured."""

    folds: int = 5
    repeats: int = 2
    inner_folds: int = 4
    augmentations: tuple[str, ...] = ("none", "orientations", "orientations+jitter")
    penalties: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1)
    bootstrap: int = 1000

    @property
    def views(self) -> int:
        """How many views of a tile the widest augmentation needs."""
        return max(VIEWS[augmentation] for augmentation in self.augmentations)


@dataclass(frozen=True, slots=True)
class Linear:
    """logits = features @ weight_DC + bias_C, standardisation folded in."""

    weight_DC: np.ndarray
    bias_C: np.ndarray

    def logits(self, features_ND: np.ndarray) -> np.ndarray:
        return features_ND.astype(np.float64) @ self.weight_DC + self.bias_C


@dataclass(frozen=True, slots=True)
class Choice:
    """What the inner folds chose; `logits_NC` are their out-of-fold logits, before the temperature."""

    augmentation: str
    penalty: float
    temperature: float
    logits_NC: np.ndarray


def splits(labels_N: np.ndarray, groups_N: np.ndarray, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(training, test) index pairs, groups whole, classes balanced."""
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return list(splitter.split(labels_N, labels_N, groups_N))


def fit(features_NVD: np.ndarray, labels_N: np.ndarray, penalties: tuple[float, ...]) -> list[Linear]:
    """Multinomial logistic regressions on standardised features, one a penalty; a tile's views share its weight."""
    count, views, width = features_NVD.shape
    rows = features_NVD.reshape(-1, width).astype(np.float64)
    mean, deviation = rows.mean(0), rows.std(0) + 1e-6
    standard = (rows - mean) / deviation
    # The solution of an L2-penalised fit lies in the span of the rows: with fewer rows than features it is found there.
    basis = _span(standard) if len(rows) < width else np.eye(width)
    reduced, repeated, share = standard @ basis, np.repeat(labels_N, views), np.full(count * views, 1.0 / views)
    fitted = []
    for penalty in penalties:
        model = LogisticRegression(C=penalty, max_iter=500, tol=1e-3).fit(reduced, repeated, sample_weight=share)
        weight_DC = (basis @ model.coef_.T) / deviation[:, None]
        fitted.append(Linear(weight_DC, model.intercept_ - mean @ weight_DC))
    return fitted


def _span(rows_ND: np.ndarray) -> np.ndarray:
    """Orthonormal columns (D,R) that span the rows, by the rows' small Gram matrix."""
    values, vectors = np.linalg.eigh(rows_ND @ rows_ND.T)
    kept = values > values[-1] * 1e-10
    return rows_ND.T @ (vectors[:, kept] / np.sqrt(values[kept]))


def choose(
    features_NVD: np.ndarray, labels_N: np.ndarray, groups_N: np.ndarray, protocol: Protocol, seed: int
) -> Choice:
    """Augmentation and penalty of least out-of-fold log loss at the best temperature, and that temperature."""
    folds = splits(labels_N, groups_N, protocol.inner_folds, seed)
    best: tuple[float, Choice] | None = None
    for augmentation in protocol.augmentations:
        count = VIEWS[augmentation]
        if count > features_NVD.shape[1]:
            continue
        logits_PNC = np.zeros((len(protocol.penalties), len(labels_N), labels_N.max() + 1))
        for train, test in folds:
            for place, linear in enumerate(fit(features_NVD[train, :count], labels_N[train], protocol.penalties)):
                logits_PNC[place, test] = linear.logits(features_NVD[test, 0])
        for penalty, logits_NC in zip(protocol.penalties, logits_PNC, strict=True):
            temperature, loss = best_temperature(logits_NC, labels_N)
            if best is None or loss < best[0]:
                best = loss, Choice(augmentation, penalty, temperature, logits_NC)
    assert best is not None, "a protocol names at least one augmentation that needs one view only"
    return best[1]


def cross_validate(
    features: Features, labels_N: np.ndarray, groups_N: np.ndarray, protocol: Protocol, seed: int
) -> tuple[np.ndarray, list[Choice]]:
    """Calibrated out-of-fold probabilities (R,N,C) of R repeated cross-validations, and each fold's choice."""
    runs_RNC = np.zeros((protocol.repeats, len(labels_N), labels_N.max() + 1))
    choices = []
    for repeat in range(protocol.repeats):
        for train, test in splits(labels_N, groups_N, protocol.folds, seed + repeat):
            features_NVD = features(train)
            choice = choose(features_NVD[train], labels_N[train], groups_N[train], protocol, seed + repeat)
            (linear,) = fit(features_NVD[train, : VIEWS[choice.augmentation]], labels_N[train], (choice.penalty,))
            runs_RNC[repeat, test] = softmax(linear.logits(features_NVD[test, 0]) / choice.temperature, axis=1)
            choices.append(choice)
    return runs_RNC, choices
