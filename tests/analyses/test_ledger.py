"""The ledger: on disk before the answer, guarded transitions, events without loss."""

import sqlite3
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import alembic.command
import alembic.config
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from gateway.analyses.ledger import Ledger
from gateway.analyses.schema import METADATA
from gateway.domain.analysis import Failure, Progress, State, Step
from gateway.domain.order import Order, Patient, Priority, SlideReference, Specimen
from gateway.operations import codec, migrations
from gateway.operations.audit.table import AUDIT
from gateway.operations.auth.table import API_KEYS
from gateway.operations.errors import Cancelled, Conflict, IdempotencyConflict, InvalidSetting, NotFound, StateError


def order(priority: Priority = Priority.ROUTINE, accession: str | None = None) -> Order:
    return Order(
        protocol="tissue-classification",
        specimens=(Specimen(slides=(SlideReference("1.2.3", ("1.2.3.4",)),), container="C-1"),),
        priority=priority,
        accession=accession,
        patient=Patient("P-1", "HOSPITAL"),
    )


def open_ledger(state: Path) -> Ledger:
    return Ledger.open(f"sqlite:///{state / 'pathserve.db'}", state)


@pytest.fixture
def ledger(tmp_path: Path):
    opened = open_ledger(tmp_path)
    yield opened
    opened.close()


def test_an_accepted_order_is_whole_and_on_disk(ledger: Ledger, tmp_path: Path) -> None:
    record, created = ledger.accept(order(accession="A-1"))
    assert created
    assert record.analysis.order == order(accession="A-1")
    with sqlite3.connect(f"file:{tmp_path / 'pathserve.db'}?mode=ro", uri=True) as other:
        assert other.execute("SELECT state FROM analyses WHERE id = ?", (record.analysis.id,)).fetchall() == [
            ("accepted",)
        ]
    with ledger._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2


def test_the_same_key_and_order_are_the_same_analysis(ledger: Ledger) -> None:
    first, created = ledger.accept(order(), "key")
    again, created_again = ledger.accept(order(), "key")
    other, _ = ledger.accept(order())
    assert (created, created_again) == (True, False)
    assert again.analysis.id == first.analysis.id != other.analysis.id
    with pytest.raises(IdempotencyConflict):
        ledger.accept(order(accession="another"), "key")


def test_one_key_from_many_threads_makes_one_analysis(ledger: Ledger) -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(lambda _: ledger.accept(order(), "key")[0].analysis.id, range(32)))
    assert len(ids) == 1
    assert len(ledger.page(100)) == 1


def test_claims_follow_priority_then_age(ledger: Ledger) -> None:
    asked = [Priority.ROUTINE, Priority.STAT, Priority.URGENT, Priority.STAT, Priority.ROUTINE]
    ids = [ledger.accept(order(priority))[0].analysis.id for priority in asked]
    assert [ledger.claim() for _ in range(6)] == [ids[1], ids[3], ids[2], ids[0], ids[4], None]
    assert list(ledger.running()) == ids


def test_an_analysis_is_claimed_once(ledger: Ledger) -> None:
    for _ in range(40):
        ledger.accept(order())
    with ThreadPoolExecutor(4) as pool:
        claimed = list(pool.map(lambda _: ledger.claim(), range(40)))
    assert len(set(claimed)) == 40


