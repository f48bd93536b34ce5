"""The processes that run an embedded Triton's models. Triton calls a model ready whose process is dead: we look."""

import contextlib
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

_PROGRAM = "triton_python_backend_stub"


@dataclass(frozen=True, slots=True)
class Stub:
    """One living stub: the model folder that it runs, and the CPU time that it has used. `frozen`: it is stopped.

    `started_s` (since the epoch) tells it from another process that was given its id later.
    """

    pid: int
    started_s: float
    folder: str
    frozen: bool
    cpu_s: float


def living_stubs(server_pid: int, directory: Path) -> tuple[Stub, ...]:
    """The stubs of the server that runs in `directory`. A dead one stays a zombie without a command line: no stub."""
    models = f"{directory / 'models'}/"
    found = []
    with contextlib.suppress(psutil.Error, ValueError):
        for process in psutil.Process(server_pid).children():
            with contextlib.suppress(psutil.Error):
                arguments = process.cmdline()
                if len(arguments) > 1 and Path(arguments[0]).name == _PROGRAM and arguments[1].startswith(models):
                    folder = arguments[1].removeprefix(models).partition("/")[0]
                    frozen = process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
                    times = process.cpu_times()
                    cpu_s = times.user + times.system
                    found.append(Stub(process.pid, process.create_time(), folder, frozen, cpu_s))
    return tuple(found)


def wanted_s(pid: int) -> float:
    """The CPU time that a process's threads have used, and the time that they stood in line for a core; s.

    What waits for an event wants nothing; what is kept from computing by others wants it all the time. Linux counts
    both (proc_pid_schedstat: nanoseconds on a core, nanoseconds on a run queue).
    """
    wanted_ns = 0
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError, ValueError):
                on_core, in_line, _ = (task / "schedstat").read_text().split()
                wanted_ns += int(on_core) + int(in_line)
    return wanted_ns / 1e9


def dead_children(server_pid: int) -> frozenset[int]:
    """The server's zombies: it never waits for a stub while its model is loaded."""
    with contextlib.suppress(psutil.Error, ValueError):
        children = psutil.Process(server_pid).children()
        return frozenset(child.pid for child in children if _is_zombie(child))
    return frozenset()


def _is_zombie(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    return False


def kill(stubs: Iterable[Stub]) -> None:
    """End stubs that no longer work; Triton would wait for them when it unloads their model."""
    for stub in stubs:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(stub.pid)
            if process.create_time() == stub.started_s:
                process.send_signal(signal.SIGKILL)
