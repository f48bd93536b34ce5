"""A state folder, its ledger, and the stand-in workers that a test runs on it."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from gateway.analyses.ledger import Ledger, Record
from gateway.domain.analysis import State
from gateway.domain.order import Order, Patient, Priority, SlideReference, Specimen
from gateway.domain.principal import DEFAULT_TENANT, Principal, PrincipalKind
from tests.analyses import standin
from tests.support.forked import Forked

CALLER = Principal("key:test", PrincipalKind.KEY, DEFAULT_TENANT, frozenset())


def order(priority: Priority = Priority.ROUTINE, **settings: str) -> Order:
    return Order(
        protocol="tissue-classification",
        priority=priority,
        specimens=(Specimen(slides=(SlideReference("1.2.3"),)),),
        patient=Patient("PID-SECRET"),
        settings=tuple(settings.items()),
    )


class Place:
    """`url` is the ledger's database; by default a SQLite file in the state folder. `run`: what its workers do."""

    run = staticmethod(standin.main)

    def __init__(self, state: Path, url: str | None = None) -> None:
        self.state = state
        self.url = url
        self.ledger = Ledger.open(url or f"sqlite:///{state / 'pathserve.db'}", state)
        self.workers: list[Forked] = []

    def worker(self, **settings: str) -> Forked:
        """Start one more. Besides settings: STANDIN_HOST (as if on another machine), STANDIN_DEAD_S."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PATHSERVE_")}
        environment |= {"PATHSERVE_STATE": str(self.state), "PATHSERVE_RETRY_DELAY_S": "0.05"}
        environment |= settings
        if self.url is not None:
            environment["PATHSERVE_DATABASE_URL"] = self.url
        process = Forked(
            self.run,
            ["0"],
            environment=environment,
            folder=self.state,
            out=self.state / "stdout",
            error=self.state / "stderr",
        )
        self.workers.append(process)
        return process

    def ready(self, count: int = 1) -> None:
        """Wait until so many workers have noted a heartbeat with all parts well."""
        self.until(lambda: sum(all(each.parts.values()) for each in self.ledger.workers.all()) >= count)

    def holder(self, analysis_id: str) -> Forked:
        """The process of the worker that has the analysis in hand."""
        found: list[Forked] = []

        def look() -> bool:
            for worker in self.ledger.workers.all():
                if analysis_id in self.ledger.runs.held_by(worker.id):
                    found[:] = [each for each in self.workers if each.pid == worker.pid]
            return bool(found)

        self.until(look)
        return found[0]

    def accept(self, priority: Priority = Priority.ROUTINE, deadline_s: float | None = None, **settings: str) -> str:
        record, _ = self.ledger.accept(order(priority, **settings), CALLER, deadline_s=deadline_s)
        return record.analysis.id

    def record(self, analysis_id: str) -> Record:
        return self.ledger.get(analysis_id)

    def reason(self, analysis_id: str) -> str | None:
        failure = self.record(analysis_id).analysis.failure
        return None if failure is None else failure.reason

    def calls(self, analysis_id: str) -> list[str]:
        path = self.state / "analyses" / analysis_id / "calls.log"
        return path.read_text().splitlines() if path.exists() else []

    def artifacts(self, analysis_id: str) -> list[str]:
        folder = self.state / "analyses" / analysis_id / "artifacts"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []

    def until(self, met: Callable[[], object], timeout_s: float = 60.0) -> None:
        limit = time.monotonic() + timeout_s
        while not met():
            assert time.monotonic() < limit, (self.state / "stderr").read_text()[-3000:]
            time.sleep(0.02)

    def called(self, analysis_id: str, line: str) -> None:
        """Wait until the case has noted this line."""
        self.until(lambda: line in self.calls(analysis_id))

    def ended(self, analysis_id: str, timeout_s: float = 60.0) -> State:
        self.until(lambda: self.record(analysis_id).analysis.state.final, timeout_s)
        return self.record(analysis_id).analysis.state

    def steps(self, analysis_id: str) -> list[tuple[str, str]]:
        return [
            (event.data["step"], event.data["status"])
            for event in self.ledger.events(analysis_id)
            if event.kind == "step"
        ]

    def final_events(self, analysis_id: str) -> list[str]:
        events = [event.data["state"] for event in self.ledger.events(analysis_id) if event.kind == "state"]
        return [state for state in events if State(state).final]

    def close(self) -> None:
        for process in self.workers:
            if process.poll() is None:
                process.kill()
            process.wait()
        self.ledger.close()
