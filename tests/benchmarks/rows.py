"""One measured row of `make bench`, and the table and JSON that all rows make."""

import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

_ROOT = Path(__file__).resolve().parents[2]
TRAINING_PYTHON = _ROOT / ".venv-training" / "bin" / "python"
"""What needs the packages of training is measured in a process of its own."""


@dataclass(frozen=True)
class Row:
    """A figure and its ratio to a named floor measured in the same run. `goal` is a goal for the ratio, or for the
    value where there is no floor; None = printed for information."""

    name: str
    value: float
    unit: str
    floor: str | None = None
    ratio: float | None = None
    goal: float | None = None
    lower_is_better: bool = False

    @property
    def short(self) -> bool:
        """Whether the row misses its goal."""
        if self.goal is None:
            return False
        measured = self.value if self.ratio is None else self.ratio
        return measured > self.goal if self.lower_is_better else measured < self.goal


def measured_in_training(*arguments: str) -> list[Row]:
    """The rows that a module (and its arguments) prints as its last line, in JSON."""
    command = [str(TRAINING_PYTHON), "-m", *arguments]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=_ROOT)
    return [Row(**row) for row in json.loads(result.stdout.splitlines()[-1])]


def machine() -> str:
    """The machine in words: processor, cores that this process may use, system, Python."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    cores = len(os.sched_getaffinity(0))
    return f"{model}, {cores} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}"


def publish(rows: list[Row], path: Path) -> None:
    """Print the table and write the JSON that interface.md describes."""
    table = Table(title=machine())
    for heading in ("", "row", "value", "unit", "floor", "ratio", "goal"):
        table.add_column(heading, justify="right" if heading in ("value", "ratio", "goal") else "left")
    for row in rows:
        mark = "" if row.goal is None else ("short" if row.short else "ok")
        goal = "" if row.goal is None else ("≤ " if row.lower_is_better else "≥ ") + f"{row.goal:g}"
        ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
        table.add_row(mark, row.name, f"{row.value:,.2f}", row.unit, row.floor or "", ratio, goal)
    Console(width=150).print(table)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"results": [asdict(row) for row in rows], "machine": machine()}, indent=2) + "\n")
