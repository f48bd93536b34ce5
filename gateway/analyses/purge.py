"""Removing analyses for good: files, cached slides, the workflow engine's rows, and at last their own.

What an analysis is found by, its row, goes last, in one transaction with its audit record, and is locked while its
files go: nobody retries or signs it meanwhile. So a purge that was interrupted is finished by the same command again;
and a folder that is found without a row, of an analysis that the audit trail knows as purged, is left over on this
machine and goes with any purge.
"""

import json
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pydicom
import sqlalchemy as sa
from dbos import DBOSClient, DBOSPortableJSONSerializer
from pydicom.errors import InvalidDicomError

from gateway.analyses.ledger import Ledger
from gateway.analyses.ledger.schema import ANALYSES, DELIVERIES, EVENTS, FEEDBACK, REVISIONS, STUDIES
from gateway.analyses.ledger.transitions import FINAL
from gateway.analyses.local import workplace
from gateway.archive.cache import FrameCache
from gateway.domain.delivery import DeliveryState
from gateway.domain.order import Order
from gateway.domain.principal import Principal
from gateway.domain.uids import new_analysis_id
from gateway.operations import codec
from gateway.operations.audit import Action, AuditEvent, EventType, append
from gateway.operations.audit.table import AUDIT
from gateway.operations.database import database_errors
from gateway.operations.disk import disk_errors
from gateway.operations.errors import Conflict
from gateway.operations.free_pages import clear_free_pages
from gateway.operations.settings import Settings

_WAITING = (DeliveryState.PENDING.value, DeliveryState.HELD.value)
_MANY = 500
"""So many names fit into one statement of any database."""
Slide = tuple[str, str | None]
"""Study and series; series None: all of the study."""
_CANCEL_S, _LOOK_S = 60.0, 0.2


@dataclass(frozen=True, slots=True)
class Which:
    """Which analyses: all that one of these fits. Only its kind is ever audited, never a patient."""

    older_than_days: int | None = None
    patient: str | None = None
    issuer: str | None = None
    tenant: str | None = None
    analysis: str | None = None

    @property
    def kind(self) -> str:
        given = {
            "patient": self.patient,
            "age": self.older_than_days,
            "tenant": self.tenant,
            "analysis": self.analysis,
        }
        return next(name for name, value in given.items() if value is not None)

    def condition(self) -> sa.ColumnElement[bool]:
        """An issuer is compared where both the command and the order give one."""
        match self.kind:
            case "patient":
                # An order keeps blanks at the ends, which mean nothing (PS3.5 6.2, LO).
                patient = sa.func.trim(ANALYSES.c.patient_id) == self.patient
                if self.issuer is None:
                    return patient
                return patient & (
                    ANALYSES.c.patient_issuer.is_(None) | (sa.func.trim(ANALYSES.c.patient_issuer) == self.issuer)
                )
            case "age":
                return ANALYSES.c.updated < datetime.now(UTC) - timedelta(days=self.older_than_days or 0)
            case "tenant":
                return ANALYSES.c.tenant == self.tenant
            case _:
                return ANALYSES.c.id == self.analysis


@dataclass(slots=True)
class Purged:
    """What went. `cached_in_use`: slides in the cache that something reads now. `begun_again`: chosen analyses that
    stayed, as they were retried or signed since."""

    analyses: int = 0
    events: int = 0
    revisions: int = 0
    deliveries: int = 0
    feedback: int = 0
    workflows: int = 0
    folders: int = 0
    cached: int = 0
    cached_in_use: int = 0
    begun_again: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """What a purge would take, and which of the chosen analyses cannot be purged as they have not ended."""

    ready: tuple[str, ...]
    unfinished: tuple[str, ...]


