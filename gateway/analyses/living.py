"""Which workers live now, as one process sees it that answers requests; and whether the server is ready by that."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from gateway.analyses.workers import Liveness, Workers, WorkerStatus
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

    def __init__(self, workers: Workers, since: Callable[[], datetime | None] | None = None) -> None:
        """`since`: when the workers that this server brought began, None while none of them runs: an older heartbeat
        may be that of one that was killed. Without it, whatever beats lives."""
        self._workers = workers
        self._since = since
        self._liveness = Liveness()
        self._first: dict[str, int] = {}

    def __call__(self) -> tuple[WorkerStatus, ...]:
        """The workers that live now, the one that beat last first. Raises StateError."""
        found = self._workers.all()
        if self._since is not None:
            since = self._since()
            found = tuple(each for each in found if since is not None and each.beat >= since)
        silent_s = self._liveness.silent_s({each.id: each.beats for each in found})
        self._first = {each.id: self._first.get(each.id, each.beats) for each in found}
        now = datetime.now(UTC)
        return tuple(
            each
            for each in found
            # Of one that was not seen to beat yet, only the clocks can say whether it still does.
            if silent_s[each.id] <= _SILENT_S and (each.beats > self._first[each.id] or each.alive(now, _SILENT_S))
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