def test_racing_ends_leave_exactly_one(ledger: Ledger) -> None:
    outcomes: Counter[str] = Counter()
    for _ in range(30):
        analysis_id = ledger.accept(order())[0].analysis.id
        assert ledger.claim() == analysis_id
        barrier = threading.Barrier(3)

        def complete(analysis_id: str = analysis_id, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            try:
                ledger.begin_delivery(analysis_id)
            except Cancelled:
                ledger.finish(analysis_id, State.CANCELLED)
            else:
                ledger.finish(analysis_id, State.COMPLETED)

        def fail(analysis_id: str = analysis_id, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            ledger.finish(analysis_id, State.FAILED, Failure("x", "y"))

        def cancel(analysis_id: str = analysis_id, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            try:
                ledger.cancel(analysis_id)
            except Conflict:
                return

        threads = [threading.Thread(target=each) for each in (complete, fail, cancel)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        final = [
            event.data["state"]
            for event in ledger.events(analysis_id)
            if event.kind == "state" and State(event.data["state"]).final
        ]
        assert final == [ledger.get(analysis_id).analysis.state.value]
        outcomes[final[0]] += 1
    assert sum(outcomes.values()) == 30


def test_cancelling(ledger: Ledger) -> None:
    waiting = ledger.accept(order())[0].analysis.id
    assert ledger.cancel(waiting).analysis.state is State.CANCELLED
    assert ledger.cancel(waiting).analysis.state is State.CANCELLED
    assert ledger.claim() is None

    running = ledger.accept(order())[0].analysis.id
    ledger.claim()
    record = ledger.cancel(running)
    assert (record.analysis.state, record.cancel_requested) == (State.RUNNING, True)
    assert ledger.running() == {running: True}
    with pytest.raises(Cancelled):
        ledger.begin_delivery(running)
    assert ledger.finish(running, State.FAILED, Failure("x", "y")) is State.CANCELLED
    assert ledger.get(running).analysis.failure is None

    delivering = ledger.accept(order())[0].analysis.id
    ledger.claim()
    ledger.begin_delivery(delivering)
    ledger.begin_delivery(delivering)
    with pytest.raises(Conflict):
        ledger.cancel(delivering)
    ledger.finish(delivering, State.COMPLETED)
    with pytest.raises(Conflict):
        ledger.cancel(delivering)
    with pytest.raises(NotFound):
        ledger.cancel("none")


def test_events_are_numbered_without_reuse_and_do_not_grow_with_progress(ledger: Ledger) -> None:
    analysis_id = ledger.accept(order())[0].analysis.id
    ledger.claim()
    seen: list[int] = []
    for done in range(50):
        ledger.record_progress(analysis_id, Progress(Step.INFER, done, 100, "tiles"))
        seen += [event.seq for event in ledger.events(analysis_id, after=seen[-1] if seen else 0)]
    assert seen == sorted(set(seen))
    kept = ledger.events(analysis_id)
    assert [event.kind for event in kept] == ["state", "state", "progress"]
    assert kept[-1].data == {"step": "infer", "done": 49, "total": 100, "unit": "tiles"}


def test_a_step_is_told_as_finished_once(ledger: Ledger) -> None:
    analysis_id = ledger.accept(order())[0].analysis.id
    ledger.claim()
    for step in (Step.FETCH, Step.FETCH, Step.INFER, Step.FETCH):
        ledger.record_finished(analysis_id, step, 1.5)
    told = [event.data["step"] for event in ledger.events(analysis_id) if event.kind == "step"]
    assert told == ["fetch", "infer"]


def test_attempts_count_from_the_last_step_forward(ledger: Ledger) -> None:
    analysis_id = ledger.accept(order())[0].analysis.id
    ledger.claim()
    assert [ledger.count_attempt(analysis_id) for _ in range(3)] == [1, 2, 3]
    ledger.record_progress(analysis_id, Progress(Step.INFER, 5, 10, "tiles"))
    assert ledger.get(analysis_id).attempts == 1
    assert ledger.count_attempt(analysis_id) == 2
    ledger.record_progress(analysis_id, Progress(Step.INFER, 3, 10, "tiles"))
    record = ledger.get(analysis_id)
    assert (record.attempts, record.progress and record.progress.done) == (2, 5)
    ledger.record_progress(analysis_id, Progress(Step.INFER, 6, 10, "tiles"))
    assert ledger.get(analysis_id).attempts == 1
    ledger.forgive_attempt(analysis_id)
    assert ledger.get(analysis_id).attempts == 0


def test_pages_are_newest_first_and_stable(ledger: Ledger) -> None:
    ids = [ledger.accept(order())[0].analysis.id for _ in range(5)]
    first = ledger.page(2)
    ledger.accept(order())
    second = ledger.page(3, before=first[-1].number)
    assert [record.analysis.id for record in (*first, *second)] == ids[::-1]


def test_statistics(ledger: Ledger) -> None:
    ledger.accept(order(Priority.STAT))
    ledger.accept(order())
    done = ledger.claim()
    assert done is not None
    ledger.finish(done, State.COMPLETED)
    found = ledger.statistics()
    assert found.by_state == {"completed": 1, "accepted": 1}
    assert found.oldest_s.keys() == {"ROUTINE"}
    assert 0.0 <= found.oldest_s["ROUTINE"] < 60.0


def test_heartbeats(ledger: Ledger) -> None:
    assert ledger.worker() is None
    for ready in (False, True):
        ledger.beat("w", datetime.now(UTC), {"archive": ready}, [{"name": "m", "ready": ready}])
    found = ledger.worker()
    assert found is not None
    assert found.alive(datetime.now(UTC))
    assert (found.parts, found.models) == ({"archive": True}, [{"name": "m", "ready": True}])


def test_the_migrations_make_the_declared_schema(tmp_path: Path) -> None:
    open_ledger(tmp_path).close()
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'pathserve.db'}")
    with engine.connect() as connection:
        assert {AUDIT.metadata, API_KEYS.metadata} == {METADATA}
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    engine.dispose()


def test_a_ledger_of_the_version_before_is_brought_up_to_date(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "pathserve.db")) as database:
        engine = sa.create_engine("sqlite://", creator=lambda: database, poolclass=sa.StaticPool)
        with engine.begin() as connection:
            config = alembic.config.Config()
            config.set_main_option("script_location", str(Path(migrations.__path__[0])))
            config.attributes["connection"] = connection
            alembic.command.upgrade(config, "0001")
            columns = "id, order_json, protocol, priority, rank, state, body_sha256, created, updated"
            values = (codec.dumps(order()), "2026-01-01 00:00:00.000000")
            connection.exec_driver_sql(
                f"INSERT INTO analyses ({columns}, cancel_requested, delivering, attempts) VALUES "
                "('old', ?, 'tissue-classification', 'ROUTINE', 2, 'running', '', ?, ?, 0, 0, 1)",
                (values[0], values[1], values[1]),
            )
    opened = open_ledger(tmp_path)
    assert opened.get("old").analysis.order == order()
    assert opened.pinned() == ()
    opened.pin("old", {"folders": {}, "pins": []})
    assert opened.pinned() == ({"folders": {}, "pins": []},)
    assert opened.choices.read().decisions == ()
    opened.close()


def test_many_may_open_a_new_ledger_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: open_ledger(tmp_path), range(4)))
    for each in opened:
        each.accept(order())
    assert [len(each.page(10)) for each in opened] == [4, 4, 4, 4]
    for each in opened:
        each.close()


def test_a_state_that_is_no_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot be"):
        open_ledger(tmp_path / "file")


@pytest.mark.parametrize("url", ["nonsense", "nosuchdatabase://x/y"])
def test_an_address_that_is_none_is_a_clear_error(tmp_path: Path, url: str) -> None:
    with pytest.raises(InvalidSetting, match="PATHSERVE_DATABASE_URL"):
        Ledger.open(url, tmp_path)


def test_a_ledger_of_a_newer_version_is_a_clear_error(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'pathserve.db'}"
    Ledger.open(url, tmp_path).close()
    with closing(sqlite3.connect(tmp_path / "pathserve.db")) as database:
        database.execute("UPDATE alembic_version SET version_num = 'r9999'")
        database.commit()
    with pytest.raises(StateError, match="version"):
        Ledger.open(url, tmp_path)


def test_a_file_that_is_no_database_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "pathserve.db").write_bytes(b"not a database, but long enough to look at " * 50)
    with pytest.raises(StateError, match="database"):
        open_ledger(tmp_path)
