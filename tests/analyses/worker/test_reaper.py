"""The reaper with clocks of the test's own, and what a worker believes of itself."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from dbos import WorkflowStatus

from gateway.analyses.ledger import Ledger
from gateway.analyses.worker.gate import Gate
from gateway.analyses.worker.processes import is_gone, new_worker_id, this_host
from gateway.analyses.worker.pulse import LOST_S, Pulse
from gateway.analyses.worker.reaper import Clock, Reaper
from gateway.domain.analysis import State
from tests.analyses.place import CALLER, order

ME, OTHER = "me", "other"


@dataclass
class Hands:
    """Two clocks that a test turns."""

    wall_s: float = 1_000_000.0
    monotonic_s: float = 0.0

    def pass_by(self, seconds: float) -> None:
        self.wall_s += seconds
        self.monotonic_s += seconds

    def clock(self) -> Clock:
        return Clock(lambda: self.wall_s, lambda: self.monotonic_s)


@dataclass
class NoWorkflows:
    """In place of the engine: there is nothing in any queue."""

    ends: list[str] = field(default_factory=list)

    def pending(self) -> tuple[WorkflowStatus, ...]:
        return ()

    def prune(self) -> None:
        pass

    def note_end(self, analysis_id: str) -> None:
        self.ends.append(analysis_id)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(f"sqlite:///{tmp_path / 'p.db'}", tmp_path)
    yield opened
    opened.close()


def beat(ledger: Ledger, worker: str, host: str = "another machine", pid: int = 1) -> None:
    ledger.workers.beat(worker, started=datetime.now(UTC), host=host, pid=pid, parts={}, models=[])


def begun(ledger: Ledger, worker: str, deadline_s: float = 3600.0) -> str:
    analysis_id = ledger.accept(order(), CALLER, deadline_s=deadline_s)[0].analysis.id
    assert ledger.runs.begin(f"{analysis_id}.1.fetch", worker) is not None
    return analysis_id


def ids(ledger: Ledger) -> set[str]:
    return {each.id for each in ledger.workers.all()}


def reaper_of(ledger: Ledger, hands: Hands, engine: NoWorkflows | None = None) -> Reaper:
    return Reaper(ledger, engine or NoWorkflows(), ME, hands.clock())  # type: ignore[arg-type]


def test_a_worker_is_dead_after_twenty_seconds_of_silence(ledger: Ledger) -> None:
    hands = Hands()
    reaper = reaper_of(ledger, hands)
    beat(ledger, ME)
    beat(ledger, OTHER)
    analysis_id = begun(ledger, OTHER)
    for _ in range(20):
        reaper.tick()
        hands.pass_by(1.0)
    assert (ids(ledger), reaper.living) == ({ME, OTHER}, 2)
    hands.pass_by(1.0)
    reaper.tick()
    assert (ids(ledger), reaper.living, reaper.elected) == ({ME}, 1, True)
    assert [each.workflow for each in ledger.runs.begun()] == [f"{analysis_id}.1.fetch"]


def test_a_reaper_that_stood_still_itself_has_seen_nobodys_silence(ledger: Ledger) -> None:
    hands = Hands()
    reaper = reaper_of(ledger, hands)
    beat(ledger, ME)
    beat(ledger, OTHER)
    reaper.tick()
    hands.pass_by(600.0)  # stopped, or its database was away
    reaper.tick()
    assert ids(ledger) == {ME, OTHER}


@pytest.mark.parametrize("jump_s", [-7200.0, 7200.0])
def test_a_jump_of_the_wall_clock_kills_nobody_and_ends_nothing(ledger: Ledger, jump_s: float) -> None:
    hands, engine = Hands(), NoWorkflows()
    reaper = reaper_of(ledger, hands, engine)
    beat(ledger, ME)
    beat(ledger, OTHER)
    analysis_id = begun(ledger, OTHER)
    before = ledger.get(analysis_id).deadline
    assert before is not None
    reaper.tick()
    hands.wall_s += jump_s
    hands.pass_by(1.0)
    reaper.tick()
    assert ledger.get(analysis_id).deadline == before + timedelta(seconds=jump_s)
    assert ids(ledger) == {ME, OTHER}
    hands.pass_by(1.0)
    reaper.tick()
    assert ledger.get(analysis_id).deadline == before + timedelta(seconds=jump_s)


def test_what_is_out_of_time_is_ended_by_the_one_that_is_elected(ledger: Ledger) -> None:
    hands, engine = Hands(), NoWorkflows()
    reaper = reaper_of(ledger, hands, engine)
    beat(ledger, ME)
    assert ledger.workers.lease("reaper", OTHER)
    analysis_id = begun(ledger, ME, deadline_s=-1.0)
    reaper.tick()
    assert (reaper.elected, engine.ends) == (False, [])
    ledger.workers.leave(OTHER)
    reaper.tick()
    assert (reaper.elected, engine.ends) == (True, [analysis_id])
    assert ledger.get(analysis_id).analysis.state is State.FAILED


def test_a_process_of_this_machine_that_is_gone_is_dead_at_once_whoever_is_elected(ledger: Ledger) -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        process.wait()
    beat(ledger, ME)
    beat(ledger, OTHER, this_host(), process.pid)
    assert ledger.workers.lease("reaper", OTHER)
    analysis_id = begun(ledger, OTHER)
    reaper = reaper_of(ledger, Hands())
    reaper.tick()
    assert (ids(ledger), reaper.elected) == ({ME}, True)
    assert [each.workflow for each in ledger.runs.begun()] == [f"{analysis_id}.1.fetch"]


def test_which_processes_are_surely_gone() -> None:
    assert not is_gone(this_host(), os.getpid())
    assert not is_gone("another machine", 2**22 + 1)
    assert is_gone(this_host(), 2**22 + 1)
    assert new_worker_id() != new_worker_id()


def test_a_silence_of_ones_own_is_remembered() -> None:
    hands = Hands()
    pulse = Pulse(lambda: hands.monotonic_s)
    pulse.written()
    hands.pass_by(LOST_S)
    pulse.written()
    assert pulse.silences() == 0
    hands.pass_by(LOST_S + 1.0)
    assert pulse.silences() == 1  # known before the heart beats again
    pulse.written()
    assert pulse.silences() == 1


def test_who_is_to_be_alone_waits_for_the_others_and_keeps_them_out() -> None:
    gate, order_of_work = Gate(), []

    async def work(name: str, alone: bool, seconds: float) -> None:
        async with gate.entered(alone):
            order_of_work.append(f"{name} in")
            await asyncio.sleep(seconds)
            order_of_work.append(f"{name} out")

    async def run() -> None:
        first = [asyncio.create_task(work(name, False, 0.2)) for name in ("a", "b")]
        await asyncio.sleep(0.05)
        poison = asyncio.create_task(work("poison", True, 0.2))
        await asyncio.sleep(0.05)
        late = asyncio.create_task(work("late", False, 0.0))
        await asyncio.gather(*first, poison, late)

    asyncio.run(run())
    assert order_of_work == ["a in", "b in", "a out", "b out", "poison in", "poison out", "late in", "late out"]
