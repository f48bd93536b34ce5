"""Which workers live, and which of them does what only one may do.

Nobody's wall clock decides who lives: a worker counts its heartbeats, and whoever looks notes by its own monotonic
clock for how long a count has not moved.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from gateway.analyses.ledger.choices import Transaction
from gateway.analyses.ledger.schema import LEASES, WORKERS

LEASE_S = 10.0
"""How long a holder's silence is watched before another takes its lease."""
WATCH_S = 3.0
"""The most that counts as watched between two calls."""

_FIRST_LEASE = sa.text("INSERT INTO leases (name, holder, beats) VALUES (:name, :holder, 1) ON CONFLICT DO NOTHING")


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A worker's last heartbeat. `parts`: what it last found of them; `models`: the versions that it knows."""

    id: str
    started: datetime
    beat: datetime
    beats: int
    host: str
    pid: int
    parts: Mapping[str, bool]
    models: Sequence[Mapping[str, Any]]

    def alive(self, now: datetime, within_s: float = 10.0) -> bool:
        """By the wall clock, for whoever looks once only; who looks again and again asks a `Liveness`."""
        return (now - self.beat).total_seconds() <= within_s


class Liveness:
    """For how long counters have stood still, as one observer saw them. Thread-safe.

    Between two looks at most `gap_s` are counted: an observer that stood still itself, or could not look (the database
    was down), has seen nobody's silence. Who decides by it looks more often than that.
    """

    def __init__(self, gap_s: float = float("inf"), clock: Callable[[], float] = time.monotonic) -> None:
        self._gap_s = gap_s
        self._clock = clock
        self._lock = threading.Lock()
        self._looked_s = clock()
        self._seen: dict[str, tuple[object, float]] = {}

    def silent_s(self, counters: Mapping[str, object]) -> dict[str, float]:
        """Seconds since each was seen to move, 0 at first sight. What is not among the counters is forgotten."""
        with self._lock:
            now = self._clock()
            passed, self._looked_s = min(now - self._looked_s, self._gap_s), now
            before, self._seen = self._seen, {}
            for name, count in counters.items():
                known, silent_s = before.get(name, (None, 0.0))
                self._seen[name] = (count, silent_s + passed if known == count else 0.0)
            return {name: silent_s for name, (_, silent_s) in self._seen.items()}


class Workers:
    """The tables of heartbeats and leases. Every method is one transaction of the ledger that it belongs to."""

    def __init__(self, read: Transaction, write: Transaction, clock: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._write = write
        self._clock = clock
        self._holders: dict[str, Liveness] = {}

    def beat(
        self,
        worker: str,
        *,
        started: datetime,
        host: str,
        pid: int,
        parts: Mapping[str, bool],
        models: Sequence[Mapping[str, Any]],
    ) -> None:
        """Write a heartbeat down, and count it."""
        values = {
            "started": started,
            "beat": datetime.now(UTC),
            "host": host,
            "pid": pid,
            "parts": dict(parts),
            "models": [dict(each) for each in models],
        }
        with self._write() as connection:
            counted = connection.execute(
                WORKERS.update().where(WORKERS.c.id == worker).values(**values, beats=WORKERS.c.beats + 1)
            ).rowcount
            if counted == 0:
                connection.execute(WORKERS.insert().values(id=worker, beats=1, **values))

    def leave(self, worker: str) -> None:
        """Take a worker and its leases away: it ended in good order, or what it left has been taken over."""
        with self._write() as connection:
            connection.execute(WORKERS.delete().where(WORKERS.c.id == worker))
            connection.execute(LEASES.delete().where(LEASES.c.holder == worker))

    def all(self) -> tuple[WorkerStatus, ...]:
        """Every worker that has not left, dead ones among them; the one that beat last comes first."""
        with self._read() as connection:
            rows = connection.execute(sa.select(WORKERS).order_by(WORKERS.c.beat.desc(), WORKERS.c.id)).all()
        return tuple(
            WorkerStatus(
                id=row.id,
                started=row.started,
                beat=row.beat,
                beats=row.beats,
                host=row.host,
                pid=row.pid,
                parts=row.parts,
                models=row.models,
            )
            for row in rows
        )

    def latest(self) -> WorkerStatus | None:
        """The worker that beat last."""
        return next(iter(self.all()), None)

    def lease(self, name: str, holder: str) -> bool:
        """Take the lease, or renew it, and say whether it is the holder's now. Call it every second or two.

        It passes on where its holder has not renewed it for LEASE_S of this process's monotonic clock.
        """
        with self._write() as connection:
            row = connection.execute(sa.select(LEASES).where(LEASES.c.name == name).with_for_update()).first()
            if row is None:
                # Two may be here at once: the first has it.
                return connection.execute(_FIRST_LEASE, {"name": name, "holder": holder}).rowcount == 1
            watched = self._holders.setdefault(name, Liveness(WATCH_S, self._clock))
            silent_s = watched.silent_s({row.holder: row.beats})[row.holder]
            if row.holder != holder and silent_s <= LEASE_S:
                return False
            connection.execute(LEASES.update().where(LEASES.c.name == name).values(holder=holder, beats=row.beats + 1))
            return True
