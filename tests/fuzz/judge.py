"""One case in a process of its own: bounded in memory and time, watched for what it writes, and judged."""

import contextlib
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.operations.errors import PathserveError

WALL_S = 10.0
MEMORY_BYTES = 1 << 30
_POLL_S = 0.02
_TEMPORARY = "tmp"
"""A case's folder for temporary files: any may be written there, and none may be left."""
_PAGE_BYTES = resource.getpagesize()
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES: dict[str, tuple[tuple[int, int | None], ...]] = {
    "os.mkdir": ((0, 2),),
    "os.rename": ((0, 2), (1, 3)),
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.utime": ((0, 3),),
}
"""Audit events of the interpreter that change a file system: which arguments are the paths changed, and for each the
argument that is the descriptor of the folder that the path is relative to."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a case ended. `outcome`: "result", "refused" (a typed error of the right family), or what went wrong:
    "untyped", "wrong-family", "leaky-detail", "crash", "timeout", "memory", "stray"."""

    outcome: str
    error: str = ""
    detail: str = ""
    seconds: float = 0.0
    peak_mb: int = 0

    @property
    def failed(self) -> bool:
        return self.outcome not in ("result", "refused")


@dataclass(frozen=True, slots=True)
class Task:
    """What runs in the child. `may_write`: folders of the case that it may change; everything else must stay."""

    run: Callable[[Path], object]
    may_raise: tuple[type[PathserveError], ...]
    may_write: tuple[str, ...] = ()


def judged(task: Task, case: Path, *, wall_s: float = WALL_S, memory_bytes: int = MEMORY_BYTES) -> Verdict:
    """Run the task on the folder `case` in a forked child and judge it. Call it from a process with one thread."""
    (case / _TEMPORARY).mkdir(exist_ok=True)
    before = _listing(case, task.may_write)
    reading, writing = os.pipe()
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _child(task, case, writing)
    os.close(writing)
    try:
        answer, status, peak, ended = _watched(pid, reading, began, wall_s, memory_bytes)
    finally:
        os.close(reading)
    seconds, peak_mb = round(time.monotonic() - began, 3), peak >> 20
    if ended:
        return Verdict(ended, seconds=seconds, peak_mb=peak_mb)
    if peak > memory_bytes:
        return Verdict("memory", seconds=seconds, peak_mb=peak_mb)
    if not answer:
        how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.waitstatus_to_exitcode(status)}"
        return Verdict("crash", how, seconds=seconds, peak_mb=peak_mb)
    verdict = Verdict(**json.loads(answer), seconds=seconds, peak_mb=peak_mb)
    changed = sorted(set(_listing(case, task.may_write).items()) ^ set(before.items()))
    if changed and not verdict.failed:
        return Verdict("stray", detail=repr(changed[:3]), seconds=seconds, peak_mb=peak_mb)
    return verdict


def _watched(
    pid: int, reading: int, began: float, wall_s: float, memory_bytes: int
) -> tuple[bytes, int, int, str | None]:
    """The child's answer, exit status, peak of resident bytes, and why it was killed where it was."""
    answer, ended, peak = bytearray(), None, 0
    waited_s: dict[str, float] = {}
    while True:
        ready, _, _ = select.select([reading], [], [], _POLL_S)
        if ready:
            piece = os.read(reading, 1 << 16)
            if not piece:
                break
            answer += piece
        resident = _resident_bytes(pid)
        peak = max(peak, resident)
        if resident > memory_bytes:
            ended = "memory"
        elif time.monotonic() - began > wall_s:
            # On a machine with other work, the time for which its threads stood in line for a core is not the case's.
            _note_waiting(pid, waited_s)
            if time.monotonic() - began - max(waited_s.values(), default=0.0) > wall_s:
                ended = "timeout"
        if ended:
            os.kill(pid, signal.SIGKILL)
            break
    _, status, usage = os.wait4(pid, 0)
    return bytes(answer), status, max(peak, usage.ru_maxrss * 1024), ended


def _note_waiting(pid: int, waited_s: dict[str, float]) -> None:
    """For each thread of a process the seconds for which it was ready and had no core."""
    for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, IndexError):  # it may end while we look
            waited_s[file.parent.name] = int(file.read_text().split()[1]) / 1e9


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0


def _listing(folder: Path, without: tuple[str, ...]) -> dict[str, tuple[int, int, int]]:
    """Every file below a folder by name, size, time of change and mode, but for the parts that may be written."""
    found = {}
    for top, folders, files in os.walk(folder):
        if Path(top) == folder:
            folders[:] = [name for name in folders if name not in without]
            files = [name for name in files if name not in without]
        for name in [*folders, *files]:
            status = os.lstat(path := f"{top}/{name}")
            found[path] = (status.st_size, status.st_mtime_ns, status.st_mode)
    return found


def _child(task: Task, case: Path, writing: int) -> None:
    """Run the task and write what came of it to the pipe. Never returns."""
    try:
        devnull = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(devnull, descriptor)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        stray: list[str] = []
        tempfile.tempdir = os.fspath(case / _TEMPORARY)
        _watch_writes(stray, tuple(os.fspath(case / name) for name in (_TEMPORARY, *task.may_write)))
        outcome = _outcome(task, case)
        if stray and outcome["outcome"] in ("result", "refused"):
            outcome = {"outcome": "stray", "detail": "; ".join(stray[:3])}
        os.write(writing, json.dumps(outcome).encode())
    finally:
        os._exit(0)


def _outcome(task: Task, case: Path) -> dict[str, str]:
    try:
        task.run(case)
    except PathserveError as error:
        name, detail = type(error).__name__, error.detail
        if type(error) is PathserveError or not isinstance(error, task.may_raise):
            return {"outcome": "wrong-family", "error": name, "detail": traceback.format_exc()[-1500:]}
        if os.fspath(case) in detail or "\n" in detail or not detail.strip() or len(detail) > 600:
            return {"outcome": "leaky-detail", "error": name, "detail": detail[:1500]}
        if bug := _bug_behind(error):
            return {"outcome": bug, "error": name, "detail": traceback.format_exc()[-1500:]}
        return {"outcome": "refused", "error": name, "detail": detail}
    except BaseException as error:
        return {"outcome": "untyped", "error": type(error).__name__, "detail": traceback.format_exc()[-1500:]}
    return {"outcome": "result"}


def _bug_behind(error: BaseException | None) -> str | None:
    """What a typed error hides that no input may cause: want of memory, or a mistake in our own code."""
    while error is not None:
        if isinstance(error, MemoryError):
            return "memory"
        if isinstance(error, NameError | AssertionError | ImportError):
            return "untyped"
        error = error.__cause__ or error.__context__
    return None


def _watch_writes(stray: list[str], allowed: tuple[str, ...]) -> None:
    """Note every change of a file outside `allowed` that goes through the interpreter, wherever it may be."""
    allowed = (*allowed, os.devnull)

    def note(path: Any, folder: int = -1) -> None:
        if isinstance(path, int):
            return  # it was opened before, and judged then
        name = os.fsdecode(path)
        real = os.path.realpath(name if folder < 0 else f"/proc/self/fd/{folder}/{name}")
        if not any(real == folder or real.startswith(folder + os.sep) for folder in allowed):
            stray.append(real)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            if isinstance(arguments[2], int) and arguments[2] & _WRITES:
                note(arguments[0])
        elif event in _CHANGES:
            for place, folder in _CHANGES[event]:
                note(arguments[place], -1 if folder is None else arguments[folder])
        elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
            stray.append(event)

    sys.addaudithook(hook)


def fresh(folder: Path) -> Path:
    """An empty folder in place of whatever was there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
