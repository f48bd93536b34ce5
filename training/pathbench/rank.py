"""Ranks of a table of scores:

    python -m training.pathbench rank SCORES.csv [--json] [--ties average|released] [--common]

SCORES.csv has the columns organ, task, cohort, metric and one a model, comma-separated, in UTF-8. Higher scores are
better; an empty cell (or NA, NaN) was not measured. `--json` prints the figures and nothing else.
"""

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from training import command
from training.pathbench.ranking import Ranking, Row, Scores, ScoresInvalid, Ties, balanced, conclusions, rank

COLUMNS = ("organ", "task", "cohort", "metric")
NOT_MEASURED = {"", "na", "nan", "n/a", "-"}


def main(arguments: list[str]) -> int:
    """0, or 1 with one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m training.pathbench rank", description="Rank a table of scores.")
    parser.add_argument("scores", type=Path, metavar="SCORES.csv")
    parser.add_argument("--json", action="store_true", help="the figures as JSON, nothing else")
    parser.add_argument("--ties", choices=("average", "released"), default="average")
    parser.add_argument("--common", action="store_true", help="rank on the rows that every model has")
    given = parser.parse_args(arguments)

    def work() -> None:
        found = figures(read_scores(given.scores), given.ties, common=given.common)
        if found["rows_left_out"]:
            print(f"{found['rows_left_out']} rows that some model lacks are left out.", file=sys.stderr)
        print(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) if given.json else text(found))

    return command.status(work, "The ranks")


def read_scores(path: Path) -> Scores:
    """The table of a CSV file. Raises ScoresInvalid, naming the line."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [(number, line) for number, line in enumerate(csv.reader(file, strict=True), 1) if any(line)]
    except OSError:
        raise ScoresInvalid(f"{path.name} cannot be read. Give a CSV file of scores.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ScoresInvalid(f"{path.name} is not a CSV file in UTF-8 ({error}). Save it as one.") from None
    header = [name.strip() for name in lines[0][1]] if lines else []
    models = _models(header, path.name)
    rows: dict[Row, list[float]] = {}
    for number, line in lines[1:]:
        if len(line) != len(header):
            raise ScoresInvalid(f"Line {number} has {len(line)} cells, the header {len(header)}. Give them as many.")
        cells = dict(zip(header, (cell.strip() for cell in line), strict=True))
        row = Row(*(cells[column] for column in COLUMNS))
        if not (row.task and row.metric):
            raise ScoresInvalid(f"Line {number} names no task or no metric. Fill both.")
        if row in rows:
            raise ScoresInvalid(
                f"Line {number} repeats the organ, task, cohort and metric of an earlier one. Keep one."
            )
        rows[row] = [_score(cells[model], model, number) for model in models]
    if not rows:
        raise ScoresInvalid(f"{path.name} holds no scores. Give a header and a line a task.")
    return Scores(tuple(rows), models, np.array(list(rows.values())))


def _models(header: list[str], name: str) -> tuple[str, ...]:
    absent = [column for column in COLUMNS if column not in header]
    if absent:
        raise ScoresInvalid(
            f"{name} has no column {', '.join(absent)}. Its columns are organ, task, cohort, metric, models."
        )
    if len(set(header)) != len(header):
        repeated = next(column for column in header if header.count(column) > 1)
        raise ScoresInvalid(f"The column {repeated or '(without a name)'} occurs twice. Give each model one column.")
    models = tuple(column for column in header if column not in COLUMNS)
    if not models or "" in models:
        raise ScoresInvalid(
            f"{name} has {'a column without a name' if models else 'no model'}. Name one column a model."
        )
    return models


def _score(cell: str, model: str, line: int) -> float:
    if cell.casefold() in NOT_MEASURED:
        return float("nan")
    try:
        value = float(cell)
    except ValueError:
        value = float("inf")
    if not np.isfinite(value):
        raise ScoresInvalid(f"Line {line}: {cell[:40]!r} of {model} is not a score. Give a number, or leave it empty.")
    return value


def figures(scores: Scores, ties: Ties = "average", *, common: bool = False) -> dict[str, Any]:
    """All that `rank` prints; the keys are those of the published rule's check, and ours beside them.

    `task_ranks` has a rank (of the row's task; None where the row is left out) for each row, in file order. With
    `common` the rows that some model lacks are left out. Raises ScoresInvalid.
    """
    whole_R = ~np.isnan(scores.values_RM).any(1)
    used = scores.where(whole_R) if common else scores
    if common and not used.rows:
        raise ScoresInvalid("There is no row that every model has. Leave out the models that lack most.")
    ranking = rank(used, ties)
    found = {**conclusions(used, ties), "task_ranks": _per_row(ranking, scores.rows, whole_R)}
    for metric in dict.fromkeys(row.metric for row in used.rows):
        key = "mean_rank_" + metric.casefold().replace("-", "_").replace(" ", "_") + "_only"
        found[key] = rank(used.where([row.metric == metric for row in used.rows]), ties).by_mean()
    internal_R = np.array([row.internal for row in used.rows])
    for name, keep_R in (("internal", internal_R), ("external", ~internal_R)):
        if keep_R.any() and not keep_R.all():
            found[f"mean_rank_{name}_only"] = rank(used.where(keep_R), ties).by_mean()
    found |= balanced(used, ties)
    return {**found, "ties": ties, "rows_left_out": len(scores.rows) - len(used.rows)}


def _per_row(ranking: Ranking, rows: tuple[Row, ...], whole_R: np.ndarray) -> dict[str, list[float | None]]:
    number = {place: task for task, place in enumerate(ranking.places)}
    task_of_R = [number[row.place] if whole else None for row, whole in zip(rows, whole_R, strict=True)]
    return {
        model: [None if task is None else float(ranking.ranks_TM[task, m]) for task in task_of_R]
        for m, model in enumerate(ranking.models)
    }


def text(found: dict[str, Any]) -> str:
    """The ranks for a reader."""
    width = max(len("model"), *(len(model) for model in found["mean_rank"]))
    lines = [f"{'':>4} {'model':<{width}} {'mean rank':>10} {'95 % over tasks':>17} {'firsts':>7}"]
    for place, (model, mean) in enumerate(found["mean_rank"].items(), 1):
        low, high = found["mean_rank_95"][model] if found["mean_rank_95"] else (mean, mean)
        interval = f"[{low:.2f}, {high:.2f}]"
        lines.append(f"{place:>4} {model:<{width}} {mean:>10.4f} {interval:>17} {found['n_first'][model]:>7}")
    return "\n".join(
        [*lines, "", found["statement"], "", "Cohorts of a task averaged: " + found["task_balanced"]["statement"]]
    )