class Purge:
    """A purge of one state folder and its database, by somebody."""

    def __init__(self, settings: Settings, engine: sa.Engine, by: Principal) -> None:
        self._state = settings.state
        self._url = settings.ledger_url
        self._engine = engine
        self._writer = engine.execution_options(ledger_writes=True)
        self._ledger = Ledger(engine)
        self._cache = FrameCache(settings.state / "cache", settings.cache_bytes)
        self._by = by

    def find(self, which: Which) -> Found:
        """An analysis has ended when its state is final and nothing of it waits to be sent. Raises StateError."""
        waiting = sa.select(DELIVERIES.c.analysis_id).where(DELIVERIES.c.state.in_(_WAITING))
        ended = ANALYSES.c.state.in_(FINAL) & ANALYSES.c.id.not_in(waiting)
        query = sa.select(ANALYSES.c.id, ended.label("ended")).where(which.condition()).order_by(ANALYSES.c.number)
        with database_errors(), self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return Found(tuple(row.id for row in rows if row.ended), tuple(row.id for row in rows if not row.ended))

    def cancel(self, analyses: Collection[str]) -> None:
        """End what has not ended, and give up what waits to be sent of it. What ends neither way in time stays."""
        for analysis_id in analyses:
            with suppress(Conflict):  # it has ended, or is being delivered
                self._ledger.cancel(analysis_id, self._by)
        until = time.monotonic() + _CANCEL_S
        for analysis_id in analyses:
            while not self._given_up(analysis_id) and time.monotonic() < until:
                time.sleep(_LOOK_S)

    def run(self, which: Which, analyses: Sequence[str]) -> Purged:
        """Remove these analyses, and what earlier purges have left. Raises StateError, DiskFull."""
        purged = Purged()
        self._tell("purge-begun", which, analyses=len(analyses))
        self._drop_slides(self._slides(analyses), analyses, purged, whose=which)
        with self._engine_rows() as forget:
            for analysis_id in analyses:
                self._remove(which, analysis_id, forget, purged)
        self._remove_left_over(purged)
        with workplace(self._state / "local", new_analysis_id()):
            pass  # it removes what a killed `pathserve analyze` has left
        self._tell("purge-finished", which, **{name: getattr(purged, name) for name in Purged.__slots__})
        return purged

    def clear(self) -> None:
        """Clear the free pages of SQLite databases. Raises StateBusy, StateError."""
        own = self._engine.url.database
        databases = [self._state / "dbos.db"]
        if self._engine.dialect.name == "sqlite" and own:
            databases.append(Path(own))
        for path in databases:
            if path.exists():
                clear_free_pages(path)

    # The parts of an analysis

    def _given_up(self, analysis_id: str) -> bool:
        with database_errors(), self._writer.begin() as connection:
            query = sa.select(ANALYSES.c.state).where(ANALYSES.c.id == analysis_id).with_for_update()
            if connection.execute(query).scalar() not in FINAL:
                return False
            at_work = sa.select(DELIVERIES.c.id).where(
                DELIVERIES.c.analysis_id == analysis_id,
                DELIVERIES.c.state.in_(_WAITING),
                DELIVERIES.c.worker.is_not(None),
            )
            if connection.execute(at_work).first() is not None:
                return False
            connection.execute(
                DELIVERIES.update()
                .where(DELIVERIES.c.analysis_id == analysis_id, DELIVERIES.c.state.in_(_WAITING))
                .values(state=DeliveryState.DEAD.value, reason="purged", settled=datetime.now(UTC))
            )
            return True

    def _slides(self, analyses: Sequence[str]) -> frozenset[Slide]:
        """The slides that these analyses read."""
        found: set[Slide] = set()
        with database_errors(), self._engine.connect() as connection:
            for chunk in _chunks(analyses):
                query = sa.select(ANALYSES.c.order_json).where(ANALYSES.c.id.in_(chunk))
                found |= {slide for text in connection.execute(query).scalars() for slide in _slides_of(text)}
        return frozenset(found)

    def _drop_slides(
        self, slides: frozenset[Slide], of: Collection[str], purged: Purged, whose: Which | None = None
    ) -> None:
        """Remove slides of these analyses from the cache, unless another one reads them; and all of a patient, which
        `pathserve analyze` may have left there without an order."""
        patient = None if whose is None else whose.patient
        if not slides and patient is None:
            return
        kept = self._read_by_others({study for study, _ in slides}, frozenset(of))

        def unwanted(folder: Path) -> bool:
            study, series = folder.parent.name, folder.name
            if _has(slides, study, series):
                return not _has(kept, study, series)
            return whose is not None and patient is not None and _is_of(folder, patient, whose.issuer)

        gone, held = self._cache.drop(unwanted)
        purged.cached += gone
        purged.cached_in_use += held

    def _read_by_others(self, studies: Collection[str], analyses: frozenset[str]) -> frozenset[Slide]:
        found: set[Slide] = set()
        with database_errors(), self._engine.connect() as connection:
            for chunk in _chunks(sorted(studies)):
                query = (
                    sa.select(ANALYSES.c.id, ANALYSES.c.order_json)
                    .join(STUDIES, STUDIES.c.analysis_id == ANALYSES.c.id)
                    .where(STUDIES.c.study.in_(chunk))
                )
                for row in connection.execute(query):
                    if row.id not in analyses:
                        found |= set(_slides_of(row.order_json))
        return frozenset(found)

    def _remove(self, which: Which, analysis_id: str, forget: Callable[[Collection[str]], int], purged: Purged) -> None:
        with database_errors(), self._writer.begin() as connection:
            query = sa.select(ANALYSES.c.state, ANALYSES.c.tenant).where(ANALYSES.c.id == analysis_id)
            row = connection.execute(query.with_for_update()).first()
            if row is None:  # another purge was quicker
                return
            deliveries = self._deliveries(connection, analysis_id)
            # It was chosen a while ago: somebody may have been asked in between.
            if row.state not in FINAL or not set(_WAITING).isdisjoint(deliveries.values()):
                purged.begun_again += 1
                return
            purged.folders += _removed(self._state / "analyses" / analysis_id)
            purged.workflows += forget([analysis_id, *deliveries])
            self._remove_rows(connection, analysis_id, purged)
            event = self._event(
                "analysis-purged", row.tenant, entity_kind="analysis", entity=analysis_id, detail={"by": which.kind}
            )
            append(connection, event)

    def _deliveries(self, connection: sa.Connection, analysis_id: str) -> dict[str, str]:
        """Their states, by id."""
        query = sa.select(DELIVERIES.c.id, DELIVERIES.c.state).where(DELIVERIES.c.analysis_id == analysis_id)
        return {row.id: row.state for row in connection.execute(query)}

    def _remove_rows(self, connection: sa.Connection, analysis_id: str, purged: Purged) -> None:
        for name, table in (
            ("events", EVENTS),
            ("revisions", REVISIONS),
            ("deliveries", DELIVERIES),
            ("feedback", FEEDBACK),
        ):
            deleted = connection.execute(table.delete().where(table.c.analysis_id == analysis_id)).rowcount
            setattr(purged, name, getattr(purged, name) + deleted)
        connection.execute(STUDIES.delete().where(STUDIES.c.analysis_id == analysis_id))
        connection.execute(ANALYSES.delete().where(ANALYSES.c.id == analysis_id))
        purged.analyses += 1

    @contextmanager
    def _engine_rows(self) -> Iterator[Callable[[Collection[str]], int]]:
        """What removes the engine's rows of workflows that are named by these ids; how many there were."""
        database = self._state / "dbos.db"
        postgresql = self._engine.dialect.name == "postgresql"
        if not (database.exists() or (postgresql and sa.inspect(self._engine).has_schema("dbos"))):
            yield lambda ids: 0  # no worker has ever run
            return
        client = DBOSClient(
            system_database_url=self._url if postgresql else f"sqlite:///{database}",
            serializer=DBOSPortableJSONSerializer(),
            retry_connection_errors=False,
        )

        def forget(ids: Collection[str]) -> int:
            found = client.list_workflows(
                workflow_id_prefix=[f"{each}." for each in ids], load_input=False, load_output=False
            )
            # Before stages had workflows of their own, an analysis was one, of the same id.
            workflows = [each.workflow_id for each in found]
            client.delete_workflows([*workflows, *ids])
            return len(workflows)

        try:
            with database_errors():
                yield forget
        finally:
            client.destroy()

    def _remove_left_over(self, purged: Purged) -> None:
        """Folders of analyses that were purged on another machine, or by a purge that was killed at the end."""
        folder = self._state / "analyses"
        names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        for chunk in _chunks(names):
            with database_errors(), self._engine.connect() as connection:
                there = set(connection.execute(sa.select(ANALYSES.c.id).where(ANALYSES.c.id.in_(chunk))).scalars())
                orphans = [name for name in chunk if name not in there]
                query = sa.select(AUDIT.c.entity).where(
                    AUDIT.c.subtype == "analysis-purged", AUDIT.c.entity.in_(orphans)
                )
                gone = sorted(set(connection.execute(query).scalars()))
            slides = frozenset(slide for name in gone for slide in _fetched(folder / name))
            self._drop_slides(slides, (), purged)
            for name in gone:
                purged.folders += _removed(folder / name)

    def _tell(self, subtype: str, which: Which, **detail: int) -> None:
        event = self._event(subtype, which.tenant or "", entity_kind="purge", detail={"by": which.kind, **detail})
        with database_errors(), self._writer.begin() as connection:
            append(connection, event)

    def _event(self, subtype: str, tenant: str, **more: Any) -> AuditEvent:
        return AuditEvent(
            type=EventType.PATIENT_RECORD,
            subtype=subtype,
            action=Action.DELETE,
            tenant=tenant,
            **more,
        ).by(self._by)


