"""Work of `pathserve analyze` in the state folder: private, gone at the end, and cleared after a kill."""

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.analyses.local import analyze, case_of, workplace
from gateway.archive import FetchedSeries, FetchProgress, SeriesEntry, no_progress
from gateway.domain.order import Order
from gateway.operations.errors import Cancelled, StateError
from gateway.operations.settings import Settings

ENTRY = SeriesEntry("1.2", "1.2.3", 1)
ORDER = Order("tissue-classification", case_of((ENTRY,)))
HOLDER = """
import sys, time
from pathlib import Path
from gateway.analyses.local import workplace
with workplace(Path(sys.argv[1]), "killed") as work:
    (work / "slides").mkdir()
    (work / "slides" / "pixels").write_bytes(b"patient")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_workplace_is_private_and_goes(tmp_path: Path) -> None:
    with workplace(tmp_path / "local", "a") as work:
        assert work.stat().st_mode & 0o777 == 0o700
        (work / "file").write_text("x")
    assert list((tmp_path / "local").iterdir()) == []


def test_what_a_kill_left_goes_at_the_next_start_and_what_is_at_work_stays(tmp_path: Path) -> None:
    local = tmp_path / "local"
    with subprocess.Popen([sys.executable, "-c", HOLDER, local], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        with workplace(local, "second"):
            assert {path.name for path in local.iterdir()} == {"killed", "second"}
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
    assert (local / "killed" / "slides" / "pixels").exists()
    with workplace(local, "third"):
        assert {path.name for path in local.iterdir()} == {"third"}


def test_a_state_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "local").write_text("")
    with pytest.raises(StateError), workplace(tmp_path / "local", "a"):
        pass


class SlowArchive:
    """An archive whose fetch lasts until it is told to stop."""

    address = "slow"

    def __init__(self) -> None:
        self.fetching = threading.Event()
        self.stopped = threading.Event()

    def probe(self) -> None: ...

    def find_series(self, study: str, series: object = (), *, cancelled: object = None) -> tuple[SeriesEntry, ...]:
        return (ENTRY,)

    def fetch(
        self,
        entry: SeriesEntry,
        cache: Path,
        *,
        wanted: object = None,
        progress: FetchProgress = no_progress,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> FetchedSeries:
        self.fetching.set()
        for _ in range(200):
            if cancelled():
                self.stopped.set()
                raise Cancelled("The analysis was cancelled.")
            time.sleep(0.05)
        return FetchedSeries(entry.study, entry.series, ())

    def store(self, files: object) -> None: ...


async def test_an_interruption_ends_the_fetch_too(tmp_path: Path) -> None:
    archive = SlowArchive()
    settings = Settings(state=tmp_path)
    task = asyncio.create_task(analyze(ORDER, archive, tmp_path / "out", settings, lambda progress: None))
    await asyncio.to_thread(archive.fetching.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(archive.stopped.wait, 2)
    assert list((tmp_path / "local").iterdir()) == []
