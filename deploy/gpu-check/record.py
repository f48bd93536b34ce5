"""One clock, one record, and stages that cannot take the others down.

A stage runs in a process of its own: a runtime that crashes or a compiler that hangs costs its own stage and nothing
else. It hands over one JSON line per row, so that what a stage has measured stays even where the stage is cut.
"""

import contextlib
import json
import math
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_GRACE_S = 4.0


def write_atomic(path: Path, text: str) -> None:
    """A reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    Path(temporary).chmod(0o644)
    Path(temporary).replace(path)


@dataclass(frozen=True, slots=True)
class Clock:
    """A deadline on the machine's monotonic clock, the same in all its processes."""

    end_s: float

    @classmethod
    def of(cls, seconds: float) -> "Clock":
        return cls(time.monotonic() + seconds)

    def left_s(self) -> float:
        return self.end_s - time.monotonic()

    def sooner(self, seconds: float) -> "Clock":
        """This deadline, or `seconds` from now where that comes first."""
        return Clock(min(self.end_s, time.monotonic() + seconds))


class Rows:
    """What a stage hands over: rows of named sections, each on disk as soon as it is known."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path, self.clock = path, clock

    def add(self, section: str, **row: Any) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"section": section, "row": _finite(row)}, allow_nan=False) + "\n")

    def skip(self, what: str, reason: str) -> None:
        """Something that was not done, with its reason."""
        self.add("skipped", what=what, reason=reason)

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Go on where `what` fails: a compiler's or a runtime's complaint is a result, and is recorded."""
        try:
            yield
        except Exception as error:
            self.skip(what, f"{type(error).__name__}: {last_line(str(error))}")

    def has_time(self, what: str, needs_s: float) -> bool:
        """Whether `needs_s` are left for `what`; where they are not, that is recorded."""
        left_s = self.clock.left_s()
        if left_s < needs_s:
            self.skip(what, f"time: {max(left_s, 0):.0f} s left of this stage, {needs_s:.0f} s wanted")
        return left_s >= needs_s


def _finite(value: Any) -> Any:
    """The same value with null for every number that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Record:
    """The whole result. `save` replaces the JSON file atomically."""

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self._path = path
        self.value: dict[str, Any] = {**head, "stages": []}

    def take(self, stage: str, lines: Path) -> None:
        """Add the rows of one stage's file. A last line that was cut in the middle is left out."""
        if not lines.exists():
            return
        for line in lines.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                self.value.setdefault(entry["section"], []).append({"stage": stage, **entry["row"]})

    def save(self) -> None:
        write_atomic(self._path, json.dumps(self.value, indent=1, ensure_ascii=False) + "\n")

    def skip_stage(self, name: str, reason: str) -> None:
        self.value["stages"].append({"name": name, "state": "skipped", "seconds": 0, "reason": reason})
        self.save()

    def run(self, name: str, command: Sequence[str], clock: Clock, folder: Path) -> None:
        """Run one stage as a process until it ends or its deadline comes; take its rows and save."""
        started = time.monotonic()
        if clock.left_s() < 1:
            self.skip_stage(name, "time: none left")
            return
        lines, log = folder / f"{name}.jsonl", folder / f"{name}.log"
        arguments = [*command, "--stage", name, "--lines", str(lines), "--end", repr(clock.end_s)]
        with log.open("wb") as stderr:
            process = subprocess.Popen(arguments, stdout=stderr, stderr=stderr, start_new_session=True)
            try:
                status: int | None = process.wait(max(clock.left_s(), 0))
            except subprocess.TimeoutExpired:
                status = None
            finally:
                _stop(process)
        self.take(name, lines)
        state, reason = _outcome(status, log)
        self.value["stages"].append(
            {"name": name, "state": state, "seconds": round(time.monotonic() - started, 1), "reason": reason}
        )
        self.save()


def _outcome(status: int | None, log: Path) -> tuple[str, str]:
    if status == 0:
        return "done", ""
    if status is None:
        return "cut", "time: the stage's share was used up; its rows so far are kept"
    if status < 0:
        return "failed", f"ended by {signal.Signals(-status).name}; its rows so far are kept"
    return "failed", last_line(log.read_text(encoding="utf-8", errors="replace"))


def last_line(text: str) -> str:
    """The last line that says something, at most 300 characters, every path in it cut to its last part."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    words = [
        word.rsplit("/", 1)[-1] if word.count("/") > 1 else word for word in (lines or ["no message"])[-1].split(" ")
    ]
    return " ".join(words)[:300]


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the stage's whole process group (compilers leave workers behind): ask first, then insist."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
            if number == signal.SIGTERM and process.returncode == 0:
                return
