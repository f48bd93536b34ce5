"""Several workers on one ledger: what one leaves behind the others finish, whoever dies and whatever comes late."""

import os
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gateway.analyses.ledger.schema import ANALYSES
from gateway.domain.analysis import State
from gateway.domain.order import Priority
from tests.analyses.place import CALLER, Place
from tests.support.forked import Forked


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path, None if request.param == "sqlite" else request.getfixturevalue("postgres"))
    yield made
    made.close()


on = pytest.mark.parametrize
on_sqlite = on("place", ["sqlite"], indirect=True)
on_postgresql = on("place", ["postgresql"], indirect=True)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A place with one worker that does one thing at a time, and runs all the time."""
    made = Place(tmp_path_factory.mktemp("narrow"))
    made.worker(PATHSERVE_INFER_LIMIT="1", PATHSERVE_FETCH_LIMIT="1")
    yield made
    made.close()


def kill(worker: Forked) -> float:
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
    # Nothing is left behind, in the queues neither.
    if place.url is None:
        place.until(lambda: pending(place) == [])
    assert place.ledger.outbox.due(10) == ()
    assert place.ledger.runs.begun() == ()
    place.until(lambda: len(place.ledger.workers.all()) == 2)


@on_sqlite
def test_a_dead_machine_is_told_by_its_silence(place: Place) -> None:
    """Nobody here can see the other machine's processes."""
    for host in ("one machine", "another machine"):
        place.worker(STANDIN_HOST=host, STANDIN_DEAD_S="4")
    place.ready(2)
    analysis_id = place.accept(batches="60", batch_s="0.03")
    place.called(analysis_id, "batch 5")
    killed_s = kill(place.holder(analysis_id))
    place.until(lambda: place.calls(analysis_id).count("infer") == 2)
    assert time.monotonic() - killed_s > 3.0
    assert place.ended(analysis_id) is State.COMPLETED


@on_postgresql
def test_a_worker_that_was_stopped_and_continued_writes_nothing_more(place: Place) -> None:
    """SIGSTOP: it does not die, it comes late."""
    for _ in range(2):
        place.worker(STANDIN_DEAD_S="3")
    place.ready(2)
    analysis_id = place.accept(batches="100", batch_s="0.05")
    place.called(analysis_id, "batch 5")
    stopped = place.holder(analysis_id)
    os.kill(stopped.pid, signal.SIGSTOP)
    place.until(lambda: place.calls(analysis_id).count("infer") == 2)
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
    kill(next(each for each in place.workers if each is not stopped))
    assert place.ended(place.accept()) is State.COMPLETED


@on_sqlite
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

    place.until(ended, 180)
    assert (place.record(poison).analysis.state, place.reason(poison)) == (State.FAILED, "kills-worker")
    assert place.calls(poison).count("infer") in (3, 4)  # once in company, then three times alone
    assert [place.ended(each) for each in good] == [State.COMPLETED] * 4
    assert [each.analysis for each in place.ledger.outbox.dead_letters()] == []
    assert place.artifacts(poison) == []


@on(
    ("settings", "line"),
    [({"fetch_s": "30"}, "fetch"), ({"batches": "10000"}, "batch 3"), ({"report_s": "30"}, "report")],
)
def test_cancelled_in_each_stage(narrow: Place, settings: dict[str, str], line: str) -> None:
    analysis_id = narrow.accept(**settings)
    narrow.called(analysis_id, line)
    narrow.ledger.cancel(analysis_id, CALLER)
    began = time.monotonic()
    assert narrow.ended(analysis_id) is State.CANCELLED
    assert time.monotonic() - began < 10.0
    narrow.until(lambda: pending(narrow) == [])


def test_what_is_out_of_time_ends_wherever_it_is(narrow: Place) -> None:
    running = narrow.accept(deadline_s=6.0, batches="10000")
    narrow.called(running, "batch 3")
    waiting = narrow.accept(deadline_s=3.0, fetch_s="30")
    for analysis_id in (running, waiting):
        assert narrow.ended(analysis_id) is State.FAILED
        assert narrow.reason(analysis_id) == "deadline-exceeded"
    done = len(narrow.calls(running))
    assert narrow.ended(narrow.accept()) is State.COMPLETED  # both have left their places
    assert len(narrow.calls(running)) <= done + 50
    narrow.until(lambda: pending(narrow) == [])


