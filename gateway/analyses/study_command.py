"""`pathserve study …`: cases registered before their results are visible, held against a reference that comes later."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gateway.analyses.command_ledger import command_ledger
from gateway.analyses.ledger import Ledger
from gateway.analyses.sites_command import now, person_named
from gateway.analyses.study_answers import Answers, Asked, FolderAnswers, LedgerAnswers
from gateway.analyses.study_cases import Case, case_of, deviating
from gateway.analyses.study_journal import Kind
from gateway.analyses.study_page import page
from gateway.analyses.study_patients import patient_digest, several
from gateway.analyses.study_record import StudyRecord
from gateway.analyses.study_reference import read, rows_of
from gateway.analyses.study_register import Register
from gateway.analyses.study_report import Roll, document_of, rolled
from gateway.analyses.study_store import StudyStore, demand_study
from gateway.operations.auth.commands import tenant_named
from gateway.operations.columns import print_columns
from gateway.operations.disk import written_whole
from gateway.operations.errors import Conflict, InvalidInput
from gateway.operations.operator import operator
from gateway.operations.settings import Settings
from gateway.operations.settings import settings as load_settings

JSON_FILE, PAGE_FILE = "study-report.json", "study-report.md"
_LATE = "it was answered while it was being enrolled"
_MOST_TEXT, _MOST_ACCESSION = 500, 64
_SHOWN = 20


def new(
    name: str,
    *,
    protocol: str,
    title: str,
    by: str,
    changes: tuple[tuple[str, str], ...],
    composed: bool,
    tenant: str | None,
) -> int:
    """Register a study: freeze what answers now, and print its digests. Raises InvalidInput, Conflict, UnknownProtocol,
    InvalidSetting, ModelNotLoaded, ModelRefused, ModelsUnfit, StateError, DiskFull."""
    demand_study(name)
    person = person_named(by)
    with _opened(tenant) as desk:
        record = StudyRecord.frozen(
            desk.settings,
            desk.ledger,
            name=name,
            title=_text("--title", title) if title else "",
            tenant=desk.tenant,
            protocol=protocol,
            centres="composed" if composed else "clinical",
            changes=changes,
            by=person,
            user=operator().subject,
            time=now(),
        )
        study = desk.store.create(record)
        print_columns([("study", name), ("frozen", record.digest), ("journal", f"1:{study.head}"), *_frozen(record)])
    return 0


def show(name: str, *, tenant: str | None) -> int:
    """Print what was frozen and how far the study is, once it is proven to be what was written. Raises NotFound,
    StateError (StudyDamaged)."""
    with _opened(tenant) as desk:
        study = desk.store.open(name, desk.tenant)
        record, register = study.record, Register.of(study.entries)
        joined = register.joined[-1] if register.joined else None
        reference = f"version {joined.version}, {joined.file_sha256}" if joined else "not joined: enrolment is open"
        print_columns(
            [
                ("study", name),
                ("title", record.title or "-"),
                ("centres", record.centres),
                ("registered", f"{record.created:%Y-%m-%d %H:%M} UTC, {record.by} ({record.user})"),
                ("frozen", record.digest),
                ("journal", f"{len(study.entries)}:{study.head}"),
                ("enrolled", str(len(register.enrolled))),
                ("excluded", str(len(register.excluded))),
                ("reference", reference),
                ("looks", str(len(register.looks))),
                *_frozen(record),
            ]
        )
    return 0


def enrol(
    name: str,
    accessions: Sequence[str],
    *,
    waiting: bool,
    centre: str,
    results: Path | None,
    tenant: str | None,
) -> int:
    """Register cases, in this order, or all that wait in the order of their acceptance; all or none of those that are
    named: they are one line of the journal. Prints what stands between them and was not enrolled. Raises NotFound,
    InvalidInput, Conflict (a result is there already, enrolled or excluded already, orders of one accession are of
    several patients, enrolment is closed), StateError, DiskFull."""
    if waiting == bool(accessions):
        raise InvalidInput("Name the accessions to enrol, or give --waiting for all that wait.")
    at = _text("--centre", centre)
    with _opened(tenant) as desk, desk.store.writing(name, desk.tenant) as writer:
        record, register = writer.study.record, Register.of(writer.study.entries)
        if register.joined:
            raise Conflict(f"The reference standard of {name} is joined: enrolment is closed.")
        answers = desk.answers(record, results)
        if waiting and record.composed:
            raise InvalidInput("--waiting belongs to orders in the ledger; name the accessions.")
        mixed: list[str] = []
        chosen = _waiting(answers, record, register, mixed) if waiting else _named(answers, register, accessions)
        if chosen:
            cases = [_noted(accession, asked, record) for accession, asked in chosen]
            writer.add(Kind.ENROLLED, {"centre": at, "cases": cases})
        late = []
        for accession, asked in chosen:
            # A worker may have been faster between the look and the line.
            if asked is not None and answers.is_answered(asked):
                writer.add(Kind.EXCLUDED, {"accession": accession, "reason": _LATE, "answered": True})
                late.append(accession)
        register = Register.of(writer.study.entries)
        roll = rolled(record, register, answers)
        print(f"{len(chosen) - len(late)} enrolled at {at}; {len(register.cases)} take part.")
        if late:
            print(f"excluded, since {_LATE}: {_listed(late)}")
        if mixed:
            print(f"not enrolled, since orders of the accession name different patients: {_listed(mixed)}")
        _tell(roll)
    return 0


def exclude(name: str, accession: str, *, reason: str, results: Path | None, tenant: str | None) -> int:
    """Leave a case out, enrolled or not, for a reason that is kept, with what was known then. Raises NotFound,
    InvalidInput, Conflict (excluded already), StateError, DiskFull."""
    why, wanted = _text("--reason", reason), _accession(accession)
    with _opened(tenant) as desk, desk.store.writing(name, desk.tenant) as writer:
        record, register = writer.study.record, Register.of(writer.study.entries)
        if wanted in register.excluded:
            raise Conflict(f"{wanted} is excluded already: {register.excluded[wanted].reason}")
        answers = desk.answers(record, results)
        answered = any(answers.is_answered(asked) for asked in answers.of(wanted))
        writer.add(Kind.EXCLUDED, {"accession": wanted, "reason": why, "answered": answered})
        known = ["its result was there already"] if answered else []
        known += ["the reference standard was joined already"] if register.joined else []
        print(f"{wanted} is excluded: {why}" + (f" ({', and '.join(known)})" if known else ""))
    return 0


def join(name: str, file: Path, *, supersede: str | None, tenant: str | None) -> int:
    """Join the reference standard, which closes enrolment; a correction takes the place of all of the version before,
    and says why. Raises NotFound, InvalidInput (the file), Conflict (joined already), StateError, DiskFull."""
    reason = None if supersede is None else _text("--supersede", supersede)
    data = read(file)
    digest = hashlib.sha256(data).hexdigest()
    with _opened(tenant) as desk, desk.store.writing(name, desk.tenant) as writer:
        register = Register.of(writer.study.entries)
        before = register.joined[-1] if register.joined else None
        if before is None and reason is not None:
            raise InvalidInput(f"There is no reference standard of {name} to supersede. Leave --supersede out.")
        if before is not None and reason is None:
            raise Conflict(
                f"The reference standard of {name} is joined already (version {before.version}, sha256 "
                f"{before.file_sha256}). A correction needs --supersede REASON."
            )
        if before is not None and before.file_sha256 == digest:
            raise Conflict(f"This file is version {before.version} of the reference standard already.")
        centres = dict.fromkeys(register.excluded) | {
            each.accession: each.centre for each in register.enrolled.values()
        }
        rows = rows_of(data, centres)
        writer.add(Kind.JOINED, {"file_sha256": digest, "rows": [row.values() for row in rows], "reason": reason})
        version = 1 if before is None else before.version + 1
        missing = len({each.accession for each in register.cases} - {row.accession for row in rows})
        print(f"reference standard version {version}: {len(rows)} rows, sha256 {digest}")
        if before is not None:
            changed = len(set(before.rows) ^ set(rows))
            print(f"it supersedes version {before.version}; rows that differ on either side: {changed}")
        print(f"without a reference: {missing}")
    return 0


def report(name: str, *, out: Path | None, results: Path | None, tenant: str | None) -> int:
    """Print the figures, or write them to a folder, and note that they were given out. Raises NotFound, Conflict (no
    reference standard; cases that were not answered by what was frozen), InvalidInput, StateError, DiskFull."""
    with _opened(tenant) as desk, desk.store.writing(name, desk.tenant) as writer:
        study = writer.study
        register = Register.of(study.entries)
        if not register.joined:
            raise Conflict(f"The study {name} has no reference standard yet: pathserve study join {name} REFERENCE.csv")
        answers = desk.answers(study.record, results)
        cases = [case_of(each, study.record, answers) for each in register.cases]
        _demand_frozen(cases)
        document = document_of(study, register, cases, rolled(study.record, register, answers), now())
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        if out is not None:
            _made(out)
        # Noted before anything is given out: whoever stops reading in the midst has looked, too.
        writer.add(
            Kind.REPORTED, {"look": document["look"], "report_sha256": hashlib.sha256(text.encode()).hexdigest()}
        )
        if out is None:
            print(page(document), end="")
        else:
            for file, content in ((PAGE_FILE, page(document)), (JSON_FILE, text)):
                _write(out / file, content)
                print(out / file)
    return 0


class _Desk:
    """The studies and the ledger of a state folder, for one tenant."""

    def __init__(self, settings: Settings, ledger: Ledger, tenant: str) -> None:
        self.settings = settings
        self.ledger = ledger
        self.tenant = tenant
        self.store = StudyStore(settings.state, ledger, operator())

    def answers(self, record: StudyRecord, results: Path | None) -> Answers:
        """Where this study's answers come from. Raises InvalidInput."""
        if not record.composed:
            if results is not None:
                raise InvalidInput(f"{record.name} is a study of orders in the ledger: leave --results out.")
            return LedgerAnswers(self.ledger, self.settings.state, self.tenant, record.protocol)
        if results is None:
            raise InvalidInput(f"{record.name} is a study of composed centres: name the reports' folder by --results.")
        return FolderAnswers(results, record.protocol)


