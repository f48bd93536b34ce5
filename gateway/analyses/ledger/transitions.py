"""What a caller may change of an analysis: each change guarded, told and audited in the transaction that makes it.

Every one locks the analysis's row first (on SQLite the transaction itself does), so that changes come one after the
other and an analysis ends exactly once, whoever races.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from gateway.analyses.ledger.events import add_event, last_state
from gateway.analyses.ledger.outbox import Outbox
from gateway.analyses.ledger.records import RANK, version_of
from gateway.analyses.ledger.schema import ANALYSES
from gateway.domain.analysis import Failure, State
from gateway.domain.order import Order, Priority
from gateway.domain.principal import Principal, PrincipalKind
from gateway.operations import audit, codec
from gateway.operations.audit import Action, AuditEvent, EventType
from gateway.operations.errors import Conflict, NotFound, PreconditionFailed, WrongTenant

FINAL = tuple(state.value for state in State if state.final)


def now() -> datetime:
    return datetime.now(UTC)


def row_of(connection: sa.Connection, analysis_id: str, *, lock: bool = False) -> sa.Row[Any]:
    """The analysis's row, locked until the transaction ends where `lock` says so. Raises NotFound."""
    query = sa.select(ANALYSES).where(ANALYSES.c.id == analysis_id)
    row = connection.execute(query.with_for_update() if lock else query).first()
    if row is None:
        raise NotFound("There is no analysis with this id.")
    return row


def own_row(connection: sa.Connection, analysis_id: str, by: Principal, if_match: str | None = None) -> sa.Row[Any]:
    """The locked row of an analysis that is the caller's tenant's; our own command line works for every tenant.

    Raises NotFound, WrongTenant, and PreconditionFailed where the version is not `if_match` any more.
    """
    row = row_of(connection, analysis_id, lock=True)
    if by.kind is not PrincipalKind.DEVICE and row.tenant != by.tenant:
        raise WrongTenant("The analysis belongs to another tenant.")
    if if_match is not None and if_match != version_of(row):
        raise PreconditionFailed("The analysis has changed since it was read; read it again, then decide.")
    return row


def note(
    connection: sa.Connection, by: Principal, row: sa.Row[Any], subtype: str, action: Action, **detail: object
) -> None:
    """Write the audit record of what a caller did with an analysis."""
    audit.append(connection, audit_event(by, row.tenant, row.id, subtype, action, **detail))


def audit_event(
    by: Principal, tenant: str, analysis_id: str, subtype: str, action: Action, **detail: object
) -> AuditEvent:
    """What the audit trail says of something that a caller did with an analysis."""
    return AuditEvent(
        type=EventType.ORDER_RECORD,
        subtype=subtype,
        action=action,
        tenant=tenant,
        entity_kind="analysis",
        entity=analysis_id,
        detail=detail,
    ).by(by)


def change(connection: sa.Connection, analysis_id: str, **values: object) -> None:
    """Write new values into a row that this transaction holds."""
    connection.execute(ANALYSES.update().where(ANALYSES.c.id == analysis_id).values(**values, updated=now()))


def end(
    connection: sa.Connection, outbox: Outbox, analysis_id: str, state: State, failure: Failure | None = None
) -> None:
    """End an analysis whose locked row says that it has not ended: state, event, and webhooks."""
    change(
        connection,
        analysis_id,
        state=state.value,
        worker=None,
        held=None,
        failure_reason=failure.reason if failure else None,
        failure_detail=failure.detail if failure else None,
    )
    told = {"reason": failure.reason, "detail": failure.detail} if failure else {}
    add_event(connection, analysis_id, "state", {"state": state.value} | told)
    outbox.tell(connection, analysis_id, f"analysis.{state.value}")


