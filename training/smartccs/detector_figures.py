"""How well a detector finds abnormal cells in fields of groups that it never saw, with intervals: experiment E2.

Intervals resample fields. Fields of one group look alike and the groups are few, so that intervals over groups would be
wider. False alarms are counted twice, as in training.smartccs.froc.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np

from gateway.domain.bethesda import NAMES
from training.smartccs import data, detecting, froc
from training.smartccs.detector import Detector
from training.smartccs.froc import Answered, Marks, Overlaps
from training.smartccs.recipe import DetectorRecipe
from training.smartccs.trial import Found
from training.statistics import ItemScore, bootstrap, interval, replicates

LEAST_CELLS = 30
"""Test cells of a class below which none of its figures is told."""
LEADING = 4.0
"""False alarms a field at which classes are told and the baseline is held against."""


def detector_figures(network: Detector, recipe: DetectorRecipe, fields: Sequence[data.Field], count: int) -> Found:
    """Of fields: both FROC with intervals, of the network and of dark blobs; their difference by either; sensitivity by
    class; average precision; and, the control, the network's boxes held against other fields. Raises DataMissing."""
    found = detecting.answered(network, detecting.scaled(fields, recipe.data.mpp), recipe.data, recipe.merging)
    blobs = [Answered(entry.field, froc.dark_blobs(entry.field, entry.field.read())) for entry in found]
    cells = _cells(found)
    mine, theirs = ([froc.marks(entry) for entry in answers] for answers in (found, blobs))
    mine_alone, theirs_alone = (
        [froc.marks(entry, unannotated=False) for entry in answers] for answers in (found, blobs)
    )
    return {
        "fields": len(found),
        "groups": sorted({entry.field.group for entry in found}),
        "negative_fields": sum(entry.field.negative for entry in found),
        "cells": {NAMES[kind]: int(number) for kind, number in enumerate(_kinds(found)) if number},
        "froc": _curve(mine, cells, count),
        "froc_annotated_only": _curve(mine_alone, cells, count),
        "dark_blobs": _curve(theirs, cells, count),
        "dark_blobs_annotated_only": _curve(theirs_alone, cells, count),
        "above_dark_blobs": _gain(mine, theirs, cells, count),
        "above_dark_blobs_annotated_only": _gain(mine_alone, theirs_alone, cells, count),
        "by_class": _by_class(mine, found, count),
        "ap50": _average_precision(found, count),
        "ap50_of_dark_blobs": _average_precision(blobs, count),
        "control_other_fields": _control(found, count),
    }


def leading_figures(found: Sequence[Answered], count: int) -> Found:
    """What a card says of a detector, with intervals over fields: the sensitivity at four false alarms a field, counted
    both ways, of all abnormal cells and of each class of enough cells, and the average precision at half overlap."""
    cells = _cells(found)
    mine, milder = ([froc.marks(entry, unannotated=severe) for entry in found] for severe in (True, False))
    at = f"sensitivity at {LEADING:g} false alarms a field"
    return {
        at: _figure(_sensitivity(mine, cells, LEADING), len(found), count),
        f"{at} on annotated nuclei": _figure(_sensitivity(milder, cells, LEADING), len(found), count),
        **{f"{at}, {name}": figure for name, figure in _by_class(mine, found, count).items()},
        "average precision at half overlap": _average_precision(found, count),
    }


def _cells(found: Sequence[Answered]) -> np.ndarray:
    """(F,) int64: abnormal cells by field."""
    return np.array([int(entry.field.abnormal.sum()) for entry in found])


def _kinds(found: Sequence[Answered]) -> np.ndarray:
    """(7,) int64: abnormal cells by Bethesda number, of NILM none."""
    return np.bincount(np.concatenate([entry.field.classes_N[entry.field.abnormal] for entry in found]), minlength=7)


def _by_class(marked: Sequence[Marks], found: Sequence[Answered], count: int) -> Found:
    """Of each class of enough cells."""
    return {
        NAMES[kind]: _figure(_of_kind(marked, found, kind), len(found), count)
        for kind, number in enumerate(_kinds(found))
        if number >= LEAST_CELLS
    }


def _average_precision(found: Sequence[Answered], count: int) -> dict[str, float]:
    return _figure(_precision([froc.overlaps(entry) for entry in found]), len(found), count)


def _control(found: Sequence[Answered], count: int) -> Found:
    exchanged = froc.of_other_fields(found)
    return _curve([froc.marks(entry) for entry in exchanged], _cells(exchanged), count)


def _curve(marked: Sequence[Marks], cells_F: np.ndarray, count: int) -> Found:
    return {f"{rate:g}": _figure(_sensitivity(marked, cells_F, rate), len(marked), count) for rate in froc.RATES}


def _gain(mine: Sequence[Marks], theirs: Sequence[Marks], cells_F: np.ndarray, count: int) -> Found:
    """How much more is found than by another, on the same resamples of fields."""
    scores = [_sensitivity(marked, cells_F, LEADING) for marked in (mine, theirs)]
    fields_F = np.arange(len(mine))
    drawn_B2 = replicates(scores, fields_F, None, count).scores_BK
    return asdict(interval(scores[0](fields_F) - scores[1](fields_F), drawn_B2[:, 0] - drawn_B2[:, 1]))


def _sensitivity(marked: Sequence[Marks], cells_F: np.ndarray, rate: float) -> ItemScore:
    def score(index: np.ndarray) -> float:
        return _share(len(froc.found_at([marked[place] for place in index], (rate,))[rate]), int(cells_F[index].sum()))

    return score


def _of_kind(marked: Sequence[Marks], found: Sequence[Answered], kind: int) -> ItemScore:
    """Of one class's cells, at the threshold of the leading rate, whatever class the detections name."""
    own_F = np.array([int((entry.field.classes_N == kind).sum()) for entry in found])

    def score(index: np.ndarray) -> float:
        kinds = froc.found_at([marked[place] for place in index], (LEADING,))[LEADING]
        return _share(int((kinds == kind).sum()), int(own_F[index].sum()))

    return score


def _precision(fields: Sequence[Overlaps]) -> ItemScore:
    def score(index: np.ndarray) -> float:
        chosen = [fields[place] for place in index]
        return froc.precision_of(chosen) if any(entry.cells for entry in chosen) else float("nan")

    return score


def _figure(score: Callable[[np.ndarray], float], fields: int, count: int) -> dict[str, float]:
    return asdict(bootstrap(score, np.arange(fields), None, count))


def _share(found: int, of: int) -> float:
    return found / of if of else float("nan")
