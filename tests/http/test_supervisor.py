"""The supervisor alone: a worker that cannot be started yet, and one that does not want to end."""

import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.http import supervisor
from gateway.http.supervisor import Supervisor


def test_a_worker_that_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    program = tmp_path / "worker"
    supervised = Supervisor([str(program)], os.environ)
    supervised.start()
    try:
        time.sleep(0.2)
        assert supervised.pids == ()
        (tmp_path / "made").write_text("#!/bin/sh\nexec sleep 60\n")
        (tmp_path / "made").chmod(0o700)
        (tmp_path / "made").rename(program)
        until = time.monotonic() + 10
        while not supervised.pids:
            assert time.monotonic() < until
            time.sleep(0.02)
    finally:
        supervised.terminate()
        supervised.join()


def test_the_time_to_end_counts_from_the_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "STOP_S", 3.0)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    supervised = Supervisor([sys.executable, "-c", deaf], os.environ)
    supervised.start()
    time.sleep(1.0)
    began = time.monotonic()
    supervised.terminate()
    time.sleep(2.8)  # as the open connections of the server may take
    supervised.terminate()
    supervised.join()
    assert time.monotonic() - began < 5.5
    assert supervised.pids == ()


def test_since_when_the_worker_runs() -> None:
    supervised = Supervisor([sys.executable, "-c", "import time; time.sleep(60)"], os.environ)
    assert supervised.since is None
    began = datetime.now(UTC)
    supervised.start()
    try:
        first = until_running(supervised)
        assert first >= began
        os.kill(supervised.pids[0], signal.SIGKILL)
        until = time.monotonic() + 10
        while supervised.since == first:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert supervised.since is None  # known at once, not when its heartbeat is old
        second = until_running(supervised)
        assert second > first
    finally:
        supervised.terminate()
        supervised.join()


def test_several_workers_are_kept_apart_from_each_other() -> None:
    supervised = Supervisor([sys.executable, "-c", "import time; time.sleep(60)"], os.environ, 3)
    supervised.start()
    try:
        until = time.monotonic() + 10
        while len(supervised.pids) < 3:
            assert time.monotonic() < until
            time.sleep(0.02)
        before = supervised.pids
        os.kill(before[1], signal.SIGKILL)
        while len(supervised.pids) < 3 or supervised.pids == before:
            assert time.monotonic() < until
            time.sleep(0.02)
        assert (supervised.pids[0], supervised.pids[2]) == (before[0], before[2])
    finally:
        supervised.terminate()
        supervised.join()
    assert supervised.pids == ()


def until_running(supervised: Supervisor) -> datetime:
    until = time.monotonic() + 10
    while (since := supervised.since) is None:
        assert time.monotonic() < until
        time.sleep(0.02)
    return since
