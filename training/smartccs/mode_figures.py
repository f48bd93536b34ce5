"""What is told of a mode of adaptation at a centre, against none: over several heads, on the same resamples of bags.

A figure is the mean over heads that were trained from different seeds; its interval resamples bags, not heads. Bags of
one part share their cells: an interval says how a figure varies with the bags that are dealt.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from gateway.domain.bethesda import NILM
from gateway.domain.screening import TURNED_NORMAL, ScreeningPoint, called, decided
from training.smartccs.slide_figures import figures
from training.smartccs.slide_fit import auc_of, odds_of
from training.statistics import ItemScore, RunsScore, bootstrap, interval, macro_auroc, replicates


def against(
    mode_RNC: np.ndarray, none_RNC: np.ndarray, labels_N: np.ndarray, points: Sequence[ScreeningPoint], count: int
) -> dict[str, Any]:
    """A mode's probabilities of R heads beside those without adaptation: AUC, sensitivity and specificity at each
    head's own source threshold, and the paired differences, mode minus none; AUC by head."""
    abnormal_N = (labels_N != NILM).astype(np.int64)
    groups_N = np.arange(len(labels_N))
    areas = [RunsScore(macro_auroc, _two_sided(given_RNC), abnormal_N) for given_RNC in (mode_RNC, none_RNC)]
    found = _paired("auc", areas, groups_N, abnormal_N, count)
    for name, side in (("sensitivity", 1), ("specificity", 0)):
        shares = [_share(_called(given_RNC, points) == side, abnormal_N == side) for given_RNC in (mode_RNC, none_RNC)]
        found |= _paired(name, shares, groups_N, abnormal_N, count)
    return found | {"auc_by_head": [auc_of(given_NC, labels_N) for given_NC in mode_RNC]}


def served(
    mode_NC: np.ndarray,
    none_NC: np.ndarray,
    labels_N: np.ndarray,
    point: ScreeningPoint,
    count: int,
    *,
    out_of_scope: bool = False,
) -> dict[str, Any]:
    """Of the served head alone: its figures; how many calls the mode turns normal (of how many truly abnormal bags) and
    abnormal; and what the deciding rule's guards make of it: `guarded` sensitivity and specificity, where a bag whose
    normal call is withheld counts as not called normal, and how many are."""
    adapted_N, plain_N = (1 - given_NC[:, NILM] >= point.abnormal_from for given_NC in (mode_NC, none_NC))
    turned_N = plain_N & ~adapted_N
    decisions = [
        decided(mine_C.tolist(), plain_C.tolist(), point, out_of_scope=out_of_scope)
        for mine_C, plain_C in zip(mode_NC, none_NC, strict=True)
    ]
    said_N = np.array([-1 if each.call is None else int(each.call.abnormal) for each in decisions])
    abnormal_N = (labels_N != NILM).astype(np.int64)
    groups_N = np.arange(len(labels_N))
    return figures(mode_NC, labels_N, point, count) | {
        "turned_normal": int(turned_N.sum()),
        "turned_normal_of_abnormal": int((turned_N & (labels_N != NILM)).sum()),
        "turned_abnormal": int((~plain_N & adapted_N).sum()),
        "guarded": {
            "stopped": sum(TURNED_NORMAL in each.findings for each in decisions),
            "withheld": int((said_N < 0).sum()),
            **{
                name: asdict(bootstrap(_share((said_N == side)[None], abnormal_N == side), groups_N, abnormal_N, count))
                for name, side in (("sensitivity", 1), ("specificity", 0))
            },
        },
    }


def area(given_RNC: np.ndarray, labels_N: np.ndarray, count: int) -> dict[str, float]:
    """AUC alone, the mean over heads, with its interval."""
    abnormal_N = (labels_N != NILM).astype(np.int64)
    score = RunsScore(macro_auroc, _two_sided(given_RNC), abnormal_N)
    return asdict(bootstrap(score, np.arange(len(labels_N)), abnormal_N, count))


def difference_of_areas(
    first_RNC: np.ndarray, second_RNC: np.ndarray, labels_N: np.ndarray, count: int
) -> dict[str, float]:
    """AUC of the first minus that of the second, on the same resamples of bags."""
    abnormal_N = (labels_N != NILM).astype(np.int64)
    scores = [RunsScore(macro_auroc, _two_sided(given_RNC), abnormal_N) for given_RNC in (first_RNC, second_RNC)]
    found = _paired("auc", scores, np.arange(len(labels_N)), abnormal_N, count)["auc_gain"]
    return dict(found)


def right_class(given_NC: np.ndarray, labels_N: np.ndarray, point: ScreeningPoint) -> float:
    """The share of bags whose category, the first that is named, is their class."""
    named = [called(row_C.tolist(), point).categories for row_C in given_NC]
    return float(np.mean([bool(each) and each[0] == label for each, label in zip(named, labels_N, strict=True)]))


def _paired(
    name: str, scores: Sequence[ItemScore], groups_N: np.ndarray, abnormal_N: np.ndarray, count: int
) -> dict[str, Any]:
    """The first of two scores, and how much it exceeds the second."""
    drawn_B2 = replicates(scores, groups_N, abnormal_N, count).scores_BK
    mine, other = (score(groups_N) for score in scores)
    return {
        name: asdict(interval(mine, drawn_B2[:, 0])),
        f"{name}_gain": asdict(interval(mine - other, drawn_B2[:, 0] - drawn_B2[:, 1])),
    }


def _two_sided(given_RNC: np.ndarray) -> np.ndarray:
    """(R,N,2): for NILM, and for abnormal."""
    odds_RN = odds_of(given_RNC)
    return np.stack([-odds_RN, odds_RN], 2)


def _called(given_RNC: np.ndarray, points: Sequence[ScreeningPoint]) -> np.ndarray:
    """(R,N) int: 1 where a head calls a bag abnormal."""
    least_R1 = np.array([[point.abnormal_from] for point in points])
    return (1 - given_RNC[:, :, NILM] >= least_R1).astype(np.int64)


def _share(right_RN: np.ndarray, of_N: np.ndarray) -> Callable[[np.ndarray], float]:
    """The mean over heads of how often they are right among some items; NaN where none of these is there."""

    def share(index: np.ndarray) -> float:
        kept = index[of_N[index]]
        return float(right_RN[:, kept].mean()) if len(kept) else float("nan")

    return share
