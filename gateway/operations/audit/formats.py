"""A record in the encodings of an export, one a line: our own JSON, FHIR R4 AuditEvent, DICOM audit message."""

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any
from xml.etree import ElementTree as ET

from gateway.operations.audit.canonical import canonical
from gateway.operations.audit.events import Action, EventType
from gateway.operations.audit.records import AuditRecord

SCHEME = "99PATHSERVE"
_SOURCE = "pathserve"
_NAMES = {
    EventType.APPLICATION_ACTIVITY: "Application Activity",
    EventType.AUDIT_LOG_USED: "Audit Log Used",
    EventType.INSTANCES_ACCESSED: "DICOM Instances Accessed",
    EventType.INSTANCES_TRANSFERRED: "DICOM Instances Transferred",
    EventType.EXPORT: "Export",
    EventType.ORDER_RECORD: "Order Record",
    EventType.PATIENT_RECORD: "Patient Record",
    EventType.QUERY: "Query",
    EventType.SECURITY_ALERT: "Security Alert",
    EventType.USER_AUTHENTICATION: "User Authentication",
}
_DCM = "http://dicom.nema.org/resources/ontology/DCM"
_FHIR_SOURCE_TYPE = "http://terminology.hl7.org/CodeSystem/security-source-type"
_FHIR_ENTITY_TYPE = "http://terminology.hl7.org/CodeSystem/audit-entity-type"
_FHIR_LIFECYCLE = "http://terminology.hl7.org/CodeSystem/dicom-audit-lifecycle"
_LIFECYCLE = {Action.CREATE: "1", Action.READ: "6", Action.UPDATE: "3", Action.DELETE: "15"}
"""Origination, access, amendment, permanent erasure (PS3.15 A.5.1.2.3); an execution is none of them."""


def jsonl(record: AuditRecord) -> str:
    """Every column; `hash` and `previous` let whoever gets it check the chain again."""
    return canonical(
        {name: getattr(record, name) for name in AuditRecord.__slots__ if name not in ("time", "detail")}
        | {"time": _time(record), "detail": record.details}
    )


def fhir(record: AuditRecord) -> str:
    """FHIR R4 (4.0.1) AuditEvent, for a file of NDJSON."""
    agent: dict[str, Any] = {
        "who": {"identifier": {"value": record.actor}},
        "requestor": True,
        "type": _concept(f"urn:{_SOURCE}:actor", record.actor_kind, record.actor_kind),
    }
    if record.address:
        agent["network"] = {"address": record.address, "type": "2"}
    tenant = [("tenant", record.tenant)] if record.tenant else []
    entity: dict[str, Any] = {
        "what": {"identifier": {"value": record.entity or _SOURCE}},
        "type": {"system": _FHIR_ENTITY_TYPE, "code": "2", "display": "System Object"},
        "name": record.entity_kind or "server",
        "detail": [{"type": name, "valueString": text} for name, text in (*tenant, *_details(record))],
    }
    lifecycle = _LIFECYCLE.get(Action(record.action))
    if lifecycle is not None:
        entity["lifecycle"] = {"system": _FHIR_LIFECYCLE, "code": lifecycle}
    resource = {
        "resourceType": "AuditEvent",
        "id": f"audit-{record.seq}",
        "type": {"system": _DCM, "code": record.type, "display": _NAMES[EventType(record.type)]},
        "subtype": [{"system": f"urn:{_SOURCE}:audit", "code": record.subtype}],
        "action": record.action,
        "recorded": _time(record),
        "outcome": record.outcome,
        "agent": [agent],
        "source": {
            "observer": {"display": _SOURCE},
            "type": [{"system": _FHIR_SOURCE_TYPE, "code": "4", "display": "Application Server"}],
        },
        "entity": [entity],
    }
    return json.dumps(resource, ensure_ascii=False, separators=(",", ":"))


def dicom(record: AuditRecord) -> str:
    """DICOM audit message (PS3.15 A.5.1), an XML document in one line."""
    message = ET.Element("AuditMessage")
    event = ET.SubElement(
        message,
        "EventIdentification",
        EventActionCode=record.action,
        EventDateTime=_time(record),
        EventOutcomeIndicator=record.outcome,
    )
    _coded(event, "EventID", record.type, "DCM", _NAMES[EventType(record.type)])
    _coded(event, "EventTypeCode", record.subtype, SCHEME, record.subtype)
    network = {"NetworkAccessPointID": record.address, "NetworkAccessPointTypeCode": "2"} if record.address else {}
    participant = ET.SubElement(
        message, "ActiveParticipant", {"UserID": record.actor, "UserIsRequestor": "true", **network}
    )
    _coded(participant, "RoleIDCode", record.actor_kind, SCHEME, record.actor_kind)
    source = {"AuditEnterpriseSiteID": record.tenant} if record.tenant else {}
    identification = ET.SubElement(message, "AuditSourceIdentification", {"AuditSourceID": _SOURCE, **source})
    ET.SubElement(identification, "AuditSourceTypeCode", {"csd-code": "4"})
    lifecycle = _LIFECYCLE.get(Action(record.action))
    entity = ET.SubElement(
        message,
        "ParticipantObjectIdentification",
        {
            "ParticipantObjectID": record.entity or _SOURCE,
            "ParticipantObjectTypeCode": "2",
            **({} if lifecycle is None else {"ParticipantObjectDataLifeCycle": lifecycle}),
        },
    )
    kind = record.entity_kind or "server"
    _coded(entity, "ParticipantObjectIDTypeCode", kind, SCHEME, kind)
    ET.SubElement(entity, "ParticipantObjectName").text = record.entity or _SOURCE
    for name, text in _details(record):
        ET.SubElement(
            entity, "ParticipantObjectDetail", type=name, value=base64.b64encode(text.encode()).decode("ascii")
        )
    return ET.tostring(message, encoding="unicode")


FORMATS: Mapping[str, Callable[[AuditRecord], str]] = {"jsonl": jsonl, "fhir": fhir, "dicom": dicom}


def _time(record: AuditRecord) -> str:
    return record.time.isoformat(timespec="microseconds")


def _details(record: AuditRecord) -> list[tuple[str, str]]:
    """What else is known, and the record's hash, as names and texts; neither encoding has room for an empty one."""
    texts = [
        (name, value if isinstance(value, str) else canonical(value))
        for name, value in record.details.items()
        if name.strip() and value not in ("", None)
    ]
    return [*((name, text) for name, text in texts if text.strip()), ("hash", record.hash)]


def _concept(system: str, code: str, display: str) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code, "display": display}]}


def _coded(parent: ET.Element, name: str, code: str, scheme: str, meaning: str) -> None:
    ET.SubElement(parent, name, {"csd-code": code, "codeSystemName": scheme, "originalText": meaning})
