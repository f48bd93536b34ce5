"""A stand-in for `CaseRun` (three methods) and for the archive (one), and a worker process that runs them: for tests of
the durable work alone.

How a case behaves is told by its order's settings: see `StandInCase`. Each call leaves a line in `folder/calls.log`, so
that a test can count what was done twice.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from gateway.analyses.ledger import Ledger, workers
from gateway.analyses.ledger.turns import Turn
from gateway.analyses.worker import heart, processes, pulse, reaper
from gateway.analyses.worker.process import Parts, run_worker
from gateway.domain.analysis import Progress, Step
from gateway.operations.errors import ArchiveUnavailable, Cancelled, NoTissue, PathserveError, StateError
from gateway.operations.logging import configure_logging
from gateway.operations.settings import Settings, settings

T = TypeVar("T")

MODEL = {
    "name": "tile_encoder",
    "version": "1",
    "ready": True,
    "reason": None,
    "state": "serving",
    "folder": "tile_encoder",
    "target": "onnx",
    "precision": "fp32",
}


class StandInCase:
    """Counts batches of `batch_s` seconds in a file, as the real case appends tiles.

    settings: `batches`, `batch_s`; `fail` = typed|retryable|told-when|once|internal|self-cancelled|kill (in infer);
    `deaf` (does not heed `cancelled`); `fetch_s`, `report_s`: how long these take.
    """

    def __init__(
        self, turn: Turn, folder: Path, progress: Callable[[Progress], None], cancelled: Callable[[], bool]
    ) -> None:
        self.turn = turn
        self.folder = folder
        self.progress = progress
        self.cancelled = cancelled
        # Orders over REST carry no settings: the process's environment may.
        self.options = json.loads(os.environ.get("STANDIN_OPTIONS", "{}")) | dict(turn.order.settings)
        folder.mkdir(parents=True, exist_ok=True)

    def _log(self, line: str) -> None:
        with (self.folder / "calls.log").open("a") as out:
            out.write(line + "\n")

    def _calls(self) -> list[str]:
        return (self.folder / "calls.log").read_text().splitlines()

    async def fetch(self) -> dict[str, Any]:
        self._log("fetch")
        await self._busy("fetch_s")
        self.progress(Progress(Step.FETCH, 10, 10, "bytes"))
        return {"files": 1}

    async def infer(self) -> dict[str, Any]:
        self._log("infer")
        fail = self.options.get("fail")
        if fail == "typed":
            raise NoTissue("There is no tissue on this slide; scan it again.")
        if fail == "retryable":
            raise ArchiveUnavailable("The archive does not answer; check that it runs.")
        if fail == "told-when":
            raise ArchiveUnavailable("The archive is left alone for a moment; try again then.", after_s=0.2)
        if fail == "once" and self._calls().count("infer") == 1:
            raise ArchiveUnavailable("The archive does not answer; check that it runs.")
        if fail == "internal":
            raise RuntimeError("secret patient Mueller")
        if fail == "self-cancelled":
            raise asyncio.CancelledError
        if fail == "kill":
            os._exit(137)
        if "deaf" in self.options:
            self._log("deaf")
            await asyncio.sleep(3600)
        await asyncio.to_thread(self._batches)
        return {"batches": int(self.options.get("batches", "2"))}

    def _batches(self) -> None:
        total = int(self.options.get("batches", "2"))
        store = self.folder / "tiles.log"
        done = len(store.read_text().splitlines()) if store.exists() else 0
        for batch in range(done, total):
            if self.cancelled():
                raise Cancelled("The analysis was cancelled.")
            self._log(f"batch {batch}")
            time.sleep(float(self.options.get("batch_s", "0.02")))
            with store.open("a") as out:
                out.write(f"{batch}\n")
                out.flush()
                os.fsync(out.fileno())
            self.progress(Progress(Step.INFER, batch + 1, total, "tiles"))

    async def report(self) -> dict[str, Any]:
        self._log("report")
        await self._busy("report_s")
        artifacts = self.folder / "artifacts"
        artifacts.mkdir(exist_ok=True)
        report = {
            "analysis_id": self.folder.name,
            "revision": 1,
            "state": "preliminary",
            "issued": "2026-01-01T00:00:00+00:00",
            "signature": None,
            "amendments": [],
            "objects": [],
        }
        for name, content in (
            ("report.json", json.dumps(report)),
            ("report.html", "<!doctype html><title>report</title>"),
            ("report.sr.dcm", "DICM"),
        ):
            (artifacts / name).write_text(content)
        return {"files": 3}

    async def _busy(self, setting: str) -> None:
        until = time.monotonic() + float(self.options.get(setting, "0"))
        while time.monotonic() < until:
            if self.cancelled():
                raise Cancelled("The analysis was cancelled.")
            await asyncio.sleep(0.02)


class StandInSender:
    """Delivers by a line in `calls.log`, through the real outbox; `deliver_s` and `refuse` (dead at once) of the order.

    An archive that knows the objects of a stand-in would have to know what is in them.
    """

    def __init__(self, state: Path, ledger: Ledger, worker: str) -> None:
        self._state = state
        self._ledger = ledger
        self._worker = worker

    def attempt(self, workflow: str, stopped: Callable[[], bool]) -> None:
        outbox = self._ledger.outbox
        delivery = _patiently(lambda: outbox.begin(workflow, self._worker))
        if delivery is None:
            return
        options = dict(_patiently(lambda: self._ledger.get(delivery.analysis)).analysis.order.settings)
        with (self._state / "analyses" / delivery.analysis / "calls.log").open("a") as out:
            out.write("deliver\n")
        until = time.monotonic() + float(options.get("deliver_s", "0"))
        while time.monotonic() < until:
            if stopped():
                outbox.give_back(delivery)
                return
            time.sleep(0.02)
        if "refuse" in options:
            refusal = "The archive refused the report; see its log."
            _patiently(lambda: outbox.dead(delivery, "archive-refused", refusal))
        else:
            _patiently(lambda: outbox.delivered(delivery, 0.0))


def _patiently(use: Callable[[], T]) -> T:
    """As the real sender: what cannot be written down now is tried until it can."""
    while True:
        try:
            return use()
        except StateError:
            time.sleep(0.2)


@contextmanager
def standin_parts(settings: Settings, ledger: Ledger, worker: str) -> Iterator[Parts]:
    yield Parts(
        StandInCase,
        StandInSender(settings.state, ledger, worker).attempt,
        checks={"archive": lambda: None, "inference": lambda: None},
        models=lambda: [MODEL],
    )


def main(arguments: Sequence[str]) -> None:
    """The argument: parent pid (0 = none). The state folder comes from the environment.

    STANDIN_HOST lets the worker believe that it runs on another machine, whose processes nobody here can see;
    STANDIN_DEAD_S shortens the silence after which a worker is dead (and what depends on it).
    """
    if host := os.environ.get("STANDIN_HOST"):
        heart.this_host = processes.this_host = lambda: host
    if dead_s := float(os.environ.get("STANDIN_DEAD_S", "0")):
        reaper.DEAD_S, pulse.LOST_S, workers.LEASE_S = dead_s, 0.75 * dead_s, 0.5 * dead_s
    configure_logging("worker", folder=settings().state / "logs")
    try:
        run_worker(settings(), standin_parts, parent_pid=int(arguments[0]) or None)
    except PathserveError as error:
        sys.exit(error.detail)


if __name__ == "__main__":
    main(sys.argv[1:])