@contextmanager
def _opened(tenant: str | None) -> Iterator[_Desk]:
    of = tenant_named(tenant, load_settings())
    with command_ledger("study") as (settings, ledger):
        yield _Desk(settings, ledger, of)


def _noted(accession: str, asked: Asked | None, record: StudyRecord) -> dict[str, Any]:
    """A case as the journal has it."""
    return {
        "accession": accession,
        "analysis": None if asked is None else asked.analysis,
        "number": None if asked is None else asked.number,
        "series": [] if asked is None else list(asked.series),
        "patient": None if asked is None else patient_digest(record.patient_key, asked.patient),
    }


def _waiting(
    answers: Answers, record: StudyRecord, register: Register, mixed: list[str]
) -> list[tuple[str, Asked | None]]:
    """All that were accepted since the study began, have no result and no place yet, the oldest of each accession;
    those whose orders are of several patients go to `mixed`."""
    chosen: dict[str, Asked | None] = {}
    for asked in answers.after(record.after):
        accession = asked.accession
        if accession is None or register.knows(accession) or accession in chosen or accession in mixed:
            continue
        found = answers.of(accession)
        if any(map(answers.is_answered, found)):
            continue
        if several(each.patient for each in found):
            mixed.append(accession)
        else:
            chosen[accession] = asked
    return list(chosen.items())


