"""Which workers live now, as one process sees it that answers requests; and whether the server is ready by that."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from gateway.analyses.ledger.workers import Liveness, Workers, WorkerStatus
from gateway.analyses.worker.processes import is_gone
from gateway.operations.errors import PathserveError

_SILENT_S = 10.0


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether an order would be worked on now, and which part is missing.

    `refused` names the models that should serve and may not, a later version as `NAME-vVERSION`.
    """

    ready: bool
    parts: Mapping[str, bool]
    refused: tuple[str, ...]


class LivingWorkers:
    """Looks at the heartbeats. Thread-safe."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._since = datetime.now(UTC)
        self._liveness = Liveness()
        self._first: dict[str, int] = {}

    def __call__(self) -> tuple[WorkerStatus, ...]:
        """The workers that live now, the one that beat last first. Raises StateError."""
        # Of this machine's, it is known at once that one has ended.
        found = [each for each in self._workers.all() if not is_gone(each.host, each.pid)]
        silent_s = self._liveness.silent_s({each.id: each.beats for each in found})
        first = self._first = {each.id: self._first.get(each.id, each.beats) for each in found}
        now = datetime.now(UTC)
        return tuple(
            each
            for each in found
            # Of one that was not seen to beat yet, only the clocks can say whether it still does.
            if silent_s[each.id] <= _SILENT_S
            and (each.beats > first[each.id] or (each.beat >= self._since and each.alive(now, _SILENT_S)))
        )

    def readiness(self) -> Readiness:
        """Ready where one worker has all its parts; else what the one lacks that has most of them."""
        parts = {"database": False, "worker": False, "inference": False, "archive": False}
        refused: tuple[str, ...] = ()
        try:
            workers = self()
            parts["database"] = True
            if workers:
                best = max(workers, key=lambda each: sum(map(bool, each.parts.values())))
                parts |= {"worker": True} | {name: bool(passes) for name, passes in best.parts.items()}
                refused = tuple(sorted(str(each["folder"]) for each in best.models if each.get("state") == "refused"))
        except PathserveError:
            pass  # the parts say it; why is in the log
        return Readiness(all(parts.values()), parts, refused)
