"""Holding an analysis: order and slides do not agree, and nothing of it moves before a person has released it."""

from collections.abc import Sequence
from datetime import UTC, datetime

import sqlalchemy as sa

from gateway.analyses.events import add_event
from gateway.analyses.schema import ANALYSES
from gateway.domain.analysis import State
from gateway.domain.identity import Difference
from gateway.operations import audit, codec
from gateway.operations.audit import Action, AuditEvent, EventType


def hold(connection: sa.Connection, analysis_id: str, differences: Sequence[Difference]) -> None:
    """Hold a running analysis, whose row this transaction holds: state, event and audit record.

    The event and the record name attributes, never values.
    """
    tenant = connection.execute(
        ANALYSES.update()
        .where(ANALYSES.c.id == analysis_id)
        .values(
            state=State.HELD_IDENTITY.value,
            held=[codec.dump(each) for each in differences],
            worker=None,
            updated=datetime.now(UTC),
        )
        .returning(ANALYSES.c.tenant)
    ).scalar_one()
    attributes = sorted({each.attribute for each in differences})
    told = {"state": State.HELD_IDENTITY.value, "attributes": attributes}
    add_event(connection, analysis_id, "state", told)
    audit.append(
        connection,
        AuditEvent(
            type=EventType.SECURITY_ALERT,
            subtype="analysis-held",
            action=Action.UPDATE,
            tenant=tenant,
            actor="worker",
            entity_kind="analysis",
            entity=analysis_id,
            detail={"attributes": attributes},
        ),
    )
