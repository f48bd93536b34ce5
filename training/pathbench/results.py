"""What a run of the bench publishes: `pathbench.json`, which holds every cell, and `pathbench.md`, which is read."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.errors import ResultInvalid
from training.files import json_bytes, write_atomic
from training.pathbench.leaderboard import leaderboard
from training.pathbench.page import page
from training.pathbench.records import Record

SCHEMA = "pathserve-bench-1"


@dataclass(frozen=True, slots=True)
class NotRun:
    """An encoder, a task or one cell without a figure, and why."""

    model: str
    task: str
    reason: str


@dataclass(frozen=True, slots=True)
class Control:
    """A fault put in on purpose: what was seen, what must be seen, and whether the bench saw it."""

    name: str
    task: str
    observed: str
    expected: str
    caught: bool


@dataclass(frozen=True, slots=True)
class Results:
    recipe: str
    records: tuple[Record, ...]
    not_run: tuple[NotRun, ...]
    controls: tuple[Control, ...]


def published(path: Path) -> tuple[Record, ...]:
    """The records of an earlier `pathbench.json`; none where there is no such file. Raises ResultInvalid."""
    if not path.is_file():
        return ()
    try:
        values = json.loads(path.read_bytes())["records"]
    except (ValueError, KeyError, TypeError):
        raise ResultInvalid(f"{path.name} is not a bench's result. Remove it and run the bench again.") from None
    return tuple(Record.of(value) for value in values)


def publish(results: Results, cells: Path, out: Path) -> None:
    """Write JSON, text and page. Raises ResultInvalid, and writes nothing, where a control was not caught."""
    missed = [control for control in results.controls if not control.caught]
    if missed:
        raise ResultInvalid(
            f"The run is void and nothing was published: the control “{missed[0].name}” on {missed[0].task} gave "
            f"{missed[0].observed}, and {missed[0].expected} was expected. Find what leaks before you trust a figure."
        )
    values: dict[str, Any] = {"schema": SCHEMA, **asdict(results)}
    values |= leaderboard(results.records, cells)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "pathbench.json", json_bytes(values))
    write_atomic(out / "pathbench.md", _text(results, values["boards"]).encode())
    write_atomic(out / "pathbench.html", page(values).encode())


def _text(results: Results, boards: dict[str, Any]) -> str:
    records = results.records
    lines = [
        "# PathBench: results",
        "",
        f"Written by `python -m training.pathbench run training/recipes/{results.recipe}.toml`: {len(records)} cells. "
        "The board with intervals, filters and paired differences is [pathbench.html](pathbench.html); how it is "
        "computed and what it refuses is in [../pathbench.md](../pathbench.md).",
        "",
        "Each figure is a mean over the seeds, with the 95 % interval `[low, high]` of a bootstrap over groups. A "
        "leakage other than “clean” and a set whose patients are unknown put a cell on the flagged board.",
    ]
    for name, board in boards.items():
        cells = [record for record in records if record.board == name]
        if not cells:
            continue
        lines += ["", f"## {board['title']}"]
        if name != "survival":
            lines += _ranks(board)
        for place in dict.fromkeys((record.task, record.cohort, record.probe, record.metric) for record in cells):
            lines += ["", "### {}, {}: {} ({})".format(*place), "", *_cells(cells, place)]
    lines += ["", "## Negative controls", ""]
    lines += _table(
        ("fault put in", "task", "observed", "expected", "caught"),
        [(f"control: {c.name}", c.task, c.observed, c.expected, "yes" if c.caught else "no") for c in results.controls],
    )
    lines += ["", "## Not run", ""]
    lines += _table(("encoder", "task", "reason"), [(each.model, each.task, each.reason) for each in results.not_run])
    return "\n".join([*lines, ""])


def _ranks(board: dict[str, Any]) -> list[str]:
    """Mean ranks and what may be concluded: of the models with every row, then of all on the rows that all have."""
    lines = []
    for title, ranking in (("Ranks", board["ranking"]), ("Ranks on the rows that all encoders have", board["common"])):
        if not ranking:
            continue
        bounds = ranking["mean_rank_95"]
        lines += ["", f"### {title}", ""]
        lines += _table(
            ("encoder", "mean rank", "95 % interval over tasks"),
            [
                (model, f"{mean:.2f}", "[{:.2f}, {:.2f}]".format(*bounds[model]) if bounds else "one task only")
                for model, mean in sorted(ranking["mean_rank"].items(), key=lambda item: item[1])
            ],
        )
        said = dict.fromkeys(each["statement"] for each in (ranking, ranking["task_balanced"]))
        lines += ["", " On task averages: ".join(said)]
    if board["not_ranked"]:
        lines += ["", "Not ranked with the others, for want of a row: " + ", ".join(sorted(board["not_ranked"])) + "."]
    return lines


def _cells(cells: Sequence[Record], place: tuple[str, str, str, str]) -> list[str]:
    """The rows of one task, best first; what is said of all of them stands below."""
    rows = [r for r in cells if (r.task, r.cohort, r.probe, r.metric) == place]
    rows.sort(key=lambda record: -record.value)
    first = rows[0]
    table = _table(
        ("encoder", "value", "95 % interval", "leakage"),
        [(r.model, f"{r.value:.3f}", f"[{r.low:.3f}, {r.high:.3f}]", r.leakage) for r in rows],
    )
    notes = "; ".join(dict.fromkeys(note for record in rows for note in record.notes))
    said = f"{first.items} items in {first.groups} groups ({first.grouping})" + (f"; {notes}" if notes else "")
    return [*table, "", f"{said}."]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(values: Sequence[str]) -> str:
        return "| " + " | ".join(value.replace("|", "\\|").replace("\n", " ") for value in values) + " |"

    return [line(head), "|" + " --- |" * len(head), *map(line, rows)] if rows else ["None."]
