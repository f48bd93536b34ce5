"""A stand-in for `CaseRun` (four methods), and a worker process that runs it: for tests of the workflow alone.

How a case behaves is told by its order's settings: see `StandInCase`. Each call leaves a line in `folder/calls.log`, so
that a test can count what was done twice.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gateway.analyses.worker import Parts, run_worker
from gateway.domain.analysis import Progress, Step
from gateway.domain.order import Order
from gateway.operations.errors import ArchiveRefused, ArchiveUnavailable, Cancelled, NoTissue, PathserveError
from gateway.operations.logging import configure_logging
from gateway.operations.settings import Settings, settings

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
    `deaf` (does not heed `cancelled`); `fail_deliver`.
    """

    def __init__(
        self,
        analysis_id: str,
        order: Order,
        folder: Path,
        progress: Callable[[Progress], None],
        cancelled: Callable[[], bool],
    ) -> None:
        self.folder = folder
        self.progress = progress
        self.cancelled = cancelled
        # Orders over REST carry no settings: the process's environment may.
        self.options = json.loads(os.environ.get("STANDIN_OPTIONS", "{}")) | dict(order.settings)
        folder.mkdir(parents=True, exist_ok=True)

    def _log(self, line: str) -> None:
        with (self.folder / "calls.log").open("a") as out:
            out.write(line + "\n")

    def _calls(self) -> list[str]:
        return (self.folder / "calls.log").read_text().splitlines()

    async def fetch(self) -> dict[str, Any]:
        self._log("fetch")
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
        artifacts = self.folder / "artifacts"
        artifacts.mkdir(exist_ok=True)
        for name, content in (
            ("report.json", json.dumps({"analysis_id": self.folder.name})),
            ("report.html", "<!doctype html><title>report</title>"),
            ("report.sr.dcm", "DICM"),
        ):
            (artifacts / name).write_text(content)
        return {"files": 3}

    async def deliver(self) -> dict[str, Any]:
        self._log("deliver")
        if "fail_deliver" in self.options:
            raise ArchiveRefused("The archive refused the report; see its log.")
        return {"stored": 1}


@contextmanager
def standin_parts(_: Settings) -> Iterator[Parts]:
    yield Parts(
        StandInCase,
        checks={"archive": lambda: None, "inference": lambda: None},
        models=lambda: [MODEL],
    )


def main() -> None:
    """argv: parent pid (0 = none), seconds to wait for the lock. The state folder comes from the environment."""
    configure_logging("worker", folder=settings().state / "logs")
    try:
        run_worker(settings(), standin_parts, parent_pid=int(sys.argv[1]) or None, lock_wait_s=float(sys.argv[2]))
    except PathserveError as error:
        sys.exit(error.detail)


if __name__ == "__main__":
    main()
