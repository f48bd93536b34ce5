"""Heartbeats are counted, silence is seen by the observer's own clock, and a lease has one holder."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from gateway.analyses.ledger import Ledger
from gateway.analyses.ledger.schema import WORKERS
from gateway.analyses.ledger.workers import LEASE_S, WATCH_S, Liveness, Workers


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    url = f"sqlite:///{tmp_path / 'pathserve.db'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres")
    opened = Ledger.open(url, tmp_path)
    yield opened
    opened.close()


def workers_of(ledger: Ledger, clock: Clock) -> Workers:
    """The workers as one more process sees them."""
    return Workers(ledger._read, ledger._write, clock)


def beat(workers: Workers, worker: str, **more: Any) -> None:
    values = {"started": datetime.now(UTC), "host": "h", "pid": 7, "parts": {}, "models": []} | more
    workers.beat(worker, **values)


def test_heartbeats_are_counted(ledger: Ledger) -> None:
    assert ledger.workers.all() == ()
    models = [{"name": "m", "ready": True}]
    for ready in (False, True):
        beat(ledger.workers, "w", parts={"archive": ready}, models=models)
    beat(ledger.workers, "v")
    last, first = ledger.workers.all()
    assert (last.id, last.beats) == ("v", 1)
    assert (first.id, first.beats, first.host, first.pid) == ("w", 2, "h", 7)
    assert (first.parts, first.models) == ({"archive": True}, models)
    assert first.alive(datetime.now(UTC))
    assert not first.alive(datetime.now(UTC) + timedelta(seconds=11))
    ledger.workers.leave("w")
    assert [each.id for each in ledger.workers.all()] == ["v"]


def test_silence_is_seen_by_the_observers_clock(ledger: Ledger, clock: Clock) -> None:
    """A worker whose wall clock is a year off lives like any other."""
    observer = Liveness(clock=clock)

    def silent_s() -> dict[str, float]:
        return observer.silent_s({each.id: each.beats for each in ledger.workers.all()})

    beat(ledger.workers, "lives")
    beat(ledger.workers, "dies")
    assert silent_s() == {"lives": 0.0, "dies": 0.0}
    with ledger._engine.begin() as connection:
        connection.execute(WORKERS.update().values(beat=datetime.now(UTC) - timedelta(days=365)))
    clock.now_s += 15.0
    beat(ledger.workers, "lives")
    beat(ledger.workers, "comes")
    assert silent_s() == {"lives": 0.0, "dies": 15.0, "comes": 0.0}
    clock.now_s += 10.0
    ledger.workers.leave("comes")
    assert silent_s() == {"lives": 10.0, "dies": 25.0}
    beat(ledger.workers, "dies")
    assert silent_s() == {"lives": 10.0, "dies": 0.0}


def test_an_observer_that_could_not_look_has_seen_no_silence(clock: Clock) -> None:
    observer = Liveness(gap_s=3.0, clock=clock)
    assert observer.silent_s({"w": 1}) == {"w": 0.0}
    for _ in range(4):
        clock.now_s += 2.0
        found = observer.silent_s({"w": 1})
    assert found == {"w": 8.0}
    clock.now_s += 600.0
    assert observer.silent_s({"w": 1}) == {"w": 11.0}
    clock.now_s += 600.0
    assert observer.silent_s({"w": 2}) == {"w": 0.0}


def test_a_lease_has_one_holder_until_it_falls_silent(ledger: Ledger, clock: Clock) -> None:
    one, other, third = (workers_of(ledger, clock) for _ in range(3))
    assert one.lease("reaper", "one")
    assert not other.lease("reaper", "other")
    assert other.lease("something else", "other")
    for _ in range(20):
        clock.now_s += 2.0
        assert one.lease("reaper", "one")
        assert not other.lease("reaper", "other")
    taken = []
    for _ in range(int(LEASE_S)):
        clock.now_s += 2.0
        taken.append(other.lease("reaper", "other"))
    assert taken == [False] * 5 + [True] * 5
    # The one that was silent comes too late, and one that has just come begins to watch.
    assert not one.lease("reaper", "one")
    clock.now_s += 2 * LEASE_S
    assert not third.lease("reaper", "third")
    other.leave("other")
    assert third.lease("reaper", "third")


def test_a_lease_does_not_pass_on_while_nobody_could_renew_it(ledger: Ledger, clock: Clock) -> None:
    one, other = workers_of(ledger, clock), workers_of(ledger, clock)
    assert one.lease("reaper", "one")
    assert not other.lease("reaper", "other")
    clock.now_s += 60.0
    assert WATCH_S < LEASE_S
    assert not other.lease("reaper", "other")
    assert one.lease("reaper", "one")


def test_one_of_many_takes_a_lease(ledger: Ledger) -> None:
    for round_ in range(10):
        with ThreadPoolExecutor(4) as pool:
            held = list(pool.map(lambda n, name=f"lease-{round_}": ledger.workers.lease(name, f"w{n}"), range(4)))
        assert held.count(True) == 1
    with ledger._engine.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM leases WHERE beats = 1")).scalar() == 10