def _named(answers: Answers, register: Register, accessions: Sequence[str]) -> list[tuple[str, Asked | None]]:
    wanted = [_accession(each) for each in accessions]
    twice = sorted({each for each in wanted if wanted.count(each) > 1 or register.knows(each)})
    if twice:
        raise Conflict(f"Enrolled or excluded already, or named twice: {_listed(twice)}. Nothing was enrolled.")
    found = {each: answers.of(each) for each in wanted}
    late = [each for each in wanted if any(map(answers.is_answered, found[each]))]
    if late:
        raise Conflict(
            f"Answered before they were enrolled: {_listed(late)}. A case is enrolled before its result can be seen; "
            "exclude these with the reason. Nothing was enrolled."
        )
    mixed = [each for each in wanted if several(asked.patient for asked in found[each])]
    if mixed:
        raise Conflict(
            f"Orders of one accession name different patients: {_listed(mixed)}. The reference is joined by accession, "
            "and could be the other one's; exclude these with the reason. Nothing was enrolled."
        )
    return [(each, found[each][0] if found[each] else None) for each in wanted]


def _demand_frozen(cases: Sequence[Case]) -> None:
    """Raises Conflict."""
    wrong = deviating(cases)
    if wrong:
        named = "; ".join(f"{case.enrolled.accession}: {', '.join(case.deviations)}" for case in wrong[:_SHOWN])
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise Conflict(
            f"{len(wrong)} cases were not answered by what was frozen, or their patient is in doubt ({named}{more}). "
            "No figure is given; exclude them, each with its reason, or register another study."
        )


def _tell(roll: Roll) -> None:
    for what, names in (("gaps: ordered before the last one and not enrolled", roll.gaps), ("again", roll.repeats)):
        if names:
            print(f"{what}: {_listed(names)}")


def _frozen(record: StudyRecord) -> list[tuple[str, str]]:
    changes = ", ".join(f"{name}={value}" for name, value in record.changes) or "none changed"
    return [
        ("pathserve", record.software),
        *((each.folder, f"engine {each.version.engine_sha256}") for each in record.models),
        ("operating point", f"{record.operating_point}, abnormal from {record.abnormal_from:g}"),
        ("settings", f"{changes}, {record.settings_sha256}"),
        *((f"site {each.site}", f"version {each.version}, {each.digest}") for each in record.sites),
    ]


def _accession(text: str) -> str:
    accession = text.strip()
    if not accession or len(accession) > _MOST_ACCESSION or not accession.isprintable():
        raise InvalidInput(f"An accession number has 1 to {_MOST_ACCESSION} printable characters.")
    return accession


def _text(option: str, text: str) -> str:
    line = " ".join(text.split())
    if not line or len(line) > _MOST_TEXT or not line.isprintable():
        raise InvalidInput(f"{option} takes 1 to {_MOST_TEXT} printable characters.")
    return line


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _made(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"The folder given by --out cannot be made ({error.strerror}). Name another.") from None


def _write(path: Path, text: str) -> None:
    try:
        with written_whole(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise InvalidInput(f"The folder given by --out cannot be written ({error.strerror}). Name another.") from None
