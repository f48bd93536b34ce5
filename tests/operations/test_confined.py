"""A program that reads foreign files has no network, bounded memory and time, and nothing of our environment."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from gateway.operations.confined import run_confined

ROOM = 512 * 2**20


def python(code: str, timeout_s: float = 30) -> "subprocess.CompletedProcess[str]":
    return run_confined(
        [sys.executable, "-I", "-c", code], timeout_s=timeout_s, memory_bytes=ROOM, environment={"LANG": "C.UTF-8"}
    )


def test_it_gives_status_and_words() -> None:
    done = python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)")
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")


def test_it_cannot_reach_what_we_can() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        connect = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 5)"
        assert subprocess.run([sys.executable, "-c", connect], check=False).returncode == 0
        done = python(connect)
    assert done.returncode == 1
    assert "Network is unreachable" in done.stderr


def test_its_memory_is_bounded() -> None:
    done = python(f"b = bytearray({2 * ROOM})")
    assert done.returncode == 1
    assert "MemoryError" in done.stderr


def test_its_time_is_bounded() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        python("import time; time.sleep(60)", timeout_s=0.5)


def test_it_sees_nothing_of_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATHSERVE_API_KEY", "secret")
    assert python("import os; print(os.environ.get('PATHSERVE_API_KEY'))").stdout == "None\n"


def test_it_dies_with_us(tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    child = f"import os, pathlib, time; pathlib.Path({str(noted)!r}).write_text(str(os.getpid())); time.sleep(60)"
    ours = (
        "import sys; from gateway.operations.confined import run_confined;"
        f"run_confined([sys.executable, '-c', {child!r}], timeout_s=60, memory_bytes={ROOM}, environment={{}})"
    )
    with subprocess.Popen([sys.executable, "-c", ours]) as we:
        assert until(lambda: noted.exists() and noted.read_text() != "")
        process = psutil.Process(int(noted.read_text()))
        we.kill()
    assert until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)


def until(happened: Callable[[], bool]) -> bool:
    """True once it has happened, False where it does not within 10 s."""
    end = time.monotonic() + 10
    while not happened():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
