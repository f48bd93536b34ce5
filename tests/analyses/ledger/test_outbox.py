"""The outbox: a row with what it tells or neither, tries that are fenced, replays that keep the id."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from gateway.analyses.ledger import Ledger
from gateway.analyses.ledger.outbox import Outbox
from gateway.analyses.ledger.schema import ANALYSES, DELIVERIES
from gateway.domain.analysis import State
from gateway.domain.delivery import Channel, Delivery, DeliveryState, target_name
from gateway.domain.identity import Difference, Problem
from gateway.domain.order import Order, Patient, SlideReference, Specimen
from gateway.domain.principal import Principal, PrincipalKind
from gateway.operations.audit.table import AUDIT
from gateway.operations.errors import Conflict, NotFound, TurnLost
from gateway.operations.operator import operator

TARGETS = ("https://lis.example/hook?token=secret", "https://viewer.example/")
ORDER = Order(
    "tissue-classification",
    (Specimen(slides=(SlideReference("1.2.3"),), container="C-1"),),
    accession="A-1",
    patient=Patient("P-1"),
)
BY = Principal("system:lis", PrincipalKind.SYSTEM, "hospital", frozenset())
DIFFERENCES = (Difference("patient id", "1.2.3.4", Problem.DIFFERS, "0" * 64),)


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    sqlite = f"sqlite:///{tmp_path / 'pathserve.db'}"
    url = sqlite if request.param == "sqlite" else request.getfixturevalue("postgres")
    opened = Ledger.open(url, tmp_path, TARGETS)
    yield opened
    opened.close()


@pytest.fixture
def outbox(ledger: Ledger) -> Outbox:
    return ledger.outbox


@pytest.fixture
def analysis(ledger: Ledger) -> str:
    """A running analysis in the step deliver, with its STOW."""
    analysis_id = ledger.accept(ORDER, BY)[0].analysis.id
    with ledger._write() as connection:
        running = {"state": State.RUNNING.value, "stage": "deliver", "delivering": True}
        connection.execute(ANALYSES.update().where(ANALYSES.c.id == analysis_id).values(**running))
        ledger.outbox.add_stow(connection, analysis_id, 1)
    return analysis_id


def begun(outbox: Outbox, worker: str = "w-1") -> Delivery:
    (due,) = outbox.due(10)
    delivery = outbox.begin(due.workflow, worker)
    assert delivery is not None
    return delivery


def steps(ledger: Ledger, analysis: str) -> list[str]:
    return [event.data["status"] for event in ledger.events(analysis) if event.kind == "step"]


def audited(ledger: Ledger) -> list[tuple[str, str]]:
    with ledger._read() as connection:
        return [(row.subtype, row.actor) for row in connection.execute(sa.select(AUDIT).order_by(AUDIT.c.seq))]


def test_a_row_is_there_with_what_it_tells_or_not_at_all(ledger: Ledger, analysis: str) -> None:
    def fail() -> None:
        with ledger._write() as connection:
            connection.execute(ANALYSES.update().values(state=State.COMPLETED.value))
            ledger.outbox.tell(connection, analysis, "analysis.completed")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        fail()
    assert [each.channel for each in ledger.outbox.of(analysis)] == [Channel.STOW]
    assert ledger.get(analysis).analysis.state is State.RUNNING


def test_every_target_is_told_by_its_name_and_without_patient_data(ledger: Ledger, analysis: str) -> None:
    with ledger._write() as connection:
        ledger.outbox.tell(connection, analysis, "analysis.completed", 1)
    told = [each for each in ledger.outbox.of(analysis) if each.channel is Channel.WEBHOOK]
    assert [each.target for each in told] == [target_name(address) for address in TARGETS]
    assert len({each.id for each in told}) == 2
    for each in told:
        assert each.body is not None
        assert datetime.fromisoformat(each.body["timestamp"]).tzinfo is not None
        assert dict(each.body) | {"timestamp": ""} == {
            "type": "analysis.completed",
            "timestamp": "",
            "data": {
                "analysis": analysis,
                "state": "running",
                "revision": 1,
                "links": {
                    "analysis": f"/v1/analyses/{analysis}",
                    "deliveries": f"/v1/analyses/{analysis}/deliveries",
                    "report": f"/v1/analyses/{analysis}/report?revision=1",
                },
            },
        }
        assert not {"P-1", "A-1", "secret"} & set(str(each).replace("'", " ").split())


def test_a_delivery_goes_its_way(ledger: Ledger, outbox: Outbox, analysis: str) -> None:
    delivery = begun(outbox)
    assert (delivery.analysis, delivery.tries, delivery.worker, delivery.tenant) == (analysis, 1, "w-1", "hospital")
    assert outbox.due(10) == ()
    for done in (1, 2):
        outbox.stored(delivery, done, 2)
    progress = ledger.get(analysis).progress
    assert progress is not None
    assert (progress.step.value, progress.done, progress.total) == ("deliver", 2, 2)
    assert len([event for event in ledger.events(analysis) if event.kind == "progress"]) == 1
    outbox.delivered(delivery, 1.5)
    (settled,) = outbox.of(analysis)
    assert (settled.state, settled.done, settled.worker) == (DeliveryState.DELIVERED, 2, None)
    assert settled.settled is not None
    assert steps(ledger, analysis) == ["started", "finished"]
    assert audited(ledger)[-1] == ("delivery-sent", "worker")
    assert outbox.statistics()[Channel.STOW, DeliveryState.DELIVERED] == 1


def test_only_one_begins_a_try(outbox: Outbox, analysis: str) -> None:
    (due,) = outbox.due(10)
    assert outbox.begin(due.workflow, "w-1") is not None
    assert outbox.begin(due.workflow, "w-2") is None
    assert outbox.begin("unknown.0.0", "w-2") is None


def test_what_a_dead_worker_had_in_hand_is_due_at_once_and_it_writes_no_more(
    ledger: Ledger, outbox: Outbox, analysis: str
) -> None:
    late = begun(outbox, "w-dead")
    outbox.stored(late, 3, 6)
    assert outbox.free("w-other") == 0
    assert outbox.free("w-dead") == 1
    later = begun(outbox, "w-2")
    assert (later.done, later.tries) == (3, 2)
    for write in (
        lambda: outbox.stored(late, 4, 6),
        lambda: outbox.delivered(late, 1.0),
        lambda: outbox.again(late, 0, "r", "d"),
        lambda: outbox.dead(late, "r", "d"),
        lambda: outbox.give_back(late),
        lambda: outbox.hold(late, DIFFERENCES, "d"),
    ):
        with pytest.raises(TurnLost):
            write()
    assert ledger.get(analysis).analysis.state is State.RUNNING
    outbox.delivered(later, 1.0)
    assert steps(ledger, analysis) == ["started", "started", "finished"]


def test_another_try_waits_its_time_and_has_another_name(outbox: Outbox, analysis: str) -> None:
    names = set()
    for _ in range(3):
        (due,) = outbox.due(10)
        names.add(due.workflow)
        delivery = outbox.begin(due.workflow, "w-1")
        assert delivery is not None
        outbox.again(delivery, 0.0, "archive-unavailable", "The PACS is away.")
    assert len(names) == 3
    delivery = begun(outbox)
    outbox.again(delivery, 60.0, "archive-unavailable", "The PACS is away.")
    assert outbox.due(10) == ()
    (waiting,) = outbox.of(analysis)
    assert (waiting.reason, waiting.tries) == ("archive-unavailable", 4)
    assert 55 < (waiting.next - datetime.now(UTC)).total_seconds() <= 60
    outbox.shift(-120.0)
    assert len(outbox.due(10)) == 1


def test_a_name_that_the_engine_used_up_is_given_no_second_time(outbox: Outbox, analysis: str) -> None:
    (due,) = outbox.due(10)
    outbox.renew(due.workflow)
    (again,) = outbox.due(10)
    assert again.workflow != due.workflow
    assert outbox.begin(due.workflow, "w") is None
    assert outbox.begin(again.workflow, "w") is not None


def test_a_dead_letter_is_told_audited_and_replayed_under_its_id(ledger: Ledger, outbox: Outbox, analysis: str) -> None:
    dead = begun(outbox)
    outbox.stored(dead, 2, 6)
    outbox.dead(dead, "archive-refused", "The PACS refused report.sr.dcm.")
    assert [each.id for each in outbox.dead_letters()] == [dead.id]
    assert outbox.due(10)
    assert {each.event for each in outbox.of(analysis)} == {"report", "delivery.dead"}
    assert audited(ledger)[-1] == ("delivery-dead", "worker")
    assert steps(ledger, analysis) == ["started", "dead"]

    replayed = outbox.replay(dead.id, operator())
    assert (replayed.id, replayed.state, replayed.tries, replayed.done) == (dead.id, DeliveryState.PENDING, 0, 0)
    assert (replayed.reason, replayed.settled) == (None, None)
    assert audited(ledger)[-1] == ("delivery-replayed", operator().subject)
    again = next(each for each in outbox.due(10) if each.id == dead.id)
    assert again.workflow == f"{dead.id}.1.0"
    assert outbox.begin(again.workflow, "w-2") is not None


def test_a_dead_webhook_tells_nobody(ledger: Ledger, outbox: Outbox, analysis: str) -> None:
    with ledger._write() as connection:
        outbox.tell(connection, analysis, "analysis.completed", 1)
    for due in outbox.due(10):
        delivery = outbox.begin(due.workflow, "w-1")
        assert delivery is not None
        if delivery.channel is Channel.WEBHOOK:
            outbox.dead(delivery, "delivery-refused", "Gone.")
    assert len(outbox.of(analysis)) == 3
    assert outbox.statistics()[Channel.WEBHOOK, DeliveryState.DEAD] == 2


def test_who_may_replay_what(ledger: Ledger, outbox: Outbox, analysis: str) -> None:
    delivery = begun(outbox)
    with pytest.raises(Conflict, match="under way"):
        outbox.replay(delivery.id, operator())
    outbox.again(delivery, 600.0, "archive-unavailable", "The PACS is away.")
    other = Principal("system:other", PrincipalKind.SYSTEM, "elsewhere", frozenset())
    for wrong, by in ((delivery.id, other), ("unknown", operator())):
        with pytest.raises(NotFound):
            outbox.replay(wrong, by)
    # One that waits is due at once, and what is known of it stays.
    assert (outbox.replay(delivery.id, BY).tries, len(outbox.due(10))) == (1, 1)
    outbox.hold(begun(outbox), DIFFERENCES, "They do not agree.")
    with pytest.raises(Conflict, match="held"):
        outbox.replay(delivery.id, operator())


def test_a_held_delivery_holds_its_analysis_until_that_is_released(
    ledger: Ledger, outbox: Outbox, analysis: str
) -> None:
    outbox.hold(begun(outbox), DIFFERENCES, "They do not agree.")
    record = ledger.get(analysis)
    assert (record.analysis.state, record.held) == (State.HELD_IDENTITY, DIFFERENCES)
    assert outbox.of(analysis)[0].state is DeliveryState.HELD
    assert [each.event for each in outbox.of(analysis)[1:]] == ["analysis.held-identity"] * 2
    assert ("analysis-held", "worker") in audited(ledger)
    assert all(due.id != outbox.of(analysis)[0].id for due in outbox.due(10))

    ledger.release(analysis, "The label was mixed up, the block is right.", operator())
    assert ledger.released(analysis) == {DIFFERENCES[0].digest}
    assert any(due.id == outbox.of(analysis)[0].id for due in outbox.due(10))
    assert outbox.of(analysis)[-1].event == "analysis.released"


def test_a_held_analysis_can_be_cancelled_before_any_of_it_has_left(
    ledger: Ledger, outbox: Outbox, analysis: str
) -> None:
    partly = begun(outbox)
    outbox.stored(partly, 1, 6)
    outbox.hold(partly, DIFFERENCES, "They do not agree.")
    with pytest.raises(Conflict, match="being delivered"):
        ledger.cancel(analysis, BY)
    with ledger._write() as connection:
        connection.execute(DELIVERIES.update().where(DELIVERIES.c.id == partly.id).values(done=0))
    assert ledger.cancel(analysis, BY).analysis.state is State.CANCELLED
    assert {each.channel for each in outbox.of(analysis)} == {Channel.WEBHOOK}
    assert outbox.of(analysis)[-1].event == "analysis.cancelled"


def test_a_later_revision_is_held_while_its_analysis_stays_completed(
    ledger: Ledger, outbox: Outbox, analysis: str
) -> None:
    outbox.delivered(begun(outbox), 1.0)
    with ledger._write() as connection:
        connection.execute(ANALYSES.update().values(state=State.COMPLETED.value))
        second = outbox.add_stow(connection, analysis, 2)
    outbox.hold(begun(outbox), DIFFERENCES, "They do not agree.")
    assert {each.id: each.state for each in outbox.listing()}[second] is DeliveryState.HELD
    record = ledger.get(analysis)
    assert (record.analysis.state, record.held) == (State.COMPLETED, DIFFERENCES)
    ledger.release(analysis, "It is the right patient.", operator())
    assert ledger.get(analysis).analysis.state is State.COMPLETED
    assert second in {due.id for due in outbox.due(10)}


def test_the_same_revision_is_delivered_by_one_row(ledger: Ledger, outbox: Outbox, analysis: str) -> None:
    first = begun(outbox)
    outbox.dead(first, "archive-refused", "No.")
    with ledger._write() as connection:
        assert outbox.add_stow(connection, analysis, 1) == first.id
    assert [each.id for each in outbox.of(analysis) if each.channel is Channel.STOW] == [first.id]
    assert first.id in {due.id for due in outbox.due(10)}


def test_what_is_urgent_goes_first(ledger: Ledger, outbox: Outbox) -> None:
    ids = [ledger.accept(ORDER, BY)[0].analysis.id for _ in range(3)]
    with ledger._write() as connection:
        for analysis_id, rank in zip(ids, (2, 0, 1), strict=True):
            connection.execute(ANALYSES.update().where(ANALYSES.c.id == analysis_id).values(rank=rank))
            outbox.add_stow(connection, analysis_id, 1)
    assert [due.rank for due in outbox.due(10)] == [0, 1, 2]
    assert [due.rank for due in outbox.due(2)] == [0, 1]
    with ledger._write() as connection:
        connection.execute(DELIVERIES.update().values(next=datetime.now(UTC) + timedelta(hours=1)))
    assert outbox.due(10) == ()


def test_reports_go_before_webhooks(ledger: Ledger, outbox: Outbox, analysis: str) -> None:
    later = ledger.accept(ORDER, BY)[0].analysis.id
    with ledger._write() as connection:
        outbox.tell(connection, analysis, "analysis.completed")
        outbox.add_stow(connection, later, 1)
    due = outbox.due(10)
    channel_of = {each.id: each.channel for each in outbox.listing()}
    channels = [channel_of[each.id] for each in due]
    assert channels == sorted(channels, key=lambda each: each is Channel.WEBHOOK)
    assert channels[:2] == [Channel.STOW] * 2
    assert max(each.rank for each in due[:2]) < min(each.rank for each in due[2:])


def test_who_killed_its_worker_is_a_dead_letter_too(ledger: Ledger, outbox: Outbox, analysis: str) -> None:
    assert outbox.killers() == ()
    with ledger._write() as connection:
        connection.execute(ANALYSES.update().values(state=State.FAILED.value, failure_reason="kills-worker"))
    assert outbox.killers() == (analysis,)
