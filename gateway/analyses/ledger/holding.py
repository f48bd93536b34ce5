"""Holding an analysis: order and slides do not agree, and nothing of it moves before a person has released it."""

from collections.abc import Sequence
from datetime import UTC, datetime

import sqlalchemy as sa

from gateway.analyses.ledger.events import add_event
from gateway.analyses.ledger.schema import ANALYSES
from gateway.domain.analysis import State
from gateway.domain.identity import Difference
from gateway.operations import audit, codec
from gateway.operations.audit import Action, AuditEvent, EventType


def hold(connection: sa.Connection, analysis_id: str, differences: Sequence[Difference]) -> None:
    """Hold an analysis whose row this transaction has locked: state, event and audit record.

    One that has ended keeps its state: a later revision of its report waits to leave. The event and the record name
    attributes, never values.
    """
    row = connection.execute(sa.select(ANALYSES.c.state, ANALYSES.c.tenant).where(ANALYSES.c.id == analysis_id)).one()
    state = row.state if State(row.state).final else State.HELD_IDENTITY.value
    connection.execute(
        ANALYSES.update()
        .where(ANALYSES.c.id == analysis_id)
        .values(state=state, held=[codec.dump(each) for each in differences], worker=None, updated=datetime.now(UTC))
    )
    attributes = sorted({each.attribute for each in differences})
    if state != row.state:
        add_event(connection, analysis_id, "state", {"state": state, "attributes": attributes})
    audit.append(
        connection,
        AuditEvent(
            type=EventType.SECURITY_ALERT,
            subtype="analysis-held",
            action=Action.UPDATE,
            tenant=row.tenant,
            actor="worker",
            entity_kind="analysis",
            entity=analysis_id,
            detail={"attributes": attributes},
        ),
    )
