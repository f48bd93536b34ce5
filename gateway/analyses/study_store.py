"""Studies on disk: `studies/NAME/study.json` is what was frozen, `journal.jsonl` what was done since.

A study is there once its journal has its first line, which holds the digest of study.json. It belongs to one tenant,
and is not there for another.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gateway.analyses.folder_names import demand_name
from gateway.analyses.ledger import Ledger
from gateway.analyses.study_journal import Entry, Journal, Kind, damaged, regular_bytes
from gateway.analyses.study_record import StudyRecord
from gateway.domain.principal import Principal
from gateway.operations import codec
from gateway.operations.audit import Action, AuditEvent, AuditQuery, EventType
from gateway.operations.disk import disk_errors, locked_folder, sync_folder, written_whole
from gateway.operations.errors import Conflict, NotFound

FOLDER = "studies"
"""In the state folder."""
_RECORD, _JOURNAL = "study.json", "journal.jsonl"


@dataclass(frozen=True, slots=True)
class Study:
    """What was frozen, and all that was done since, as it is now and proven to be what was written. `told`: of how many
    lines the audit trail knows."""

    record: StudyRecord
    entries: tuple[Entry, ...]
    told: int = 0

    @property
    def head(self) -> str:
        """The hash of the journal's last line."""
        return self.entries[-1].hash


class StudyStore:
    """The studies of a state folder, by somebody. All methods raise StateError, DiskFull; StudyDamaged where the files
    are not what was written."""

    def __init__(self, state: Path, ledger: Ledger, by: Principal) -> None:
        self._folder = state / FOLDER
        self._ledger = ledger
        self._by = by

    def create(self, record: StudyRecord) -> Study:
        """Register a study. Raises InvalidInput (its name), Conflict (there is, or was, one of this name)."""
        folder = self._folder / demand_study(record.name)
        with disk_errors():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for parent in (folder.parent, folder.parent.parent):  # a power cut leaves no trail of what it took
                sync_folder(parent)
        with disk_errors(), locked_folder(folder):
            name = record.name
            # The trail knows of one whose folder is gone: its name would make two studies one.
            if Journal(folder / _JOURNAL).read() or self._told(name):
                raise Conflict(f"There is, or was, a study {name} already. Choose another name.")
            with written_whole(folder / _RECORD, private=True) as out:
                out.write(record.to_bytes())
            return self._added(Study(record, ()), folder, Kind.CREATED, {"record_sha256": record.digest})

    def open(self, name: str, tenant: str) -> Study:
        """A tenant's study. Raises InvalidInput (its name), NotFound."""
        with self.writing(name, tenant) as writer:
            return writer.study

    @contextmanager
    def writing(self, name: str, tenant: str) -> Iterator["Writer"]:
        """A tenant's study, while nobody else reads or writes it. Raises as `open`."""
        folder = self._folder / demand_study(name)
        with ExitStack() as held:
            with disk_errors():
                if folder.is_dir():
                    held.enter_context(locked_folder(folder))
                study = self._read(folder, name, tenant)
            yield Writer(self, folder, study)  # what the caller meets is no trouble of this folder

    def _read(self, folder: Path, name: str, tenant: str) -> Study:
        entries = Journal(folder / _JOURNAL).read()
        told = self._told(name, tenant)
        data = regular_bytes(folder / _RECORD)
        if not entries and not told:
            raise _none(name)
        try:
            record = codec.loads(StudyRecord, data or b"")
        except ValidationError:
            raise damaged(f"{_RECORD} cannot be read") from None
        if record.tenant != tenant:
            raise _none(name)
        _demand_told(entries, told)
        first = entries[0]
        said = {"record_sha256": record.digest}
        if (record.name, record.to_bytes()) != (name, data) or (first.kind, first.data) != (Kind.CREATED, said):
            raise damaged(f"{_RECORD} is not what the journal's first line has the digest of")
        return Study(record, entries, len(told))

    def _added(self, study: Study, folder: Path, kind: Kind, data: Mapping[str, Any]) -> Study:
        """One more line, and the trail told of it, and of one that a kill left untold: whoever tells, each record has
        the account that wrote its line."""
        entry = Journal(folder / _JOURNAL).append(study.entries, kind, self._by.subject, data)
        entries = (*study.entries, entry)
        self._ledger.audit(*(self._event(study.record, each) for each in entries[study.told :]))
        return Study(study.record, entries, len(entries))

    def _event(self, record: StudyRecord, entry: Entry) -> AuditEvent:
        return AuditEvent(
            type=EventType.APPLICATION_ACTIVITY,
            subtype="study-noted",
            action=Action.CREATE if entry.kind is Kind.CREATED else Action.UPDATE,
            tenant=record.tenant,
            entity_kind="study",
            entity=record.name,
            detail={"kind": entry.kind.value, "line": entry.seq, "sha256": entry.hash, "user": entry.user},
        ).by(self._by)

    def _told(self, name: str, tenant: str | None = None) -> dict[int, str]:
        """What the audit trail knows of the journal of a study (of that tenant): number of a line -> its hash."""
        told: dict[int, str] = {}
        query, after = AuditQuery(tenant=tenant, entity=("study", name)), 0
        while batch := self._ledger.trail.page(query, after):
            after = batch[-1].seq
            told |= {each.details["line"]: each.details["sha256"] for each in batch}
        return told


class Writer:
    """A study that is locked for its writer."""

    def __init__(self, store: StudyStore, folder: Path, study: Study) -> None:
        self._store = store
        self._folder = folder
        self.study = study

    def add(self, kind: Kind, data: Mapping[str, Any]) -> Entry:
        """One more line; on disk, and in the audit trail, when this returns."""
        with disk_errors():
            self.study = self._store._added(self.study, self._folder, kind, data)
        return self.study.entries[-1]


def demand_study(name: str) -> str:
    """The name of a study as it was given. Raises InvalidInput where it is none."""
    return demand_name("study", name, "north-2027")


def _none(name: str) -> NotFound:
    return NotFound(f"There is no study {name}. Register it: pathserve study new {name} …")


def _demand_told(entries: Sequence[Entry], told: Mapping[int, str]) -> None:
    """Raise StudyDamaged where journal and audit trail contradict each other. A kill leaves one line untold at most."""
    for seq, digest in sorted(told.items()):
        if seq > len(entries):
            raise damaged(f"its journal ends with line {len(entries)}, but had {max(told)}")
        if entries[seq - 1].hash != digest:
            raise damaged(f"line {seq} of its journal is not the one that the audit trail knows")
    if len(entries) > max(told, default=0) + 1:
        raise damaged(f"the audit trail was never told of line {max(told, default=0) + 1} of its journal")
