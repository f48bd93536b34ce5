"""What an update of the bench added, changed and left alone: one dated Markdown file, to which later updates append."""

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path

from training.files import write_atomic
from training.pathbench.leaderboard import leaderboard, row_of
from training.pathbench.ranking import Row
from training.pathbench.records import Record

Place = tuple[str, Row]
_HEAD = ("model", "organ", "task", "cohort", "probe: metric")


def write(before: Sequence[Record], after: Sequence[Record], folder: Path, day: date | None = None) -> Path | None:
    """Write what changed to `<folder>/<day>.md` (today, UTC); None, and no file, where nothing did."""
    old, new = ({(record.model, row_of(record)): record for record in records} for records in (before, after))
    added = sorted(new.keys() - old.keys())
    removed = sorted(old.keys() - new.keys())
    changed = sorted(place for place in old.keys() & new.keys() if old[place] != new[place])
    if not (added or removed or changed):
        return None
    day = day or datetime.now(UTC).date()
    path = folder / f"{day.isoformat()}.md"
    earlier = path.read_text(encoding="utf-8") if path.is_file() else f"# PathBench: changes of {day.isoformat()}\n"
    lines = [
        f"## Update {earlier.count(chr(10) + '## Update ') + 1}",
        "",
        f"{len(added)} cells added, {len(changed)} changed, {len(removed)} removed, "
        f"{len(new) - len(added) - len(changed)} untouched.",
        *_new("Models", {model for model, _ in new}, {model for model, _ in old}),
        *_new("Tasks", {row.task for _, row in new}, {row.task for _, row in old}),
        *_table("Added", ("figure",), [(*_names(place), _figure(new[place])) for place in added]),
        *_table(
            "Changed",
            ("before", "after", "why"),
            [
                (*_names(place), *(_figure(of[place]) for of in (old, new)), _why(old[place], new[place]))
                for place in changed
            ],
        ),
        *_table("Removed", ("figure",), [(*_names(place), _figure(old[place])) for place in removed]),
        *_table("Mean ranks that moved", ("before", "after"), _moved(before, after), head=("board", "model")),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "\n".join([earlier, *lines, ""]).encode())
    return path


def _new(what: str, now: set[str], then: set[str]) -> list[str]:
    come, gone = sorted(now - then), sorted(then - now)
    return [
        *(["", f"{what} added: {', '.join(map(_plain, come))}."] if come else []),
        *(["", f"{what} removed: {', '.join(map(_plain, gone))}."] if gone else []),
    ]


def _names(place: Place) -> tuple[str, ...]:
    model, row = place
    return tuple(map(_plain, (model, row.organ, row.task, row.cohort, row.metric)))


def _figure(record: Record) -> str:
    return f"{record.value:.4f} [{record.low:.4f}, {record.high:.4f}], {record.board} board, {record.leakage}"


def _why(old: Record, new: Record) -> str:
    """The parts of the key that differ."""
    parts = sorted(part for part in old.key.keys() | new.key.keys() if old.key.get(part) != new.key.get(part))
    return _plain(", ".join(parts)) or "same key"


def _moved(before: Sequence[Record], after: Sequence[Record]) -> list[tuple[str, ...]]:
    old, new = (leaderboard(records)["boards"] for records in (before, after))
    moved = []
    for name in new:
        then, now = ((boards[name]["ranking"] or {"mean_rank": {}})["mean_rank"] for boards in (old, new))
        for model in [*now, *(model for model in then if model not in now)]:
            if then.get(model) != now.get(model):
                ranks = (f"{ranks[model]:.2f}" if model in ranks else "not ranked" for ranks in (then, now))
                moved.append((name, _plain(model), *ranks))
    return moved


def _table(
    title: str, columns: tuple[str, ...], lines: Iterable[tuple[str, ...]], head: tuple[str, ...] = _HEAD
) -> list[str]:
    cells = [f"| {' | '.join(line)} |" for line in lines]
    if not cells:
        return []
    names = (*head, *columns)
    return ["", f"### {title}", "", f"| {' | '.join(names)} |", f"|{'---|' * len(names)}", *cells]


def _plain(text: str) -> str:
    """A name as text in Markdown, whatever it holds."""
    escaped = "".join(f"\\{sign}" if sign in "\\`*_[]<>|" else sign for sign in text)
    return " ".join(escaped.split())
