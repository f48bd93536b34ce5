"""How well slides, or synthetic bags that stand for them, are called from calibrated probabilities.

Intervals are bootstraps over bags. Bags of one part share their cells, so they say how a figure varies with the bags
that are dealt, not how it would with other patients.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from gateway.domain.bethesda import ASC_H, HSIL, NAMES, NILM, SCC
from gateway.domain.screening import ScreeningPoint, called
from training.smartccs.slide_fit import auc_of
from training.statistics import ItemScore, balanced_accuracy, bootstrap, calibration_error, recalls

_HIGH = (ASC_H, HSIL, SCC)
_SENSITIVITY = 0.95


def figures(probabilities_NC: np.ndarray, labels_N: np.ndarray, point: ScreeningPoint, count: int) -> dict[str, Any]:
    """What a table says of a set of bags: AUC, sensitivity and specificity at the point, each with its interval; the
    rest without: specificity where 95 % are found, sensitivity for ASC-H, HSIL and SCC, recall by class of the category
    that is named, balanced accuracy, and calibration error of the seven classes. None where a class is missing."""
    groups_N = np.arange(len(labels_N))
    scores = {"auc": _auc(probabilities_NC, labels_N)} | _at_point(probabilities_NC, labels_N, point)
    named_NC = np.eye(len(NAMES))[[_named(row_C, point) for row_C in probabilities_NC]]
    abnormal_N = 1 - probabilities_NC[:, NILM] >= point.abnormal_from
    return {
        "bags": {name: int((labels_N == number).sum()) for number, name in enumerate(NAMES)},
        **{
            name: asdict(bootstrap(score, groups_N, (labels_N != NILM).astype(np.int64), count))
            for name, score in scores.items()
        },
        "specificity_at_95": _or_none(_specificity_at(probabilities_NC, labels_N)),
        "sensitivity_high_grade": _or_none(_share(abnormal_N, np.isin(labels_N, _HIGH))),
        "recall": {name: _or_none(value) for name, value in zip(NAMES, recalls(named_NC, labels_N), strict=True)},
        "balanced_accuracy": balanced_accuracy(named_NC, labels_N),
        "calibration_error": calibration_error(probabilities_NC, labels_N),
    }


def _auc(probabilities_NC: np.ndarray, labels_N: np.ndarray) -> ItemScore:
    return lambda index: auc_of(probabilities_NC[index], labels_N[index])


def _at_point(probabilities_NC: np.ndarray, labels_N: np.ndarray, point: ScreeningPoint) -> dict[str, ItemScore]:
    right_N = (1 - probabilities_NC[:, NILM] >= point.abnormal_from) == (labels_N != NILM)

    def share(of_N: np.ndarray) -> Callable[[np.ndarray], float]:
        return lambda index: _share(right_N[index], of_N[index])

    return {"sensitivity": share(labels_N != NILM), "specificity": share(labels_N == NILM)}


def _share(yes_N: np.ndarray, of_N: np.ndarray) -> float:
    return float(yes_N[of_N].mean()) if of_N.any() else float("nan")


def _named(probabilities_C: np.ndarray, point: ScreeningPoint) -> int:
    """The category, or the most probable class where none can be named."""
    named = called(probabilities_C.tolist(), point).categories
    return named[0] if named else int(probabilities_C.argmax())


def _specificity_at(probabilities_NC: np.ndarray, labels_N: np.ndarray) -> float:
    scores_N = 1 - probabilities_NC[:, NILM]
    positive_P = np.sort(scores_N[labels_N != NILM])[::-1]
    if not len(positive_P):
        return float("nan")
    least = positive_P[int(np.ceil(_SENSITIVITY * len(positive_P) - 1e-9)) - 1]
    return _share(scores_N < least, labels_N == NILM)


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
