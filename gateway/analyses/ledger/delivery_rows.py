"""A delivery as its row in the outbox tells it; how rows are locked, fenced, and written into the audit trail."""

from typing import Any

import sqlalchemy as sa

from gateway.analyses.ledger.schema import ANALYSES, DELIVERIES
from gateway.domain.delivery import Channel, Delivery, DeliveryState
from gateway.domain.principal import Principal
from gateway.operations import audit
from gateway.operations.audit import Action, AuditEvent, EventType
from gateway.operations.errors import TurnLost


def workflow_of(row: sa.Row[Any]) -> str:
    return f"{row.id}.{row.replays}.{row.tries}"


def parts_of(workflow: str) -> tuple[str, int, int]:
    delivery_id, replays, tries = workflow.rsplit(".", 2)
    return delivery_id, int(replays), int(tries)


def locked(connection: sa.Connection, delivery_id: str) -> sa.Row[Any] | None:
    """The row, locked until the transaction ends; its analysis before it, as everybody locks them."""
    analysis = sa.select(DELIVERIES.c.analysis_id).where(DELIVERIES.c.id == delivery_id).scalar_subquery()
    connection.execute(sa.select(ANALYSES.c.number).where(ANALYSES.c.id == analysis).with_for_update())
    return connection.execute(sa.select(DELIVERIES).where(DELIVERIES.c.id == delivery_id).with_for_update()).first()


def change(connection: sa.Connection, delivery_id: str, **values: Any) -> sa.Row[Any]:
    return connection.execute(
        DELIVERIES.update().where(DELIVERIES.c.id == delivery_id).values(**values).returning(*DELIVERIES.c)
    ).one()


def change_fenced(connection: sa.Connection, delivery: Delivery, **values: Any) -> None:
    row = locked(connection, delivery.id)
    if row is None or (row.worker, row.replays, row.tries) != (delivery.worker, delivery.replays, delivery.tries):
        raise TurnLost("Another worker has the delivery now.")
    change(connection, delivery.id, **values)


def record_of(
    delivery: Delivery,
    kind: EventType,
    subtype: str,
    outcome: audit.Outcome = audit.Outcome.SUCCESS,
    by: Principal | None = None,
    **detail: Any,
) -> AuditEvent:
    record = AuditEvent(
        type=kind,
        subtype=subtype,
        action=Action.EXECUTE,
        outcome=outcome,
        tenant=delivery.tenant,
        actor="worker",
        entity_kind="analysis",
        entity=delivery.analysis,
        detail={
            "delivery": delivery.id,
            "channel": delivery.channel.value,
            "target": delivery.target,
            "event": delivery.event,
            "revision": delivery.revision,
            "tries": delivery.tries,
        }
        | detail,
    )
    return record if by is None else record.by(by)


def delivery_of(row: sa.Row[Any]) -> Delivery:
    return Delivery(
        number=row.number,
        id=row.id,
        tenant=row.tenant,
        analysis=row.analysis_id,
        revision=row.revision,
        channel=Channel(row.channel),
        target=row.target,
        event=row.event,
        body=row.body,
        state=DeliveryState(row.state),
        tries=row.tries,
        replays=row.replays,
        done=row.done,
        next=row.next,
        worker=row.worker,
        reason=row.reason,
        detail=row.detail,
        created=row.created,
        settled=row.settled,
    )