def test_the_more_urgent_goes_first_through_all_queues(narrow: Place) -> None:
    routine = [narrow.accept(batches="5", batch_s="0.05") for _ in range(8)]
    narrow.called(routine[0], "infer")
    stat = narrow.accept(Priority.STAT, batches="5", batch_s="0.05")
    late = narrow.accept(batches="5", batch_s="0.05")
    narrow.ledger.prioritise(late, Priority.URGENT, CALLER)
    for analysis_id in (*routine, stat, late):
        assert narrow.ended(analysis_id) is State.COMPLETED
    ends = sorted((*routine, stat, late), key=lambda each: narrow.record(each).analysis.updated)
    assert ends.index(stat) < ends.index(late) < ends.index(routine[-1])
    assert ends.index(stat) <= 4


def test_a_failed_one_that_is_tried_again_is_a_new_run(narrow: Place) -> None:
    analysis_id = narrow.accept(fail="typed")
    assert narrow.ended(analysis_id) is State.FAILED
    record = narrow.ledger.retry(analysis_id, CALLER)
    assert (record.run, record.analysis.state) == (2, State.ACCEPTED)
    narrow.until(lambda: narrow.calls(analysis_id).count("infer") == 2)
    assert narrow.ended(analysis_id) is State.FAILED
    assert narrow.final_events(analysis_id) == ["failed", "failed"]


@on_postgresql
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


@on_sqlite
def test_what_an_older_version_left_at_work_is_finished(place: Place) -> None:
    """Its workflows bear other names: the ledger alone says what is due."""
    analysis_id = place.accept(batches="20", batch_s="0.02")
    first = place.worker()
    place.called(analysis_id, "batch 5")
    kill(first)
    with closing(sqlite3.connect(place.state / "dbos.db")) as database:
        database.execute(
            "UPDATE workflow_status SET workflow_uuid = ?, application_version = 'pathserve-analysis-1', "
            "queue_name = 'analyses' WHERE status = 'PENDING'",
            (analysis_id,),
        )
        database.commit()
    with closing(sqlite3.connect(place.state / "pathserve.db")) as database:
        database.execute("UPDATE analyses SET worker = NULL, stage = 'fetch', attempts = 1")
        database.execute("DELETE FROM workers")
        database.commit()
    place.worker()
    assert place.ended(analysis_id) is State.COMPLETED
    place.until(lambda: pending(place) == [])


@on_sqlite
def test_who_waits_to_be_alone_is_not_taken_up_again_and_again(place: Place) -> None:
    first = place.accept(batches="350", batch_s="0.02")
    place.worker(PATHSERVE_FETCH_LIMIT="2")
    place.called(first, "batch 0")
    waits = place.accept()
    with place.ledger._write() as connection:  # as after a death of its worker
        connection.execute(ANALYSES.update().where(ANALYSES.c.id == waits).values(alone=True))
    assert [place.ended(each) for each in (first, waits)] == [State.COMPLETED] * 2
    assert place.calls(waits).count("fetch") == 1
    logged = "".join(each.read_text() for each in (place.state / "logs").glob("*.jsonl"))
    assert "taken up again" not in logged


@on_sqlite
def test_workflows_that_ended_long_ago_are_forgotten(place: Place) -> None:
    def known() -> int:
        with closing(sqlite3.connect(place.state / "dbos.db")) as database:
            return int(database.execute("SELECT count(*) FROM workflow_status").fetchone()[0])

    place.worker()
    assert place.ended(place.accept()) is State.COMPLETED
    place.workers[-1].terminate()
    place.workers[-1].wait()
    assert known() == 3  # fetch, infer, deliver
    with closing(sqlite3.connect(place.state / "dbos.db")) as database:
        older = "UPDATE workflow_status SET created_at = created_at - 2 * 86400000 WHERE workflow_uuid LIKE '%infer'"
        database.execute(older)
        database.commit()
    place.worker()
    place.until(lambda: known() == 2)
    assert place.ended(place.accept()) is State.COMPLETED
