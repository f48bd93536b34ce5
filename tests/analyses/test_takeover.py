"""Several workers on one ledger: what one leaves behind the others finish, whoever dies and whatever comes late."""

import os
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gateway.domain.analysis import State
from gateway.domain.order import Priority
from tests.analyses.place import CALLER, Place


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path, None if request.param == "sqlite" else request.getfixturevalue("postgres"))
    yield made
    made.close()


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


def kill(worker: "subprocess.Popen[bytes]") -> float:
    worker.kill()
    worker.wait()
    return time.monotonic()


def pending(place: Place) -> list[tuple[str, str]]:
    """The workflows that the engine of a SQLite place believes not to have ended."""
    with closing(sqlite3.connect(place.state / "dbos.db")) as database:
        query = "SELECT workflow_uuid, status FROM workflow_status WHERE status IN ('PENDING', 'ENQUEUED')"
        return database.execute(query).fetchall()


def test_killed_in_each_stage_the_other_worker_goes_on(place: Place) -> None:
    settings = {"fetch_s": "1.5", "batches": "60", "batch_s": "0.03", "report_s": "1.0", "deliver_s": "1.5"}
    analysis_id = place.accept(**settings)
    place.worker()
    place.worker()
    place.ready(2)
    for line in ("fetch", "batch 20", "report", "deliver"):
        place.called(analysis_id, line)
        if line == "deliver":
            [delivery] = place.ledger.outbox.of(analysis_id)
            pids = {each.id: each.pid for each in place.ledger.workers.all()}
            victim = next(each for each in place.workers if each.pid == pids[delivery.worker])
        else:
            victim = place.holder(analysis_id)
        kill(victim)
        place.worker()
    assert place.ended(analysis_id) is State.COMPLETED
    counts = Counter(place.calls(analysis_id))
    assert counts["fetch"] == counts["infer"] == counts["report"] == counts["deliver"] == 2
    assert max(counts[f"batch {number}"] for number in range(60)) <= 2
    assert sum(counts[f"batch {number}"] for number in range(60)) <= 61
    finished = Counter(step for step, status in place.steps(analysis_id) if status == "finished")
    assert finished == {"fetch": 1, "infer": 1, "report": 1, "deliver": 1}
    assert place.final_events(analysis_id) == ["completed"]
    assert place.record(analysis_id).attempts == 5


def test_a_dead_machine_is_told_by_its_silence(place: Place) -> None:
    """Nobody here can see the other machine's processes."""
    analysis_id = place.accept(batches="60", batch_s="0.03")
    first = place.worker(STANDIN_HOST="elsewhere", STANDIN_DEAD_S="4")
    place.called(analysis_id, "batch 5")
    place.worker(STANDIN_DEAD_S="4")
    place.ready(2)
    killed_s = kill(first)
    place.until(lambda: place.calls(analysis_id).count("infer") == 2)
    assert 3.0 < time.monotonic() - killed_s < 12.0
    assert place.ended(analysis_id) is State.COMPLETED


def test_a_worker_that_was_stopped_and_continued_writes_nothing_more(place: Place) -> None:
    """SIGSTOP: it does not die, it comes late."""
    analysis_id = place.accept(batches="100", batch_s="0.05")
    stopped = place.worker(STANDIN_DEAD_S="3")
    place.called(analysis_id, "batch 5")
    os.kill(stopped.pid, signal.SIGSTOP)
    place.worker(STANDIN_DEAD_S="3")
    place.until(lambda: place.calls(analysis_id).count("infer") == 2)
    place.until(lambda: place.calls(analysis_id).count("batch 40") == 1)
    before = len(place.calls(analysis_id))
    os.kill(stopped.pid, signal.SIGCONT)
    place.until(lambda: len(place.calls(analysis_id)) > before + 20)
    assert place.ended(analysis_id) is State.COMPLETED
    counts = Counter(place.calls(analysis_id))
    assert sum(counts[f"batch {number}"] for number in range(100)) <= 102
    assert (counts["report"], counts["deliver"]) == (1, 1)
    assert place.final_events(analysis_id) == ["completed"]
    # It is well again, and works on what comes next.
    place.until(lambda: len(place.ledger.workers.all()) == 2)
    kill(place.workers[1])
    assert place.ended(place.accept()) is State.COMPLETED


def test_only_the_analysis_that_kills_its_worker_is_given_up(place: Place) -> None:
    good = [place.accept(batches="30", batch_s="0.02") for _ in range(2)]
    poison = place.accept(fail="kill")
    good += [place.accept(batches="30", batch_s="0.02") for _ in range(2)]
    settings = {"PATHSERVE_INFER_LIMIT": "3", "PATHSERVE_FETCH_LIMIT": "3"}
    place.worker(**settings)

    def ended() -> bool:
        if place.workers[-1].poll() is not None:
            place.worker(**settings)
        return place.record(poison).analysis.state.final

    place.until(ended, 90)
    assert (place.record(poison).analysis.state, place.reason(poison)) == (State.FAILED, "kills-worker")
    assert place.calls(poison).count("infer") in (3, 4)  # once in company, then three times alone
    assert [place.ended(each) for each in good] == [State.COMPLETED] * 4
    assert [each.analysis for each in place.ledger.outbox.dead_letters()] == []
    assert place.artifacts(poison) == []


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"fetch_s": "30"}, "fetch"),
        ({"batches": "10000"}, "batch 3"),
        ({"report_s": "30"}, "report"),
    ],
)
def test_cancelled_in_each_stage(alone: Place, settings: dict[str, str], line: str) -> None:
    analysis_id = alone.accept(**settings)
    alone.worker()
    alone.called(analysis_id, line)
    alone.ledger.cancel(analysis_id, CALLER)
    began = time.monotonic()
    assert alone.ended(analysis_id) is State.CANCELLED
    assert time.monotonic() - began < 2.0
    alone.until(lambda: pending(alone) == [])


