"""The durable workflow in real worker processes (with the stand-in case): ends once, resumes, cancels, gives up."""

import os
import signal
import socket
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest

from gateway.domain.analysis import State
from gateway.operations.errors import Conflict
from tests.analyses.place import CALLER, Place


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def working(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A place with one worker that runs all the time."""
    made = Place(tmp_path_factory.mktemp("working"))
    made.worker(PATHSERVE_RETRY_ATTEMPTS="3", PATHSERVE_INFER_LIMIT="3")
    yield made
    made.close()


def test_an_analysis_goes_through_its_steps_once(working: Place) -> None:
    analysis_id = working.accept()
    assert working.ended(analysis_id) is State.COMPLETED
    assert working.calls(analysis_id) == ["fetch", "infer", "batch 0", "batch 1", "report", "deliver"]
    steps = [
        (event.data["step"], event.data["status"])
        for event in working.ledger.events(analysis_id)
        if event.kind == "step"
    ]
    assert steps == [
        (step, status) for step in ("fetch", "infer", "report", "deliver") for status in ("started", "finished")
    ]
    assert working.final_events(analysis_id) == ["completed"]


def test_a_typed_error_ends_the_analysis_with_its_reason(working: Place) -> None:
    analysis_id = working.accept(fail="typed")
    assert working.ended(analysis_id) is State.FAILED
    failure = working.record(analysis_id).analysis.failure
    assert failure is not None
    assert (failure.reason, failure.detail) == ("no-tissue", "There is no tissue on this slide; scan it again.")
    assert working.calls(analysis_id) == ["fetch", "infer"]


def test_a_report_that_the_archive_refuses_is_there_all_the_same(working: Place) -> None:
    analysis_id = working.accept(refuse="yes")
    assert working.ended(analysis_id) is State.COMPLETED
    assert [each.state.value for each in working.ledger.outbox.of(analysis_id)] == ["dead"]
    assert "report.json" in working.artifacts(analysis_id)


def test_a_passing_error_is_tried_again_a_bounded_number_of_times(working: Place) -> None:
    analysis_id = working.accept(fail="retryable")
    assert working.ended(analysis_id) is State.FAILED
    failure = working.record(analysis_id).analysis.failure
    assert failure is not None
    assert failure.reason == "archive-unavailable"
    assert working.calls(analysis_id) == ["fetch", "infer", "infer", "infer"]


def test_an_archive_that_says_when_it_may_be_asked_is_asked_once_more_then(working: Place) -> None:
    analysis_id = working.accept(fail="told-when")
    assert working.ended(analysis_id) is State.FAILED
    assert working.calls(analysis_id) == ["fetch"] + 4 * ["infer"]


def test_an_error_that_passes_does_not_fail_the_analysis(working: Place) -> None:
    analysis_id = working.accept(fail="once")
    assert working.ended(analysis_id) is State.COMPLETED
    assert working.calls(analysis_id).count("infer") == 2


def test_an_unexpected_error_says_nothing_of_the_patient(working: Place) -> None:
    analysis_id = working.accept(fail="internal")
    assert working.ended(analysis_id) is State.FAILED
    failure = working.record(analysis_id).analysis.failure
    assert failure is not None
    assert failure.reason == "internal"
    working.until(lambda: analysis_id in (working.state / "logs" / "worker.jsonl").read_text())
    logs = (working.state / "stderr").read_text() + (working.state / "logs" / "worker.jsonl").read_text()
    assert '"type": "RuntimeError"' in logs
    assert "standin.py" in logs
    assert "Mueller" not in logs + failure.detail
    assert "PID-SECRET" not in logs


def test_a_step_that_cancels_itself_does_not_hang(working: Place) -> None:
    analysis_id = working.accept(fail="self-cancelled")
    assert working.ended(analysis_id) is State.FAILED


def test_a_running_analysis_is_cancelled_in_the_midst_of_its_batches(working: Place) -> None:
    analysis_id = working.accept(batches="10000")
    working.until(lambda: "batch 3" in working.calls(analysis_id))
    working.ledger.cancel(analysis_id, CALLER)
    began = time.monotonic()
    assert working.ended(analysis_id) is State.CANCELLED
    assert time.monotonic() - began < 10.0
    assert working.artifacts(analysis_id) == []


def test_a_step_that_does_not_heed_the_cancellation_is_cancelled_all_the_same(working: Place) -> None:
    analysis_id = working.accept(deaf="yes")
    working.until(lambda: "deaf" in working.calls(analysis_id))
    working.ledger.cancel(analysis_id, CALLER)
    assert working.ended(analysis_id) is State.CANCELLED


def test_a_cancellation_that_races_with_the_end_leaves_one_truth(working: Place) -> None:
    ids = [working.accept(batch_s="0.005") for _ in range(15)]
    refused: set[str] = set()

    def cancel(analysis_id: str, index: int) -> None:
        if index % 3 == 0:
            working.until(lambda: "report" in working.calls(analysis_id))
        else:
            time.sleep(0.1 * index)
        try:
            working.ledger.cancel(analysis_id, CALLER)
        except Conflict:
            refused.add(analysis_id)

    threads = [threading.Thread(target=cancel, args=(each, index)) for index, each in enumerate(ids)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ends = Counter(working.ended(analysis_id) for analysis_id in ids)
    assert ends.keys() <= {State.COMPLETED, State.CANCELLED}
    for analysis_id in ids:
        state = working.record(analysis_id).analysis.state
        assert working.final_events(analysis_id) == [state.value]
        assert (state is State.COMPLETED) == (analysis_id in refused)
        assert (state is State.COMPLETED) == ("deliver" in working.calls(analysis_id))
        if state is State.CANCELLED:
            working.until(lambda analysis_id=analysis_id: working.artifacts(analysis_id) == [])


def test_the_engine_stores_json_only_and_talks_to_nobody(working: Place) -> None:
    working.ended(working.accept())
    with closing(sqlite3.connect(working.state / "dbos.db")) as database:
        kinds = {row[0] for row in database.execute("SELECT DISTINCT serialization FROM workflow_status")}
        executors = {row[0] for row in database.execute("SELECT DISTINCT executor_id FROM workflow_status")}
        versions = {row[0] for row in database.execute("SELECT DISTINCT application_version FROM workflow_status")}
    assert kinds == {"portable_json"}
    assert executors - {None} == {worker.id for worker in working.ledger.workers.all()}
    assert versions == {"pathserve-analysis-2"}
    sockets = psutil.Process(working.workers[0].pid).net_connections(kind="inet")
    assert [each for each in sockets if each.type == socket.SOCK_STREAM] == []


def test_kill_9_in_the_middle_goes_on_after_the_last_batch(place: Place) -> None:
    analysis_id = place.accept(batches="40", batch_s="0.02")
    first = place.worker()
    place.until(lambda: "batch 10" in place.calls(analysis_id))
    first.kill()
    first.wait()
    assert place.record(analysis_id).analysis.state is State.RUNNING
    place.worker()
    assert place.ended(analysis_id) is State.COMPLETED
    counts = Counter(place.calls(analysis_id))
    assert (counts["fetch"], counts["infer"], counts["report"], counts["deliver"]) == (1, 2, 1, 1)
    assert sorted(counts[f"batch {n}"] for n in range(40))[-2:] in ([1, 1], [1, 2])
    assert place.final_events(analysis_id) == ["completed"]


def test_sigterm_leaves_the_analysis_resumable(place: Place) -> None:
    analysis_id = place.accept(batches="60", batch_s="0.02")
    # The second stop is of a recovered run, which the engine starts another way.
    for reached in (3, 20):
        worker = place.worker()
        place.until(lambda reached=reached: f"batch {reached}" in place.calls(analysis_id))
        began = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(15) == 0
        assert time.monotonic() - began < 10.0
        record = place.record(analysis_id)
        assert record.analysis.state is State.RUNNING
        assert place.ledger.workers.all() == ()
    place.worker()
    assert place.ended(analysis_id) is State.COMPLETED
    assert Counter(place.calls(analysis_id)).items() >= {"fetch": 1, "infer": 3, "report": 1, "deliver": 1}.items()


@contextmanager
def disk_full(database: Path, table: str, statement: str) -> Iterator[None]:
    """Every such statement on a table fails with the words that SQLite has for a full disk."""
    with closing(sqlite3.connect(database, timeout=10)) as connection:
        connection.execute(
            f"CREATE TRIGGER full BEFORE {statement} ON {table} BEGIN "
            "SELECT RAISE(ABORT, 'database or disk is full'); END"
        )
        connection.commit()
        yield
        connection.execute("DROP TRIGGER full")
        connection.commit()


@pytest.mark.parametrize(
    ("file", "table", "statement"),
    [
        ("pathserve.db", "events", "INSERT"),
        ("pathserve.db", "analyses", "UPDATE"),
        ("dbos.db", "operation_outputs", "INSERT"),
    ],
)
def test_a_database_that_is_full_for_a_while_costs_no_analysis(
    place: Place, file: str, table: str, statement: str
) -> None:
    analysis_id = place.accept(batches="30", batch_s="0.02")
    place.worker()
    place.until(lambda: "batch 5" in place.calls(analysis_id))
    with disk_full(place.state / file, table, statement):
        place.until(lambda: "batch 29" in place.calls(analysis_id))
        time.sleep(1.2)  # the end of the step meets it, and tries again
        assert place.record(analysis_id).analysis.state is State.RUNNING
    assert place.ended(analysis_id) is State.COMPLETED
    counts = Counter(place.calls(analysis_id))
    assert (counts["fetch"], counts["report"], counts["deliver"]) == (1, 1, 1)
    assert max(counts[f"batch {number}"] for number in range(30)) == 1
    assert place.final_events(analysis_id) == ["completed"]


def test_sigterm_while_the_ledger_is_full_leaves_the_analysis_resumable(place: Place) -> None:
    analysis_id = place.accept(batches="5", batch_s="0.02")
    worker = place.worker()
    place.until(lambda: "batch 1" in place.calls(analysis_id))
    with disk_full(place.state / "pathserve.db", "analyses", "UPDATE"):
        place.until(lambda: "batch 4" in place.calls(analysis_id))
        time.sleep(0.5)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(15) == 0
    place.worker()
    assert place.ended(analysis_id) is State.COMPLETED


def test_a_workflow_database_that_is_none_is_a_clear_error_and_costs_no_analysis(place: Place) -> None:
    analysis_id = place.accept(batches="60", batch_s="0.02")
    worker = place.worker()
    place.until(lambda: "batch 3" in place.calls(analysis_id))
    worker.kill()
    worker.wait()
    for path in place.state.glob("dbos.db*"):
        path.unlink()
    (place.state / "dbos.db").write_bytes(os.urandom(5000))
    assert place.worker().wait(20) == 1
    said = (place.state / "stderr").read_text()
    assert "move them away" in said
    assert "Traceback" not in said
    (place.state / "dbos.db").unlink()
    place.worker()
    assert place.ended(analysis_id) is State.COMPLETED
    assert max(Counter(each for each in place.calls(analysis_id) if each.startswith("batch")).values()) <= 2


def test_a_case_that_was_asked_to_end_while_no_worker_ran_is_cancelled(place: Place) -> None:
    analysis_id = place.accept(batches="60", batch_s="0.02")
    worker = place.worker()
    place.until(lambda: "batch 3" in place.calls(analysis_id))
    worker.kill()
    worker.wait()
    place.ledger.cancel(analysis_id, CALLER)
    place.worker()
    assert place.ended(analysis_id) is State.CANCELLED
    assert "deliver" not in place.calls(analysis_id)
