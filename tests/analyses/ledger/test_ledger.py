"""The ledger, on SQLite and PostgreSQL: on disk before the answer, guarded and audited changes, pages that hold."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from gateway.analyses.ledger import AnalysisQuery, Ledger
from gateway.analyses.ledger.records import Record
from gateway.analyses.ledger.schema import ANALYSES
from gateway.domain.analysis import State
from gateway.domain.identity import Difference, Problem
from gateway.domain.order import Order, Patient, Priority, SlideReference, Specimen
from gateway.domain.principal import Principal, PrincipalKind
from gateway.operations import codec
from gateway.operations.audit.table import AUDIT
from gateway.operations.errors import (
    Conflict,
    IdempotencyConflict,
    InvalidInput,
    NotFound,
    PathserveError,
    PreconditionFailed,
    WrongTenant,
)

LIS = Principal("system:lis", PrincipalKind.SYSTEM, "north", frozenset(), address="192.0.2.7")
OTHER_SYSTEM = Principal("system:other", PrincipalKind.SYSTEM, "north", frozenset())
OTHER_TENANT = Principal("system:lis", PrincipalKind.SYSTEM, "south", frozenset())
PERSON = Principal("person:ann", PrincipalKind.PERSON, "north", frozenset())
COMMAND_LINE = Principal("device:cli", PrincipalKind.DEVICE, "", frozenset())
DIFFERENCE = Difference("AccessionNumber", "1.2.3.4", Problem.DIFFERS, "d1")


def order(priority: Priority = Priority.ROUTINE, accession: str | None = None, study: str = "1.2.3") -> Order:
    return Order(
        protocol="tissue-classification",
        specimens=(Specimen(slides=(SlideReference(study, ("1.2.3.4",)),), container="C-1"),),
        priority=priority,
        accession=accession,
        patient=Patient("P-1", "HOSPITAL"),
    )


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres"))
    return f"sqlite:///{tmp_path / 'pathserve.db'}"


@pytest.fixture
def ledger(url: str, tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(url, tmp_path, ["https://lis.example/hook"])
    yield opened
    opened.close()


def accepted(ledger: Ledger, *arguments: Any, by: Principal = LIS, **more: Any) -> str:
    return ledger.accept(order(*arguments, **more), by)[0].analysis.id


def set_row(ledger: Ledger, analysis_id: str, **values: Any) -> None:
    """Put an analysis where a worker would have brought it."""
    with ledger._engine.begin() as connection:
        connection.execute(ANALYSES.update().where(ANALYSES.c.id == analysis_id).values(**values))


def trail(ledger: Ledger) -> list[sa.Row[Any]]:
    with ledger._engine.connect() as connection:
        return list(connection.execute(sa.select(AUDIT).order_by(AUDIT.c.seq)).all())


def webhooks(ledger: Ledger, analysis_id: str) -> list[str]:
    return [each.event for each in ledger.outbox.of(analysis_id)]


def states(ledger: Ledger, analysis_id: str) -> list[str]:
    return [event.data["state"] for event in ledger.events(analysis_id) if event.kind == "state"]


def ids(records: tuple[Record, ...]) -> list[str]:
    return [record.analysis.id for record in records]


# Accepting


def test_an_accepted_order_is_whole_and_on_disk(ledger: Ledger, url: str, tmp_path: Path) -> None:
    asked = order(accession="A-1")
    record, created = ledger.accept(asked, LIS, "key", deadline_s=60.0)
    other = Ledger.open(url, tmp_path)
    assert other.get(record.analysis.id) == record
    other.close()
    assert created
    assert (record.analysis.order, record.analysis.state) == (asked, State.ACCEPTED)
    assert (record.tenant, record.caller, record.run, record.stage, record.held) == (
        "north",
        "system:lis",
        1,
        "fetch",
        (),
    )
    assert record.deadline == record.analysis.created + timedelta(seconds=60)
    assert [(event.seq, event.kind, event.data) for event in ledger.events(record.analysis.id)] == [
        (1, "state", {"state": "accepted"})
    ]
    [audited] = trail(ledger)
    assert (audited.subtype, audited.action, audited.tenant) == ("analysis-created", "C", "north")
    assert (audited.actor, audited.actor_kind, audited.address) == ("system:lis", "system", "192.0.2.7")
    assert (audited.entity_kind, audited.entity) == ("analysis", record.analysis.id)


def test_what_is_committed_is_synced(ledger: Ledger) -> None:
    with ledger._engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        else:
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"


def test_the_same_key_and_order_are_the_same_analysis(ledger: Ledger) -> None:
    first, created = ledger.accept(order(), LIS, "key")
    again, created_again = ledger.accept(order(), LIS, "key")
    assert (created, created_again) == (True, False)
    assert again == first
    with pytest.raises(IdempotencyConflict):
        ledger.accept(order(accession="another"), LIS, "key")
    assert [each.subtype for each in trail(ledger)] == ["analysis-created"]


def test_a_key_is_its_callers_own(ledger: Ledger) -> None:
    made = [ledger.accept(order(), by, "key") for by in (LIS, OTHER_SYSTEM, OTHER_TENANT)]
    assert len({record.analysis.id for record, _ in made}) == 3
    assert all(created for _, created in made)
    with ledger._engine.connect() as connection:
        kept = connection.execute(sa.select(ANALYSES.c.idempotency_key)).scalars().all()
    assert all("key" not in each and len(each) == 64 for each in kept)


def test_one_key_from_many_threads_makes_one_analysis(ledger: Ledger) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: ledger.accept(order(), LIS, "key"), range(32)))
    assert len({record.analysis.id for record, _ in made}) == 1
    assert sum(created for _, created in made) == 1
    assert len(ledger.page("north", AnalysisQuery(), 100).items) == 1


def test_one_key_in_many_processes_makes_one_analysis(url: str, tmp_path: Path) -> None:
    """Each ledger stands for a process: they share the database and nothing else."""
    ledgers = [Ledger.open(url, tmp_path) for _ in range(3)]
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda n: ledgers[n % 3].accept(order(), LIS, f"key-{n // 6}"), range(36)))
    assert len({record.analysis.id for record, _ in made}) == 6
    assert sum(created for _, created in made) == 6
    for each in ledgers:
        each.close()


def test_orders_that_come_at_once_are_each_whole(ledger: Ledger) -> None:
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(lambda n: ledger.accept(order(accession=f"A-{n}"), LIS, f"key-{n}")[0], range(100)))
    assert {record.analysis.order.accession for record in made} == {f"A-{n}" for n in range(100)}
    for n, record in enumerate(made):
        assert record.analysis.order.accession == f"A-{n}"
        assert ledger.get(record.analysis.id) == record
        assert states(ledger, record.analysis.id) == ["accepted"]
    audited = trail(ledger)
    assert [each.seq for each in audited] == list(range(1, 101))
    assert {each.entity for each in audited} == {record.analysis.id for record in made}


def test_many_that_come_at_once_share_few_transactions(ledger: Ledger) -> None:
    commits: list[sa.Connection] = []

    def slow(connection: sa.Connection) -> None:
        commits.append(connection)
        time.sleep(0.01)  # a disk that takes its time: meanwhile all others come

    sa.event.listen(ledger._engine, "commit", slow)
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(lambda _: accepted(ledger), range(160)))
    assert len(set(made)) == 160
    assert len(commits) <= 40


def test_an_order_that_the_database_does_not_take_harms_no_other(ledger: Ledger) -> None:
    """No door lets such text in; a database that refuses one must not refuse what shares its transaction."""
    hurtful = order(accession="\ud800")

    def ask(n: int) -> Record | Exception:
        try:
            return ledger.accept(hurtful if n % 7 == 0 else order(), LIS)[0]
        except (PathserveError, UnicodeError) as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(ask, range(50)))
    assert [isinstance(each, Exception) for each in made] == [n % 7 == 0 for n in range(50)]
    assert len(ledger.page("north", AnalysisQuery(), 100).items) == 42


def test_each_order_of_a_batch_stands_for_itself(ledger: Ledger) -> None:
    known = ledger.accept(order(accession="A"), LIS, "known")[0]
    asked = [
        (order(accession="B"), "new"),
        (order(accession="A"), "known"),
        (order(accession="C"), "known"),
        (order(accession="B"), "new"),
        (order(accession="D"), "new"),
        (order(accession="E"), None),
        (order(accession="E"), None),
    ]
    found = ledger.accept_batch(asked, LIS)
    first, again, conflict, twice, conflict_within, one, other = found
    assert isinstance(first, Record)
    assert isinstance(one, Record)
    assert isinstance(other, Record)
    assert again == known
    assert twice == first
    assert isinstance(conflict, IdempotencyConflict)
    assert isinstance(conflict_within, IdempotencyConflict)
    assert one.analysis.id != other.analysis.id
    assert first.number < one.number < other.number
    assert [each.entity for each in trail(ledger)] == [each.analysis.id for each in (known, first, one, other)]
    assert ledger.accept_batch([], LIS) == []


# Reading


def test_another_tenants_analysis_is_refused(ledger: Ledger) -> None:
    mine = accepted(ledger)
    assert ledger.get(mine, "north").analysis.id == mine
    calls: list[Any] = [
        lambda: ledger.get(mine, "south"),
        lambda: ledger.cancel(mine, OTHER_TENANT),
        lambda: ledger.retry(mine, OTHER_TENANT),
        lambda: ledger.prioritise(mine, Priority.STAT, OTHER_TENANT),
        lambda: ledger.release(mine, "reason", OTHER_TENANT),
    ]
    before = ledger.get(mine)
    for call in calls:
        with pytest.raises(WrongTenant):
            call()
    assert ledger.get(mine) == before
    assert len(trail(ledger)) == 1
    assert ledger.cancel(mine, COMMAND_LINE).analysis.state is State.CANCELLED


def test_what_is_not_there(ledger: Ledger) -> None:
    for call in (ledger.get, lambda id: ledger.cancel(id, LIS), lambda id: ledger.release(id, "reason", PERSON)):
        with pytest.raises(NotFound):
            call("none")


def test_pages_are_newest_first_and_stable(ledger: Ledger) -> None:
    made = [accepted(ledger) for _ in range(5)]
    accepted(ledger, by=OTHER_TENANT)
    first = ledger.page("north", AnalysisQuery(), 2)
    accepted(ledger)
    second = ledger.page("north", AnalysisQuery(), 3, first.next)
    assert ids(first.items + second.items) == made[::-1]
    assert first.next is not None
    assert second.next is None


def test_pages_are_filtered(ledger: Ledger) -> None:
    stat = accepted(ledger, Priority.STAT, accession="A-1")
    other = accepted(ledger, accession="A-2", study="9.8.7")
    ended = accepted(ledger, accession="A-2")
    ledger.cancel(ended, LIS)
    accepted(ledger, Priority.STAT, accession="A-1", by=OTHER_TENANT)
    moment = ledger.get(other).analysis.created
    for query, expected in (
        (AnalysisQuery(state=State.CANCELLED), [ended]),
        (AnalysisQuery(priority=Priority.STAT), [stat]),
        (AnalysisQuery(protocol="tissue-classification"), [ended, other, stat]),
        (AnalysisQuery(protocol="questions"), []),
        (AnalysisQuery(accession="A-2"), [ended, other]),
        (AnalysisQuery(accession="A-2", state=State.ACCEPTED), [other]),
        (AnalysisQuery(patient_id="P-1", patient_issuer="HOSPITAL"), [ended, other, stat]),
        (AnalysisQuery(patient_id="P-1", patient_issuer="ELSEWHERE"), []),
        (AnalysisQuery(patient_id="P-2"), []),
        (AnalysisQuery(study="9.8.7"), [other]),
        (AnalysisQuery(created_after=moment), [ended, other]),
        (AnalysisQuery(created_before=moment), [stat]),
        (AnalysisQuery(created_after=datetime.now(UTC) + timedelta(hours=1)), []),
    ):
        assert ids(ledger.page("north", query, 10).items) == expected, query


def test_a_cursor_belongs_to_its_query(ledger: Ledger) -> None:
    for _ in range(3):
        accepted(ledger, accession="A-1")
    query = AnalysisQuery(accession="A-1")
    cursor = ledger.page("north", query, 2).next
    assert cursor is not None
    assert len(ledger.page("north", query, 2, cursor).items) == 1
    for tenant, others in (("north", AnalysisQuery()), ("south", query), ("north", replace(query, study="1.2.3"))):
        with pytest.raises(InvalidInput, match="other filters"):
            ledger.page(tenant, others, 2, cursor)
    for broken in ("", "x", "bjE", cursor[:-2], "a" * 400, "é", "MTIz=="):
        with pytest.raises(InvalidInput, match="cursor"):
            ledger.page("north", query, 2, broken)


def test_the_version_changes_with_all_that_is_shown(ledger: Ledger) -> None:
    analysis_id = accepted(ledger)
    seen = {ledger.get(analysis_id).version}
    assert ledger.get(analysis_id).version in seen
    changes: tuple[dict[str, Any], ...] = (
        {"state": "running"},
        {"step": "infer", "done": 1, "total": 10, "unit": "tiles"},
        {"done": 2},
        {"cancel_requested": True},
        {"held": [codec.dump(DIFFERENCE)]},
        {"priority": "STAT", "rank": 0},
        {"models": {"folders": {}, "pins": []}},
        {"stage": "infer"},
        {"run": 2},
        {"failure_reason": "no-tissue", "failure_detail": "None."},
        {"deadline": datetime.now(UTC)},
    )
    for change in changes:
        set_row(ledger, analysis_id, **change)
        version = ledger.get(analysis_id).version
        assert version not in seen, change
        seen.add(version)


# Changing


def test_cancelling(ledger: Ledger) -> None:
    waiting = accepted(ledger)
    assert ledger.cancel(waiting, LIS).analysis.state is State.CANCELLED
    assert ledger.cancel(waiting, LIS).analysis.state is State.CANCELLED
    assert states(ledger, waiting) == ["accepted", "cancelled"]
    assert webhooks(ledger, waiting) == ["analysis.cancelled"]

    held = accepted(ledger)
    set_row(ledger, held, state="held-identity", held=[codec.dump(DIFFERENCE)])
    record = ledger.cancel(held, LIS)
    assert (record.analysis.state, record.held) == (State.CANCELLED, ())

    running = accepted(ledger)
    set_row(ledger, running, state="running", worker="w")
    for _ in range(2):
        record = ledger.cancel(running, LIS)
        assert (record.analysis.state, record.cancel_requested) == (State.RUNNING, True)
    assert webhooks(ledger, running) == []

    delivering = accepted(ledger)
    set_row(ledger, delivering, state="running", delivering=True)
    with pytest.raises(Conflict, match="delivered"):
        ledger.cancel(delivering, LIS)
    set_row(ledger, delivering, state="completed")
    with pytest.raises(Conflict, match="completed"):
        ledger.cancel(delivering, LIS)
    changed = [each.entity for each in trail(ledger) if each.subtype == "analysis-cancelled"]
    assert changed == [waiting, held, running]


def test_a_retry_is_a_new_run(ledger: Ledger) -> None:
    analysis_id = accepted(ledger)
    for state in ("accepted", "running", "completed", "held-identity"):
        set_row(ledger, analysis_id, state=state)
        with pytest.raises(Conflict, match=state):
            ledger.retry(analysis_id, LIS)
    set_row(
        ledger,
        analysis_id,
        state="failed",
        failure_reason="kills-worker",
        failure_detail="It died.",
        stage="infer",
        attempts=4,
        deaths=3,
        mark="infer:5",
        alone=True,
        cancel_requested=True,
        step="infer",
        done=5,
        total=10,
        unit="tiles",
        models={"folders": {}, "pins": []},
    )
    record = ledger.retry(analysis_id, LIS, deadline_s=100.0)
    assert (record.analysis.state, record.analysis.failure, record.run, record.stage) == (
        State.ACCEPTED,
        None,
        2,
        "fetch",
    )
    assert (record.attempts, record.progress, record.models, record.cancel_requested) == (4, None, (), False)
    assert record.deadline is not None
    assert timedelta(0) < record.deadline - datetime.now(UTC) <= timedelta(seconds=100)
    with ledger._engine.connect() as connection:
        row = connection.execute(sa.select(ANALYSES).where(ANALYSES.c.id == analysis_id)).one()
        assert (row.deaths, row.mark, row.alone, row.worker) == (0, None, False, None)
        assert connection.execute(sa.select(ANALYSES.c.id).where(ANALYSES.c.models.is_(None))).all() != []
    assert ledger.events(analysis_id)[-1].data == {"state": "accepted", "run": 2}
    assert trail(ledger)[-1].subtype == "analysis-retried"

    set_row(ledger, analysis_id, state="failed", delivering=True)
    with pytest.raises(Conflict, match="delivery"):
        ledger.retry(analysis_id, LIS)


def test_a_priority_may_change_until_the_end(ledger: Ledger) -> None:
    analysis_id = accepted(ledger, accession="A-1")
    record = ledger.prioritise(analysis_id, Priority.STAT, LIS)
    assert record.analysis.order == order(Priority.STAT, accession="A-1")
    assert ledger.prioritise(analysis_id, Priority.STAT, LIS) == record
    assert ledger.events(analysis_id)[-1].kind == "priority"
    audited = trail(ledger)
    assert [(each.subtype, each.detail) for each in audited[1:]] == [
        ("analysis-prioritised", {"before": "ROUTINE", "after": "STAT"})
    ]
    # The key still stands for the order as it was sent.
    keyed = ledger.accept(order(), LIS, "key")[0].analysis.id
    ledger.prioritise(keyed, Priority.URGENT, LIS)
    again, created = ledger.accept(order(), LIS, "key")
    assert (again.analysis.id, created) == (keyed, False)
    ledger.cancel(analysis_id, LIS)
    with pytest.raises(Conflict):
        ledger.prioritise(analysis_id, Priority.ROUTINE, LIS)


def test_a_release_covers_what_was_held_and_nothing_else(ledger: Ledger) -> None:
    analysis_id = accepted(ledger)
    with pytest.raises(Conflict, match="not held"):
        ledger.release(analysis_id, "reason", PERSON)
    set_row(ledger, analysis_id, state="held-identity", stage="infer", held=[codec.dump(DIFFERENCE)])
    assert ledger.get(analysis_id).held == (DIFFERENCE,)
    assert ledger.released(analysis_id) == frozenset()
    record = ledger.release(analysis_id, "The label was printed twice.", PERSON)
    assert (record.analysis.state, record.stage, record.held) == (State.RUNNING, "infer", ())
    assert ledger.released(analysis_id) == {"d1"}
    assert states(ledger, analysis_id) == ["accepted", "running"]
    assert webhooks(ledger, analysis_id) == ["analysis.released"]
    audited = trail(ledger)[-1]
    assert (audited.subtype, audited.actor) == ("analysis-released", "person:ann")
    assert audited.detail == {"reason": "The label was printed twice.", "attributes": ["AccessionNumber"]}
    with pytest.raises(Conflict):
        ledger.release(analysis_id, "again", PERSON)

    another = replace(DIFFERENCE, attribute="PatientID", digest="d2")
    set_row(ledger, analysis_id, state="held-identity", held=[codec.dump(another)])
    ledger.release(analysis_id, "That too.", PERSON)
    assert ledger.released(analysis_id) == {"d1", "d2"}


def test_a_later_revision_of_a_completed_analysis_may_be_held(ledger: Ledger) -> None:
    analysis_id = accepted(ledger)
    set_row(ledger, analysis_id, state="completed", held=[codec.dump(DIFFERENCE)])
    record = ledger.release(analysis_id, "reason", PERSON)
    assert (record.analysis.state, record.held) == (State.COMPLETED, ())
    set_row(ledger, analysis_id, state="failed", held=[codec.dump(DIFFERENCE)])
    with pytest.raises(Conflict):
        ledger.release(analysis_id, "reason", PERSON)


def test_what_has_changed_since_it_was_read_is_not_changed(ledger: Ledger) -> None:
    analysis_id = accepted(ledger)
    seen = ledger.get(analysis_id).version
    moved = ledger.prioritise(analysis_id, Priority.STAT, LIS, if_match=seen)
    for change in (
        lambda: ledger.prioritise(analysis_id, Priority.URGENT, LIS, if_match=seen),
        lambda: ledger.cancel(analysis_id, LIS, if_match=seen),
        lambda: ledger.retry(analysis_id, LIS, if_match=seen),
    ):
        with pytest.raises(PreconditionFailed):
            change()
    assert ledger.get(analysis_id) == moved
    assert ledger.cancel(analysis_id, LIS, if_match=moved.version).analysis.state is State.CANCELLED


def test_one_of_many_that_saw_the_same_version_wins(ledger: Ledger) -> None:
    analysis_id = accepted(ledger)
    seen = ledger.get(analysis_id).version
    outcomes: Counter[str] = Counter()
    barrier = threading.Barrier(4)

    def race(priority: Priority) -> None:
        barrier.wait()
        try:
            ledger.prioritise(analysis_id, priority, LIS, if_match=seen)
            outcomes["won"] += 1
        except PreconditionFailed:
            outcomes["lost"] += 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(race, [Priority.STAT, Priority.URGENT] * 2))
    assert outcomes == {"won": 1, "lost": 3}


def test_racing_ends_leave_exactly_one(ledger: Ledger) -> None:
    """A worker that ends an analysis against a caller who cancels it and one who changes its priority."""
    ended: Counter[str] = Counter()
    for _ in range(20):
        analysis_id = accepted(ledger)
        turn = ledger.runs.begin(f"{analysis_id}.1.fetch", "w")
        assert turn is not None
        barrier = threading.Barrier(3)

        def quietly(change: Any, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            try:
                change()
            except PathserveError:
                return

        calls = (
            lambda turn=turn: ledger.runs.finish(turn, State.COMPLETED),
            lambda analysis_id=analysis_id: ledger.cancel(analysis_id, LIS),
            lambda analysis_id=analysis_id: ledger.prioritise(analysis_id, Priority.STAT, LIS),
        )
        threads = [threading.Thread(target=quietly, args=(each,)) for each in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        final = [each for each in states(ledger, analysis_id) if State(each).final]
        assert final == [ledger.get(analysis_id).analysis.state.value]
        numbers = [event.seq for event in ledger.events(analysis_id)]
        assert numbers == list(range(1, len(numbers) + 1))
        ended[final[0]] += 1
    assert sum(ended.values()) == 20


def test_statistics(ledger: Ledger) -> None:
    ledger.cancel(accepted(ledger, Priority.STAT), LIS)
    accepted(ledger)
    found = ledger.statistics()
    assert found.by_state == {"cancelled": 1, "accepted": 1}
    assert found.oldest_s.keys() == {"ROUTINE"}
    assert 0.0 <= found.oldest_s["ROUTINE"] < 60.0
