"""Processes forked from one that has imported what they need: the import is most of what a short one does."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gateway.cli import main

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    [
        "pytest",
        "gateway.analyses.deliveries_command",
        "gateway.analyses.doctor",
        "gateway.analyses.local",
        "gateway.analyses.models_command",
        "gateway.grpc.server",
        "gateway.http.serve",
        "gateway.operations.audit.command",
        "gateway.reports.outputs",
        "tests.analyses.standin",
        "tests.http.standin_serve",
        "tests.support.forked",
    ]
)


class Forked:
    """`sys.exit(function(arguments))` in a process of its own, with the methods of `subprocess.Popen`."""

    def __init__(
        self,
        function: Callable[[list[str]], object],
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: Path,
        out: Path,
        error: Path,
    ) -> None:
        """It works in `folder`; what it prints is appended to the files `out` and `error`."""
        out.touch()
        error.touch()
        given = (function, list(arguments), dict(environment), folder, (out, error))
        # Of those that a test may leave none keeps this process from its end.
        self._process = _processes.Process(target=_run, args=given, daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout or 0.0)
        return status

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def command(
    arguments: Sequence[str], environment: Mapping[str, str], printed: Path, timeout_s: float
) -> "subprocess.CompletedProcess[str]":
    """`pathserve …`, with two files in the folder `printed`. Raises subprocess.TimeoutExpired, and kills it then."""
    out, error = printed / "stdout", printed / "stderr"
    process = Forked(main, arguments, environment=environment, folder=Path.cwd(), out=out, error=error)
    try:
        status = process.wait(timeout_s)
    finally:
        process.kill()
        process.wait()
    return subprocess.CompletedProcess(list(arguments), status, out.read_text(), error.read_text())


def _run(
    function: Callable[[list[str]], object],
    arguments: list[str],
    environment: dict[str, str],
    folder: Path,
    printed: tuple[Path, Path],
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, path in enumerate(printed, start=1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.exit(function(arguments))
