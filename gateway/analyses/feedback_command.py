"""`pathserve feedback export`: what readers said of reports, as training signal."""

import json

from gateway.analyses.ledger import Ledger
from gateway.operations.audit import Action, AuditEvent, EventType
from gateway.operations.logging import configure_logging
from gateway.operations.operator import operator
from gateway.operations.settings import settings as load_settings
from gateway.operations.state import prepare_state


def export() -> int:
    """Print all feedback as JSON lines, without patients and free text; audited. Raises StateError."""
    settings = load_settings()
    prepare_state(settings)
    configure_logging("feedback", settings.log_level, settings.state / "logs", terminal=False)
    ledger = Ledger.open(settings.ledger_url, settings.state)
    try:
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
    finally:
        ledger.close()
    return 0
