"""What an audit record says, in the words of DICOM (PS3.15 A.5) and of FHIR AuditEvent."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from gateway.domain.principal import Principal


class EventType(StrEnum):
    """Event ids (DCM, CID 400)."""

    APPLICATION_ACTIVITY = "110100"
    AUDIT_LOG_USED = "110101"
    INSTANCES_ACCESSED = "110103"
    INSTANCES_TRANSFERRED = "110104"
    EXPORT = "110106"
    ORDER_RECORD = "110109"
    PATIENT_RECORD = "110110"
    QUERY = "110112"
    SECURITY_ALERT = "110113"
    USER_AUTHENTICATION = "110114"


class Action(StrEnum):
    """EventActionCode: create, read, update, delete, execute."""

    CREATE = "C"
    READ = "R"
    UPDATE = "U"
    DELETE = "D"
    EXECUTE = "E"


class Outcome(StrEnum):
    """EventOutcomeIndicator."""

    SUCCESS = "0"
    MINOR_FAILURE = "4"
    SERIOUS_FAILURE = "8"
    MAJOR_FAILURE = "12"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent:
    """One record before it is chained. No patient data, no secrets: patients are found through the analysis.

    `subtype` is the operation, e.g. `analysis-created`, `report-read`, `login-refused`. `actor` is the principal's
    subject (`worker` for our own), `address` where the request came from. `entity` is an analysis, a model, a delivery.
    """

    type: EventType
    subtype: str
    action: Action
    outcome: Outcome = Outcome.SUCCESS
    tenant: str = ""
    actor: str = "pathserve"
    actor_kind: str = "device"
    address: str | None = None
    entity_kind: str | None = None
    entity: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    def by(self, who: Principal) -> "AuditEvent":
        """The same record, of what this principal did."""
        return replace(self, actor=who.subject, actor_kind=who.kind.value, address=who.address)
