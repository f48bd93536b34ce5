"""Turns and rescues, as the ledger keeps them, on SQLite and on PostgreSQL."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway.analyses.ledger import Ledger
from gateway.analyses.ledger.rescues import MAX_DEATHS, Rescue
from gateway.analyses.ledger.schema import ANALYSES, EVENTS
from gateway.analyses.ledger.turns import Stage, Turn, workflow_id
from gateway.domain.analysis import Failure, Progress, State, Step
from gateway.domain.delivery import Channel
from gateway.domain.identity import Difference, Problem
from gateway.domain.order import Priority
from gateway.domain.report import ReportState
from gateway.domain.revision import Revision
from gateway.operations.audit import AuditQuery
from gateway.operations.errors import Cancelled, TurnLost
from tests.analyses.place import CALLER, order

A, B = "host-1-a", "host-2-b"
DIFFERENCE = Difference("patient id", "1.2.3.4", Problem.DIFFERS, "0" * 64)


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    url = f"sqlite:///{tmp_path / 'p.db'}" if request.param == "sqlite" else request.getfixturevalue("postgres")
    opened = Ledger.open(url, tmp_path)
    yield opened
    opened.close()


def accept(ledger: Ledger, priority: Priority = Priority.ROUTINE, deadline_s: float | None = None) -> str:
    return ledger.accept(order(priority), CALLER, deadline_s=deadline_s)[0].analysis.id


def begin(ledger: Ledger, analysis: str, stage: Stage = Stage.FETCH, worker: str = A) -> Turn:
    turn = ledger.runs.begin(workflow_id(analysis, 1, stage), worker)
    assert turn is not None
    return turn


def report_of(analysis: str) -> Revision:
    return Revision(
        analysis_id=analysis,
        number=1,
        state=ReportState.PRELIMINARY,
        folder="artifacts",
        report_sha256="0" * 64,
        documents=("1.2.3",),
        made=datetime.now(UTC),
    )


def states(ledger: Ledger, analysis: str) -> list[str]:
    return [event.data["state"] for event in ledger.events(analysis) if event.kind == "state"]


def reported(ledger: Ledger, analysis: str) -> None:
    ledger.runs.advance(begin(ledger, analysis))
    ledger.runs.reported(begin(ledger, analysis, Stage.INFER), report_of(analysis))


def test_an_analysis_goes_from_stage_to_stage(ledger: Ledger) -> None:
    analysis = accept(ledger)
    runs = ledger.runs
    [due] = runs.waiting(rank=2, limit=5)
    assert (due.workflow, due.stage) == (f"{analysis}.1.fetch", Stage.FETCH)
    turn = begin(ledger, analysis)
    assert (turn.attempt, turn.order, turn.alone) == (1, order(), False)
    assert runs.waiting(2, 5) == runs.begun() == ()
    runs.note(turn, Step.FETCH, "started", attempt=1)
    runs.finished_step(turn, Step.FETCH, 0.5)
    runs.finished_step(turn, Step.FETCH, 0.7)
    runs.advance(turn)
    assert [each.workflow for each in runs.begun()] == [f"{analysis}.1.infer"]
    turn = begin(ledger, analysis, Stage.INFER)
    assert turn.attempt == 2
    runs.reported(turn, report_of(analysis))
    assert runs.begun() == ()
    record = ledger.get(analysis)
    assert (record.analysis.state, record.stage, record.delivering) == (State.RUNNING, "deliver", True)
    assert [each.number for each in ledger.revisions.of(analysis)] == [1]
    assert [each.channel for each in ledger.outbox.of(analysis)] == [Channel.STOW]
    steps = [event.data["status"] for event in ledger.events(analysis) if event.kind == "step"]
    assert steps == ["started", "finished"]
    assert states(ledger, analysis) == ["accepted", "running"]


def test_nothing_of_a_turn_is_written_after_another_has_begun(ledger: Ledger) -> None:
    analysis = accept(ledger)
    late = begin(ledger, analysis)
    assert ledger.runs.begin(workflow_id(analysis, 1, "fetch"), B) is None
    [rescue] = ledger.rescues.take_over(A)
    assert rescue == Rescue(analysis, State.RUNNING, counted=False)
    now = begin(ledger, analysis, worker=B)
    progress = Progress(Step.FETCH, 7, 9, "bytes")
    for write in (
        lambda: ledger.runs.progress(late, progress),
        lambda: ledger.runs.note(late, Step.FETCH, "started"),
        lambda: ledger.runs.finished_step(late, Step.FETCH, 1.0),
        lambda: ledger.runs.advance(late),
        lambda: ledger.runs.reported(late, report_of(analysis)),
        lambda: ledger.runs.hold(late, [DIFFERENCE]),
        lambda: ledger.runs.finish(late, State.FAILED, Failure("internal", "No.")),
    ):
        with pytest.raises(TurnLost):
            write()
    ledger.runs.give_back(analysis, A, late.attempt)
    assert ledger.get(analysis).progress is None
    ledger.runs.progress(now, progress)
    assert ledger.get(analysis).progress == progress
    assert ledger.revisions.of(analysis) == ()


def test_what_is_given_back_is_due_at_once(ledger: Ledger) -> None:
    analysis = accept(ledger)
    ledger.runs.give_back(analysis, A, begin(ledger, analysis).attempt)
    assert [each.workflow for each in ledger.runs.begun()] == [f"{analysis}.1.fetch"]
    assert begin(ledger, analysis, worker=B).attempt == 2


def test_a_wrong_stage_or_run_is_not_due(ledger: Ledger) -> None:
    analysis = accept(ledger)
    for workflow in (f"{analysis}.1.infer", f"{analysis}.2.fetch", "nothing.1.fetch"):
        assert not ledger.runs.is_due(workflow)
        assert ledger.runs.begin(workflow, A) is None
    assert not ledger.runs.is_due(analysis)


def test_a_cancellation_wins_until_the_report_is_there(ledger: Ledger) -> None:
    analysis = accept(ledger)
    ledger.runs.advance(begin(ledger, analysis))
    turn = begin(ledger, analysis, Stage.INFER)
    ledger.cancel(analysis, CALLER)
    assert ledger.runs.held_by(A)[analysis].cancel_requested
    with pytest.raises(Cancelled):
        ledger.runs.reported(turn, report_of(analysis))
    assert ledger.runs.finish(turn, State.FAILED, Failure("internal", "No.")) is State.CANCELLED
    assert states(ledger, analysis) == ["accepted", "running", "cancelled"]
    assert ledger.outbox.of(analysis) == ()


def test_what_waits_for_its_next_stage_is_cancelled_at_once(ledger: Ledger) -> None:
    analysis = accept(ledger)
    ledger.runs.advance(begin(ledger, analysis))
    assert ledger.cancel(analysis, CALLER).analysis.state is State.CANCELLED


def test_a_held_analysis_waits_for_a_person(ledger: Ledger) -> None:
    analysis = accept(ledger, deadline_s=60.0)
    ledger.runs.hold(begin(ledger, analysis), [DIFFERENCE])
    record = ledger.get(analysis)
    assert (record.analysis.state, record.held) == (State.HELD_IDENTITY, (DIFFERENCE,))
    assert ledger.runs.begun() == ()
    assert not ledger.runs.is_due(f"{analysis}.1.fetch")
    time.sleep(0.2)
    before = ledger.get(analysis).deadline
    ledger.prioritise(analysis, Priority.STAT, CALLER)  # changes nothing of that
    after = ledger.release(analysis, "checked at the microscope", CALLER).deadline
    assert before is not None
    assert after is not None
    assert after - before >= timedelta(seconds=0.2)
    assert begin(ledger, analysis).released == {DIFFERENCE.digest}


def test_a_death_counts_only_of_what_ran_alone_and_got_no_further(ledger: Ledger) -> None:
    analysis = accept(ledger)
    ledger.runs.advance(begin(ledger, analysis))

    def died(done: int | None) -> Rescue:
        turn = begin(ledger, analysis, Stage.INFER)
        if done is not None:
            ledger.runs.progress(turn, Progress(Step.INFER, done, 100, "tiles"))
        [rescue] = ledger.rescues.take_over(A)
        return rescue

    assert not died(10).counted  # it was not alone
    assert begin(ledger, analysis, Stage.INFER).alone
    assert not died(20).counted  # it got further
    assert died(None).counted
    assert not died(30).counted
    assert died(30).counted
    assert ledger.get(analysis).analysis.state is State.RUNNING
    last = died(30)
    assert last == Rescue(analysis, State.FAILED, counted=True)
    failure = ledger.get(analysis).analysis.failure
    assert failure is not None
    assert failure.reason == "kills-worker"
    assert MAX_DEATHS == 3
    assert ledger.rescues.take_over(A) == ()
    # A person may try it again, from nothing.
    ledger.retry(analysis, CALLER)
    again = ledger.runs.begin(workflow_id(analysis, 2, "fetch"), A)
    assert again is not None
    assert not again.alone


def test_what_its_dead_worker_was_to_cancel_is_cancelled(ledger: Ledger) -> None:
    analysis = accept(ledger)
    begin(ledger, analysis)
    ledger.cancel(analysis, CALLER)
    assert ledger.rescues.take_over(A) == (Rescue(analysis, State.CANCELLED, counted=False),)


def test_what_a_worker_left_behind_that_is_no_more_is_free_again(ledger: Ledger) -> None:
    here, left, delivered = accept(ledger), accept(ledger), accept(ledger)
    reported(ledger, delivered)
    [due] = ledger.outbox.due(5)
    assert ledger.outbox.begin(due.workflow, B) is not None
    ledger.workers.beat(A, started=datetime.now(UTC), host="h", pid=1, parts={}, models=[])
    begin(ledger, here, worker=A)
    begin(ledger, left, worker=B)
    ledger.rescues.free_left()
    assert [each.workflow for each in ledger.runs.begun()] == [f"{left}.1.fetch"]
    assert not begin(ledger, left).alone
    assert [each.id for each in ledger.outbox.due(5)] == [due.id]


def test_what_is_out_of_time_ends_but_neither_what_a_person_holds_nor_what_is_delivered(ledger: Ledger) -> None:
    waiting, running, held, delivering = (accept(ledger, deadline_s=-1.0) for _ in range(4))
    in_time = accept(ledger, deadline_s=60.0)
    turn = begin(ledger, running)
    ledger.runs.hold(begin(ledger, held), [DIFFERENCE])
    reported(ledger, delivering)
    assert set(ledger.rescues.expire()) == {waiting, running}
    for analysis in (waiting, running):
        failure = ledger.get(analysis).analysis.failure
        assert failure is not None
        assert failure.reason == "deadline-exceeded"
    with pytest.raises(TurnLost):
        ledger.runs.advance(turn)
    assert ledger.get(held).analysis.state is State.HELD_IDENTITY
    assert not ledger.get(in_time).analysis.state.final
    assert ledger.rescues.expire() == ()


def test_a_clock_that_was_set_moves_the_deadlines(ledger: Ledger) -> None:
    analysis, ended = accept(ledger, deadline_s=60.0), accept(ledger, deadline_s=60.0)
    ledger.cancel(ended, CALLER)
    before = ledger.get(analysis).deadline
    assert before is not None
    ledger.rescues.shift(-3600.0)
    assert ledger.get(analysis).deadline == before - timedelta(hours=1)
    assert ledger.get(ended).deadline is not None
    assert ledger.rescues.expire() == (analysis,)


def test_a_clock_that_was_set_while_it_was_held_gives_it_no_other_time(ledger: Ledger) -> None:
    analysis = accept(ledger, deadline_s=60.0)
    ledger.runs.hold(begin(ledger, analysis), [DIFFERENCE])
    before = ledger.get(analysis).deadline
    assert before is not None
    hour = timedelta(hours=1)
    with ledger._write() as connection:  # the clock is set forward by an hour: all that is written is an hour older
        connection.execute(EVENTS.update().values(time=datetime.now(UTC) - hour))
        connection.execute(ANALYSES.update().values(deadline=before - hour))
    ledger.rescues.shift(hour.total_seconds())
    deadline = ledger.release(analysis, "checked at the microscope", CALLER).deadline
    assert deadline is not None
    assert 50.0 < (deadline - datetime.now(UTC)).total_seconds() < 61.0


def test_what_got_more_time_is_not_ended(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    analysis = accept(ledger, deadline_s=-1.0)
    monkeypatch.setattr(ledger.rescues, "_ids", lambda *_: (analysis,))
    ledger.cancel(analysis, CALLER)
    assert ledger.rescues.expire() == ()  # it is not told a second time
    ledger.retry(analysis, CALLER, deadline_s=60.0)
    assert ledger.rescues.expire() == ()
    assert ledger.get(analysis).analysis.state is State.ACCEPTED


def test_an_analysis_ends_with_its_delivery_or_when_it_has_waited_enough(ledger: Ledger) -> None:
    stored, refused, waits = accept(ledger), accept(ledger), accept(ledger)
    for analysis in (stored, refused, waits):
        reported(ledger, analysis)
    deliveries = {each.analysis: each for due in ledger.outbox.due(5) if (each := ledger.outbox.begin(due.workflow, A))}
    ledger.outbox.delivered(deliveries[stored], 0.1)
    ledger.outbox.dead(deliveries[refused], "archive-refused", "No.")
    assert set(ledger.runs.complete_delivered(wait_s=60.0)) == {stored, refused}
    assert ledger.get(refused).analysis.state is State.COMPLETED
    assert ledger.get(waits).analysis.state is State.RUNNING
    assert ledger.runs.complete_delivered(wait_s=-1.0) == (waits,)
    assert states(ledger, waits) == ["accepted", "running", "completed"]


def test_the_more_urgent_and_the_older_come_first(ledger: Ledger) -> None:
    routine, stat, urgent = (accept(ledger, each) for each in (Priority.ROUTINE, Priority.STAT, Priority.URGENT))
    ranks = [each.workflow.partition(".")[0] for rank in range(3) for each in ledger.runs.waiting(rank, 5)]
    assert ranks == [stat, urgent, routine]
    for analysis in (routine, urgent, stat):
        ledger.runs.advance(begin(ledger, analysis))
    assert [each.rank for each in ledger.runs.begun()] == [0, 1, 2]


def test_what_is_done_never_counts_down_within_a_step(ledger: Ledger) -> None:
    analysis = accept(ledger)
    turn = begin(ledger, analysis)
    for step, done in ((Step.FETCH, 5), (Step.FETCH, 3), (Step.INFER, 1)):
        ledger.runs.progress(turn, Progress(step, done, 9, "bytes"))
        shown = ledger.get(analysis).progress
        assert shown is not None
        assert shown.done == (1 if step is Step.INFER else 5)
    assert [event.kind for event in ledger.events(analysis)].count("progress") == 1


def test_a_turn_is_audited_where_it_makes_a_report_or_holds(ledger: Ledger) -> None:
    made, held = accept(ledger), accept(ledger)
    reported(ledger, made)
    ledger.runs.hold(begin(ledger, held), [DIFFERENCE])
    told = {(each.entity, each.subtype) for each in ledger.trail.page(AuditQuery())}
    assert {(made, "report-made"), (held, "analysis-held")} <= told