def cancel(connection: sa.Connection, outbox: Outbox, analysis_id: str, by: Principal, if_match: str | None) -> None:
    """Raises Conflict where it has ended otherwise or its delivery has begun. Repeating it changes nothing.

    One that was held before any of its report had left can be cancelled still: its delivery is withdrawn.
    """
    row = own_row(connection, analysis_id, by, if_match)
    state = State(row.state)
    if state is State.CANCELLED or (state is State.RUNNING and row.cancel_requested):
        return
    if state.final:
        raise Conflict(f"The analysis has already ended ({state.value}); there is nothing to cancel.")
    if row.delivering and not (state is State.HELD_IDENTITY and outbox.withdraw(connection, analysis_id)):
        raise Conflict("The report is being delivered; the analysis can no longer be cancelled.")
    if state is State.RUNNING and row.worker is not None:
        change(connection, analysis_id, cancel_requested=True)
    else:
        end(connection, outbox, analysis_id, State.CANCELLED)
    note(connection, by, row, "analysis-cancelled", Action.UPDATE)


def retry(
    connection: sa.Connection, analysis_id: str, by: Principal, if_match: str | None, deadline_s: float | None
) -> None:
    """Begin a failed or cancelled one anew, as one more run; what is on disk of it is used again.

    Raises Conflict where it has not ended so, or where its report was made: that is delivered, never made anew.
    """
    row = own_row(connection, analysis_id, by, if_match)
    if row.state not in (State.FAILED.value, State.CANCELLED.value):
        raise Conflict(f"Only what has failed or was cancelled is tried again; this analysis is {row.state}.")
    if row.delivering:
        raise Conflict(
            "The report of this analysis was made: replay its delivery; where that was withdrawn, order it again."
        )
    change(
        connection,
        analysis_id,
        state=State.ACCEPTED.value,
        run=row.run + 1,
        stage="fetch",
        worker=None,
        alone=False,
        deaths=0,
        mark=None,
        held=None,
        cancel_requested=False,
        failure_reason=None,
        failure_detail=None,
        step=None,
        done=None,
        total=None,
        unit=None,
        # It chooses the models that serve now, unless those that it began with still do.
        models=None,
        deadline=None if deadline_s is None else now() + timedelta(seconds=deadline_s),
    )
    add_event(connection, analysis_id, "state", {"state": State.ACCEPTED.value, "run": row.run + 1})
    note(connection, by, row, "analysis-retried", Action.UPDATE, run=row.run + 1)


def prioritise(
    connection: sa.Connection, analysis_id: str, priority: Priority, by: Principal, if_match: str | None
) -> None:
    """Change the priority of one that has not ended. Raises Conflict."""
    row = own_row(connection, analysis_id, by, if_match)
    if row.state in FINAL:
        raise Conflict(f"The analysis has already ended ({row.state}); its priority can no longer be changed.")
    if row.priority == priority.value:
        return
    order = codec.load(Order, codec.dump(codec.loads(Order, row.order_json)) | {"priority": priority.value})
    change(connection, analysis_id, priority=priority.value, rank=RANK[priority], order_json=codec.dumps(order))
    add_event(connection, analysis_id, "priority", {"priority": priority.value})
    told = {"before": row.priority, "after": priority.value}
    note(connection, by, row, "analysis-prioritised", Action.UPDATE, **told)


def release(connection: sa.Connection, outbox: Outbox, analysis_id: str, reason: str, by: Principal) -> None:
    """Let one that is held go on in its stage, in spite of exactly the differences that it is held for.

    Raises Conflict where nothing of it is held.
    """
    row = own_row(connection, analysis_id, by)
    if not row.held or row.state not in (State.HELD_IDENTITY.value, State.COMPLETED.value):
        raise Conflict(f"The analysis is not held ({row.state}); there is nothing to release.")
    held = list(row.held)
    # One that has ended may be held as well: a later revision of its report waits to be sent.
    state = State.RUNNING.value if row.state == State.HELD_IDENTITY.value else row.state
    # The time in which it waited for a person does not count; nor is its deadline moved with the clock meanwhile.
    deadline = None if row.deadline is None else row.deadline + (now() - last_state(connection, analysis_id))
    released = [*(row.released or ()), *held]
    change(connection, analysis_id, state=state, held=None, released=released, deadline=deadline)
    add_event(connection, analysis_id, "state", {"state": state, "released": len(held)})
    outbox.release(connection, analysis_id)
    outbox.tell(connection, analysis_id, "analysis.released")
    attributes = sorted({str(each["attribute"]) for each in held})
    note(connection, by, row, "analysis-released", Action.UPDATE, reason=reason, attributes=attributes)
