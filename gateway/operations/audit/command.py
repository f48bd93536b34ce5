"""`pathserve audit …`: whether the trail is what was written, and the trail for other systems."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import sqlalchemy as sa

from gateway.operations.audit.events import Action, AuditEvent, EventType
from gateway.operations.audit.evidence import read_only
from gateway.operations.audit.formats import FORMATS
from gateway.operations.audit.records import AuditQuery, records
from gateway.operations.audit.table import AUDIT_HEAD
from gateway.operations.audit.trail import append
from gateway.operations.audit.verify import verify
from gateway.operations.database import database_errors, open_database
from gateway.operations.errors import InvalidInput
from gateway.operations.operator import operator
from gateway.operations.settings import Settings
from gateway.operations.settings import settings as load_settings


def verify_trail(expect: str | None) -> int:
    """Print the verdict; 0 where the trail is whole, 1 where not. `expect`: SEQ:HASH, as an earlier verdict has it.

    Raises NotFound, InvalidInput, StateError.
    """
    settings = load_settings()
    expected = _expected(expect)
    with read_only(settings.ledger_url) as engine, database_errors():
        verdict = verify(engine, settings.state, expected)
    if verdict.broken is not None:
        print(f"broken: {verdict.broken.damage.value} at record {verdict.broken.seq}")
        print(verdict.broken.sentence)
        return 1
    print(f"whole: {verdict.records} records, {verdict.anchors} of them anchored by this server")
    print(f"last: {verdict.records}:{verdict.hash}")
    return 0


def export_trail(encoding: str, since: str | None, until: str | None, tenant: str | None) -> int:
    """Print the records (of one tenant; from `since` on, before `until`) and add one more, of the export itself.

    `encoding` is one of FORMATS; times are ISO 8601, of UTC unless they say otherwise. Raises InvalidInput, StateError,
    DiskFull.
    """
    settings = load_settings()
    query = AuditQuery(tenant=tenant, since=_time("--from", since), until=_time("--to", until))
    with _opened(settings) as engine, database_errors():
        last = _note_export(engine, encoding, query)
        for record in records(engine, query, last):
            sys.stdout.write(FORMATS[encoding](record) + "\n")
    return 0


@contextmanager
def _opened(settings: Settings) -> Iterator[sa.Engine]:
    engine = open_database(settings.ledger_url, settings.state)
    try:
        yield engine
    finally:
        engine.dispose()


def _note_export(engine: sa.Engine, kind: str, query: AuditQuery) -> int:
    """Write the export down before anything is given out; the number of the last record before it."""
    by = operator()
    bounds = {"from": query.since, "to": query.until}
    with engine.execution_options(ledger_writes=True).begin() as connection:
        head = connection.execute(sa.select(AUDIT_HEAD).where(AUDIT_HEAD.c.id == 1).with_for_update()).one()
        event = AuditEvent(
            type=EventType.AUDIT_LOG_USED,
            subtype="audit-exported",
            action=Action.READ,
            tenant=query.tenant or "",
            entity_kind="audit",
            detail={"format": kind, **{name: time.isoformat() for name, time in bounds.items() if time is not None}},
        )
        append(connection, event.by(by))
        return int(head.seq)


def _time(option: str, text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInput(f"{option} takes a time such as 2026-11-26 or 2026-11-26T21:00:00+01:00.") from None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _expected(text: str | None) -> tuple[int, str] | None:
    if text is None:
        return None
    seq, _, digest = text.partition(":")
    if not (seq.isascii() and seq.isdecimal() and len(digest) == 64):
        raise InvalidInput("--expect takes SEQ:HASH, as the last line of an earlier `pathserve audit verify` has it.")
    return int(seq), digest
