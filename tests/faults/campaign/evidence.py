"""What there is when all is over: the database's rows, the archive's objects, the webhooks, what is left behind."""

import fcntl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import sqlalchemy as sa

from gateway.analyses.ledger.schema import ANALYSES, DELIVERIES, EVENTS, REVISIONS
from tests.faults.campaign.site import Site

_ENGINE_ENDS = ("SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Evidence:
    """`stored`: SOP instance UIDs of results in the archive, by study, each as often as it is listed; `made`: those of
    the files on disk, by analysis. `taken`: webhook ids that the receiver took, each as often as it did."""

    analyses: tuple[Row, ...]
    events: tuple[Row, ...]
    revisions: tuple[Row, ...]
    deliveries: tuple[Row, ...]
    workflows_open: tuple[str, ...]
    stored: Mapping[str, tuple[str, ...]]
    made: Mapping[str, tuple[str, ...]]
    taken: Mapping[str, int]
    refused: int
    audit: str
    processes: tuple[str, ...]
    parts: tuple[str, ...]
    locked: tuple[str, ...]


def rows_of(site: Site, table: sa.Table) -> tuple[Row, ...]:
    """All rows of a table, by its primary key."""
    engine = open_engine(site.database_url)
    try:
        with engine.connect() as connection:
            query = sa.select(table).order_by(*table.primary_key.columns)
            return tuple(dict(row._mapping) for row in connection.execute(query))
    finally:
        engine.dispose()


def gather(site: Site, audit: str) -> Evidence:
    """Everything, once the gateway has ended in good order. `audit`: what `pathserve audit verify` finds wrong."""
    analyses = rows_of(site, ANALYSES)
    return Evidence(
        analyses=analyses,
        events=rows_of(site, EVENTS),
        revisions=rows_of(site, REVISIONS),
        deliveries=rows_of(site, DELIVERIES),
        workflows_open=_workflows_open(site),
        stored=_stored(site),
        made={row["id"]: _made(site.state / "analyses" / row["id"] / "artifacts") for row in analyses},
        taken=site.receiver.taken(),
        refused=site.receiver.refused(),
        audit=audit,
        processes=tuple(" ".join(each.cmdline())[:120] for each in site.processes()),
        parts=tuple(str(path.relative_to(site.state)) for path in site.state.rglob("*.part*")),
        locked=tuple(path.name for path in site.state.rglob("*.lock") if _is_locked(path)),
    )


def _workflows_open(site: Site) -> tuple[str, ...]:
    """What the workflow engine believes to have to do still."""
    engine = open_engine(site.engine_url)
    table = "workflow_status" if engine.dialect.name == "sqlite" else "dbos.workflow_status"
    try:
        with engine.connect() as connection:
            rows = connection.execute(sa.text(f"SELECT workflow_uuid, status FROM {table}"))
            return tuple(f"{row[0]} {row[1]}" for row in rows if row[1] not in _ENGINE_ENDS)
    finally:
        engine.dispose()


def open_engine(url: str) -> sa.Engine:
    """For reading only: nothing is created or migrated."""
    return sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))


def _stored(site: Site) -> dict[str, tuple[str, ...]]:
    found = {}
    for study in site.pacs.get("/studies?expand"):
        instances = site.pacs.get(f"/studies/{study['ID']}/instances")
        sops = (each["MainDicomTags"]["SOPInstanceUID"] for each in instances)
        results = tuple(sorted(sop for sop in sops if sop not in site.slides))
        found[study["MainDicomTags"]["StudyInstanceUID"]] = results
    return found


def _made(folder: Path) -> tuple[str, ...]:
    files = sorted(folder.glob("*.dcm"))
    return tuple(str(pydicom.dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID) for path in files)


def _is_locked(path: Path) -> bool:
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        return False