def test_what_is_out_of_time_ends_wherever_it_is(alone: Place) -> None:
    alone.worker(PATHSERVE_INFER_LIMIT="1", PATHSERVE_FETCH_LIMIT="1")
    alone.ready()
    running = alone.accept(deadline_s=3.0, batches="10000")
    alone.called(running, "batch 3")
    waiting = alone.accept(deadline_s=3.0, fetch_s="30")
    for analysis_id in (running, waiting):
        assert alone.ended(analysis_id) is State.FAILED
        assert alone.reason(analysis_id) == "deadline-exceeded"
    done = len(alone.calls(running))
    assert alone.ended(alone.accept()) is State.COMPLETED  # both have left their places
    assert len(alone.calls(running)) <= done + 20
    alone.until(lambda: pending(alone) == [])


def test_the_more_urgent_goes_first_through_all_queues(alone: Place) -> None:
    settings = {"PATHSERVE_INFER_LIMIT": "1", "PATHSERVE_FETCH_LIMIT": "1"}
    routine = [alone.accept(batches="5", batch_s="0.02") for _ in range(8)]
    alone.worker(**settings)
    alone.called(routine[0], "infer")
    stat = alone.accept(Priority.STAT, batches="5", batch_s="0.02")
    late = alone.accept(batches="5", batch_s="0.02")
    alone.ledger.prioritise(late, Priority.URGENT, CALLER)
    for analysis_id in (*routine, stat, late):
        assert alone.ended(analysis_id) is State.COMPLETED
    ends = sorted((*routine, stat, late), key=lambda each: alone.record(each).analysis.updated)
    assert ends.index(stat) <= 4
    assert ends.index(stat) < ends.index(late) <= 6


def test_orders_are_worked_on_by_all_workers_and_by_one_each(place: Place) -> None:
    ids = [place.accept(batches="2", batch_s="0.05") for _ in range(12)]
    place.worker()
    place.worker()
    for analysis_id in ids:
        assert place.ended(analysis_id) is State.COMPLETED
        assert Counter(place.calls(analysis_id)) == dict.fromkeys(
            ("fetch", "infer", "batch 0", "batch 1", "report", "deliver"), 1
        )
        assert place.final_events(analysis_id) == ["completed"]


def test_a_failed_one_that_is_tried_again_is_a_new_run(alone: Place) -> None:
    analysis_id = alone.accept(fail="typed")
    alone.worker()
    assert alone.ended(analysis_id) is State.FAILED
    record = alone.ledger.retry(analysis_id, CALLER)
    assert (record.run, record.analysis.state) == (2, State.ACCEPTED)
    alone.until(lambda: alone.calls(analysis_id).count("infer") == 2)
    assert alone.ended(analysis_id) is State.FAILED
    assert alone.final_events(analysis_id) == ["failed", "failed"]


def test_what_an_older_version_left_at_work_is_finished(alone: Place) -> None:
    """Its workflows bear other names: the ledger alone says what is due."""
    analysis_id = alone.accept(batches="20", batch_s="0.02")
    first = alone.worker()
    alone.called(analysis_id, "batch 5")
    kill(first)
    with closing(sqlite3.connect(alone.state / "dbos.db")) as database:
        database.execute(
            "UPDATE workflow_status SET workflow_uuid = ?, application_version = 'pathserve-analysis-1', "
            "queue_name = 'analyses' WHERE status = 'PENDING'",
            (analysis_id,),
        )
        database.commit()
    with closing(sqlite3.connect(alone.state / "pathserve.db")) as database:
        database.execute("UPDATE analyses SET worker = NULL, stage = 'fetch', attempts = 1")
        database.execute("DELETE FROM workers")
        database.commit()
    alone.worker()
    assert alone.ended(analysis_id) is State.COMPLETED
    alone.until(lambda: pending(alone) == [])


def test_nothing_is_left_in_the_queues(place: Place) -> None:
    ids = [place.accept(batches="20", batch_s="0.02") for _ in range(4)]
    first = place.worker()
    place.called(ids[0], "batch 5")
    kill(first)
    place.worker()
    for analysis_id in ids:
        assert place.ended(analysis_id) is State.COMPLETED
    if place.url is None:
        place.until(lambda: pending(place) == [])
    assert place.ledger.outbox.due(10) == ()
    assert place.ledger.runs.begun() == ()
    assert [each.pid for each in place.ledger.workers.all()] == [place.workers[-1].pid]
