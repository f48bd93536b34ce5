"""The boards of the bench, from its records: main (clean cells only), flagged, survival.

A row is a task's cohort under one probe and metric; the rows of a task's cohort are ranked as its metrics (see
`ranking`). The flagged board has every row with a flagged cell, and the clean cells of that row beside them. Models
that lack a row are not ranked with the others; `common` ranks all models on the rows that all have.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.data.dataset import PATIENT_UNKNOWN
from training.errors import TrainingError
from training.pathbench import statistics
from training.pathbench.protocols import METRICS
from training.pathbench.ranking import Ranking, Row, Scores, balanced, cliques, conclusions, mean_and_interval, rank
from training.pathbench.records import Record
from training.statistics import RunsScore, macro_auroc

BOARDS = {"main": "Main board", "flagged": "Flagged board", "survival": "Survival board"}


class BoardRefused(TrainingError):
    """A result that must not stand on the board it names."""

    reason, title = "board-refused", "Result refused by the leaderboard"


def row_of(record: Record) -> Row:
    return Row(record.organ, record.task, record.cohort, f"{record.probe}: {record.metric}")


def leaderboard(records: Sequence[Record], predictions: Path | None = None) -> dict[str, Any]:
    """All boards as JSON values.

    With `predictions`, the folder of the cells' .npz files, each board tells per row how the best model differs from
    each other one: a paired bootstrap over groups, Holm-corrected within the row, and DeLong's test where there are two
    classes and every item is its own group. Raises BoardRefused for a result that has no place on its board.
    """
    for record in records:
        _check(record)
    chosen = {name: _of_board(records, name) for name in BOARDS}
    return {"boards": {name: _board(name, cells, predictions) for name, cells in chosen.items()}}


def _check(record: Record) -> None:
    what = f"{record.model} on {record.task} ({record.cohort})"
    if record.board == "main" and record.leakage != "clean":
        raise BoardRefused(
            f"The leakage of {what} is {record.leakage!r}; the main board takes clean results only. Flag the result."
        )
    if record.board == "main" and record.grouping == PATIENT_UNKNOWN:
        raise BoardRefused(f"The patients of {what} are unknown; the main board takes no such split. Flag the result.")
    if not record.values or not np.isfinite([*record.values, record.value, record.low, record.high]).all():
        raise BoardRefused(f"{what} has no figure, or one without its interval. Run the cell again.")
    if not record.low <= record.high:
        raise BoardRefused(f"The interval of {what} ends before it begins. Run the cell again.")


def _of_board(records: Sequence[Record], name: str) -> list[Record]:
    cells = [record for record in records if record.board == name]
    if name == "flagged":
        rows = {row_of(record) for record in cells}
        cells += [record for record in records if record.board == "main" and row_of(record) in rows]
    seen: dict[tuple[str, Row], Record] = {}
    splits: dict[Row, str] = {}
    for record in cells:
        row = row_of(record)
        if seen.setdefault((record.model, row), record) is not record:
            raise BoardRefused(f"{record.model} has two results on {record.task} ({record.cohort}). Keep one.")
        if splits.setdefault(row, record.key.get("split", "")) != record.key.get("split", ""):
            raise BoardRefused(f"The models on {record.task} ({record.cohort}) saw different splits. Run them again.")
    return cells


def _board(name: str, cells: list[Record], predictions: Path | None) -> dict[str, Any]:
    rows = tuple(sorted({row_of(cell) for cell in cells}))
    models = tuple(sorted({cell.model for cell in cells}))
    ranked = [cell for cell in cells if not cell.optimistic]
    scores = _scores(ranked)
    complete = scores.of([model for model in scores.models if model not in scores.lacking])
    common = scores.where(~np.isnan(scores.values_RM).any(1))
    types = {row_of(cell).place: cell.type for cell in cells}
    ranking = _ranking(complete, types) if complete.models else None
    best = ranking and ranking["best"]
    return {
        "title": BOARDS[name],
        "models": list(models),
        "rows": [_row(row, [cell for cell in cells if row_of(cell) == row]) for row in rows],
        "cells": [_cell(cell, rows.index(row_of(cell))) for cell in cells],
        "ranking": ranking,
        "not_ranked": scores.lacking,
        "common": _ranking(common, types) if scores.lacking and common.rows else None,
        "seed_spread": _seed_spread(ranked),
        "pairs": _pairs(best, ranked, rows, predictions) if best and predictions else [],
        "nemenyi_q": {str(k): statistics.nemenyi_q(k) for k in range(2, len(models) + 1)},
    }


def _scores(cells: list[Record]) -> Scores:
    rows = tuple(sorted({row_of(cell) for cell in cells}))
    models = tuple(sorted({cell.model for cell in cells}))
    values_RM = np.full((len(rows), len(models)), np.nan)
    for cell in cells:
        values_RM[rows.index(row_of(cell)), models.index(cell.model)] = cell.value
    return Scores(rows, models, values_RM)


def _ranking(scores: Scores, types: dict[tuple[str, str, str], str]) -> dict[str, Any]:
    """Overall, per organ, type and metric, with intervals over tasks; balanced variants; what may be concluded."""
    found = conclusions(scores)
    cd = found["nemenyi_cd_0_05"]
    return {
        **found,
        "cliques": [list(run) for run in cliques(found["mean_rank"], cd)] if cd else [],
        "task_ranks": _task_ranks(rank(scores)),
        "by_organ": _parts(scores, lambda row: row.organ),
        "by_type": _parts(scores, lambda row: types[row.place]),
        "by_metric": _parts(scores, lambda row: row.metric),
        **balanced(scores),
    }


def _task_ranks(ranking: Ranking) -> list[dict[str, Any]]:
    return [
        {
            "organ": place[0],
            "task": place[1],
            "cohort": place[2],
            "ranks": dict(zip(ranking.models, ranks, strict=True)),
        }
        for place, ranks in zip(ranking.places, ranking.ranks_TM.tolist(), strict=True)
    ]


def _parts(scores: Scores, of_row: Callable[[Row], str]) -> dict[str, dict[str, Any]]:
    values = [of_row(row) for row in scores.rows]
    return {
        value: mean_and_interval(rank(scores.where([other == value for other in values])))
        for value in sorted(set(values))
    }


def _row(row: Row, cells: list[Record]) -> dict[str, Any]:
    first = cells[0]
    return {
        "organ": row.organ,
        "task": row.task,
        "cohort": row.cohort,
        "type": first.type,
        "probe": first.probe,
        "metric": first.metric,
        "grouping": first.grouping,
        "groups": first.groups,
        "items": first.items,
    }


def _cell(cell: Record, row: int) -> dict[str, Any]:
    return {
        "row": row,
        "model": cell.model,
        "value": cell.value,
        "low": cell.low,
        "high": cell.high,
        "values": list(cell.values),
        "leakage": cell.leakage,
        "reasons": list(cell.reasons),
        "notes": list(cell.notes),
        "optimistic": cell.optimistic,
    }


def _seed_spread(cells: list[Record]) -> dict[str, float]:
    """Metric to the median over its cells of the standard deviation over training repetitions."""
    spreads: dict[str, list[float]] = {}
    for cell in cells:
        if len(cell.values) > 1:
            spreads.setdefault(cell.metric, []).append(float(np.std(cell.values)))
    return {metric: float(np.median(spread)) for metric, spread in sorted(spreads.items())}


def _pairs(best: str, cells: list[Record], rows: tuple[Row, ...], folder: Path) -> list[dict[str, Any]]:
    """The best model minus each other one, row by row; where predictions are not there, there is no pair."""
    pairs = []
    for index, row in enumerate(rows):
        known = {
            cell.model: folder / cell.predictions
            for cell in cells
            if row_of(cell) == row
            and cell.predictions
            and cell.metric in METRICS
            and (folder / cell.predictions).is_file()
        }
        if best in known and len(known) > 1:
            pairs += [{"row": index, "first": best, **pair} for pair in differences(best, known, row)]
    return pairs


def differences(first: str, files: dict[str, Path], row: Row) -> list[dict[str, Any]]:
    """One model minus each other one on a row, from the predictions' files by model; Holm-corrected among them.

    A seed is a repetition, no patient: each is scored, and the scores are averaged within a resample of groups. Raises
    BoardRefused where the models were measured on different items.
    """
    score = METRICS[row.metric.split(": ")[1]]
    loaded = {model: _load(path) for model, path in files.items()}
    _, labels_N, groups_N = loaded[first]
    for _, labels, groups in loaded.values():
        if not (np.array_equal(labels, labels_N) and np.array_equal(groups, groups_N)):
            raise BoardRefused(
                f"Two models on {row.task} ({row.cohort}) were measured on different items. Run them again."
            )
    scores = {model: RunsScore(score, runs_RNC, labels_N) for model, (runs_RNC, _, _) in loaded.items()}
    own = scores.pop(first)
    gaps = statistics.paired_bootstraps(own, scores, groups_N, labels_N)
    holm = statistics.holm({other: gap.p for other, gap in gaps.items()})
    alone = score is macro_auroc and own.runs_RNC.shape[2] == 2 and len(np.unique(groups_N)) == len(groups_N)
    return [
        {
            "second": other,
            "difference": gap.value,
            "low": gap.low,
            "high": gap.high,
            "p": gap.p,
            "holm": holm[other],
            "delong_p": _delong(own, scores[other]) if alone else None,
        }
        for other, gap in gaps.items()
    ]


def _delong(first: RunsScore, second: RunsScore) -> float:
    """p of the areas of the probabilities averaged over the seeds, as a check of the bootstrap's."""
    one_N, two_N = (each.runs_RNC[:, :, 1].mean(0) for each in (first, second))
    return statistics.delong(one_N, two_N, first.labels_N == 1).p


def _load(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities (R, N, C) of the seeds, labels and groups of a cell's predictions."""
    with np.load(path) as file:
        return file["probabilities_RNC"], file["labels_N"], file["groups_N"]