def _chunks(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for begin in range(0, len(names), _MANY):
        yield names[begin : begin + _MANY]


def _slides_of(order_json: str) -> Iterator[Slide]:
    for specimen in codec.loads(Order, order_json).specimens:
        for slide in specimen.slides:
            for series in slide.series or (None,):
                yield slide.study, series


def _has(slides: frozenset[Slide], study: str, series: str) -> bool:
    return (study, series) in slides or (study, None) in slides


def _fetched(folder: Path) -> Iterator[Slide]:
    with suppress(OSError, ValueError, KeyError, TypeError):
        for entry in json.loads((folder / "fetched.json").read_text()):
            yield entry["study"], entry["series"]


def _is_of(folder: Path, patient: str, issuer: str | None) -> bool:
    """Whether a cached series is of this patient; one whose header cannot be read is nobody's."""
    for file in sorted(folder.glob("*.dcm")):
        with suppress(InvalidDicomError, OSError, ValueError):
            tags = ["PatientID", "IssuerOfPatientID"]
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags)
            said = str(header.get("IssuerOfPatientID") or "").strip()
            return str(header.get("PatientID") or "").strip() == patient and not (issuer and said and said != issuer)
    return False


def _removed(folder: Path) -> int:
    with disk_errors():
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            return 0
    return 1
