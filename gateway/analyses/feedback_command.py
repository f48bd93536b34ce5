"""`pathserve feedback export`: what readers said of reports, as training signal."""

import json

from gateway.analyses.command_ledger import command_ledger
from gateway.operations.audit import Action, AuditEvent, EventType
from gateway.operations.operator import operator


def export() -> int:
    """Print all feedback as JSON lines, without patients and free text; audited. Raises StateError."""
    with command_ledger("feedback") as (settings, ledger):
        lines = [json.dumps(line, ensure_ascii=False) for line in ledger.feedback.signal(settings.state / "analyses")]
        by = operator()
        ledger.audit(
            AuditEvent(
                type=EventType.EXPORT,
                subtype="feedback-exported",
                action=Action.READ,
                tenant=by.tenant,
                detail={"count": len(lines)},
            ).by(by)
        )
        # Only then: whoever stops reading in the midst has had them too.
        for line in lines:
            print(line)
    return 0
