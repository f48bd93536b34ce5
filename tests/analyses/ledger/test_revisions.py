"""A person signs or corrects: one revision each, whole or not at all, with its delivery, event and audit record."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from gateway.analyses import signing
from gateway.analyses.ledger import Ledger
from gateway.analyses.ledger.revisions import first_revision
from gateway.analyses.ledger.schema import ANALYSES
from gateway.domain.analysis import State
from gateway.domain.codes import Code
from gateway.domain.feedback import Feedback, Verdict
from gateway.domain.order import Order, Patient, SlideReference, Specimen
from gateway.domain.principal import Principal, PrincipalKind, Scope
from gateway.domain.report import Amendment, ReportState
from gateway.domain.revision import Revision
from gateway.domain.uids import object_uid
from gateway.operations.audit.table import AUDIT
from gateway.operations.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    PathserveError,
    PreconditionFailed,
    ReportNotReady,
    StateError,
)
from gateway.operations.settings import Settings
from gateway.reports import from_json, keep, result_objects, write_all
from tests.operations.test_database import migrate
from tests.reports.conftest import COMMITTED, ROOT, reading_of, report_of, result_of, source_of, volume_headers

JANE = Principal("person:jane", PrincipalKind.PERSON, "north", frozenset({Scope.ANALYSES_SIGN}), "Jane Doe", "::1")
MAX = replace(JANE, subject="person:max", name=None)
AMENDMENT = Amendment("Second look.", "It is necrosis.", (Code("6574001", "SCT", "Necrosis"),))
WEBHOOK = "https://lis.example/hook"


@dataclass(frozen=True)
class Site:
    """A state with a ledger and one completed analysis."""

    settings: Settings
    ledger: Ledger
    analysis: str

    @property
    def folder(self) -> Path:
        return self.settings.state / "analyses" / self.analysis

    def sign(self, by: Principal = JANE, comment: str | None = None, expected: int | None = None) -> Revision:
        return signing.sign(self.settings, self.ledger, by, self.analysis, comment, expected=expected)

    def amend(self, by: Principal = JANE, expected: int | None = None) -> Revision:
        return signing.amend(self.settings, self.ledger, by, self.analysis, AMENDMENT, expected=expected)

    def give(self, feedback: Feedback) -> None:
        self.ledger.feedback.give(JANE, self.analysis, feedback, self.settings.state / "analyses")

    def audited(self) -> list[tuple[str, str, dict[str, object]]]:
        with self.ledger._read() as connection:
            rows = connection.execute(sa.select(AUDIT).where(AUDIT.c.entity == self.analysis).order_by(AUDIT.c.seq))
            return [(row.subtype, row.actor, row.detail) for row in rows if row.subtype != "analysis-created"]

    def deliveries(self) -> list[tuple[str, int | None, str]]:
        return [(each.channel.value, each.revision, each.event) for each in self.ledger.outbox.of(self.analysis)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an analysis whose report is built, with the id that all analyses of these tests get."""
    folder = tmp_path_factory.mktemp("made")
    image = volume_headers(COMMITTED)[0]
    slide = reading_of(image)
    report = report_of([slide], [result_of(slide)])
    sources = [source_of(image, report.tissue[0])]
    report = replace(report, objects=result_objects(report.slides, sources))
    for name in ("artifacts", "headers"):
        (folder / name).mkdir()
    write_all(folder / "artifacts", report, sources, {}, segmentation_type="BINARY")
    keep(folder / "headers", [image])
    return folder


@pytest.fixture
def site(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Site]:
    url = request.getfixturevalue("postgres") if getattr(request, "param", "sqlite") == "postgresql" else None
    settings = Settings(state=tmp_path, database_url=url)
    ledger = Ledger.open(settings.ledger_url, tmp_path, [WEBHOOK])
    report = from_json((made / "artifacts" / "report.json").read_bytes())
    specimen = Specimen(slides=(SlideReference(report.slides[0].study),), container="C")
    order = Order("tissue-classification", (specimen,), accession="A", patient=Patient("P"))
    monkeypatch.setattr("gateway.analyses.ledger.accepting.new_analysis_id", lambda: report.analysis_id)
    ledger.accept(order, JANE)
    shutil.copytree(made, tmp_path / "analyses" / report.analysis_id)
    with ledger._write() as connection:
        connection.execute(ANALYSES.update().values(state=State.COMPLETED.value))
        first = first_revision(report.analysis_id, tmp_path / "analyses" / report.analysis_id / "artifacts")
        ledger.revisions.add(connection, first)
    yield Site(settings, ledger, report.analysis_id)
    ledger.close()


def test_a_signature_is_a_revision(site: Site) -> None:
    before = site.ledger.get(site.analysis).version
    revision = site.sign(comment="Agreed.")
    assert (revision.number, revision.state, revision.by, revision.by_name, revision.reason) == (
        2, ReportState.FINAL, JANE.subject, "Jane Doe", "Agreed.",
    )  # fmt: skip
    assert site.ledger.revisions.of(site.analysis)[1] == revision == site.ledger.revisions.get(site.analysis)
    report = from_json((site.folder / revision.folder / "report.json").read_bytes())
    assert report.signature is not None
    assert (report.signature.name, report.signature.organisation) == ("Jane Doe", "north")
    assert revision.documents == (object_uid(site.analysis, "sr", report.slides[0].study, 2),)
    assert site.ledger.get(site.analysis).version != before
    assert site.deliveries() == [("stow", 2, "report"), ("webhook", 2, "report.signed")]
    assert site.audited() == [("report-signed", JANE.subject, {"revision": 2, "state": "final"})]
    [event] = [each for each in site.ledger.events(site.analysis) if each.kind == "revision"]
    assert event.data == {"revision": 2, "state": "final"}


def test_signed_once_then_amended_as_often_as_it_takes(site: Site) -> None:
    site.sign()
    with pytest.raises(Conflict, match="Amend"):
        site.sign()
    site.amend(MAX)
    site.amend()
    site.sign(MAX)
    with pytest.raises(Conflict):
        site.sign()
    revisions = site.ledger.revisions.of(site.analysis)
    assert [(each.number, each.state.value, each.by_name) for each in revisions] == [
        (1, "preliminary", None), (2, "final", "Jane Doe"), (3, "amended", "person:max"), (4, "amended", "Jane Doe"),
        (5, "amended", "person:max"),
    ]  # fmt: skip
    assert [each.reason for each in revisions] == [None, None, AMENDMENT.reason, AMENDMENT.reason, None]
    assert [subtype for subtype, _, _ in site.audited()] == [
        "report-signed", "report-amended", "report-amended", "report-signed",
    ]  # fmt: skip
    states = [json.loads((site.folder / each.folder / "report.json").read_text())["state"] for each in revisions]
    assert states == ["preliminary", "final", "amended", "amended", "amended"]


def test_an_unsigned_report_is_amended_and_signed_in_one(site: Site) -> None:
    revision = site.amend()
    assert (revision.number, revision.state, revision.by) == (2, ReportState.AMENDED, JANE.subject)


def test_the_revision_that_was_read_must_be_the_newest(site: Site) -> None:
    with pytest.raises(PreconditionFailed):
        site.sign(expected=2)
    site.sign(expected=1)
    with pytest.raises(PreconditionFailed):
        site.amend(expected=1)
    assert site.amend(expected=2).number == 3


@pytest.mark.parametrize("site", ["sqlite", "postgresql"], indirect=True)
def test_of_many_who_sign_at_once_one_does(site: Site) -> None:
    ends: list[str] = []

    def signs(by: Principal) -> None:
        try:
            site.sign(by)
            ends.append("signed")
        except PathserveError as error:
            ends.append(type(error).__name__)

    threads = [threading.Thread(target=signs, args=(by,)) for by in (JANE, MAX, JANE, MAX)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ends) == ["Conflict", "Conflict", "Conflict", "signed"]
    assert [each.number for each in site.ledger.revisions.of(site.analysis)] == [1, 2]
    assert site.deliveries() == [("stow", 2, "report"), ("webhook", 2, "report.signed")]


@pytest.mark.parametrize("site", ["sqlite", "postgresql"], indirect=True)
def test_the_row_decides_where_no_lock_on_files_holds(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two machines over one database: who comes second is told, and nothing of the first one's is touched."""
    revise = signing._write

    def overtaken(part: Path, *more: object) -> None:
        revise(part, *more)
        monkeypatch.setattr(signing, "_write", revise)
        other = part.with_name("other")
        shutil.copytree(part, other)
        revision = signing.revision_of(site.analysis, other, "revisions/other")
        site.ledger.revisions.publish(MAX, revision, site.ledger.outbox, lambda: None, amended=False)

    monkeypatch.setattr(signing, "_write", overtaken)
    with pytest.raises(Conflict, match="faster"):
        site.sign()
    assert [each.folder for each in site.ledger.revisions.of(site.analysis)] == ["artifacts", "revisions/other"]
    assert [path.name for path in (site.folder / "revisions").iterdir()] == ["other"]


_KILLED = """
import os, sys
from gateway.analyses import signing
from gateway.analyses.ledger import Ledger
from gateway.operations.settings import Settings
from tests.analyses.ledger.test_revisions import JANE
settings = Settings(state=sys.argv[1])
setattr(signing, sys.argv[3], lambda *_: os._exit(9))
if sys.argv[3] == "sync_folder":
    signing.shutil.rmtree = lambda *_, **__: None
signing.sign(settings, Ledger.open(settings.ledger_url, settings.state), JANE, sys.argv[2], None)
"""


@pytest.mark.parametrize(("dies_in", "left"), [("_put", "2.part"), ("sync_folder", "2")])
def test_killed_between_files_and_transaction(site: Site, dies_in: str, left: str) -> None:
    """Dead before the files get their name, or after it: nothing is signed, all is repeatable."""
    program = [sys.executable, "-c", _KILLED, str(site.settings.state), site.analysis, dies_in]
    assert subprocess.run(program, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False).returncode == 9
    assert (site.folder / "revisions" / left).is_dir()
    (site.folder / "revisions" / left / "rubbish").write_text("of the dead one")
    assert len(site.ledger.revisions.of(site.analysis)) == 1
    assert site.deliveries() == site.audited() == []
    revision = site.sign()
    assert [path.name for path in (site.folder / "revisions").iterdir()] == ["2"]
    assert not (site.folder / revision.folder / "rubbish").exists()
    assert site.deliveries() == [("stow", 2, "report"), ("webhook", 2, "report.signed")]


def test_no_report_no_signature(site: Site) -> None:
    with site.ledger._write() as connection:
        connection.execute(ANALYSES.update().values(state=State.RUNNING.value))
    with pytest.raises(ReportNotReady):
        site.sign()
    with pytest.raises(NotFound):
        signing.sign(site.settings, site.ledger, JANE, "nobody", None)


@pytest.mark.parametrize("gone", ["artifacts/report.json", "artifacts", ".", "headers", "artifacts/tissue-1.seg.dcm"])
def test_files_that_are_gone(site: Site, gone: str) -> None:
    path = site.folder / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises((StateError, Conflict)) as caught:
        site.sign()
    assert "again" in caught.value.detail or "check" in caught.value.detail
    assert len(site.ledger.revisions.of(site.analysis)) == 1
    assert site.deliveries() == site.audited() == []
    assert list(site.folder.glob("revisions/*")) == []


@pytest.mark.parametrize("name", ["artifacts/tissue-1.seg.dcm", "headers/1.dcm", "artifacts/tissue-1.geojson"])
@pytest.mark.parametrize("kept_bytes", [0, 400])
def test_files_that_are_damaged(site: Site, name: str, kept_bytes: int) -> None:
    path = site.folder / name
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(StateError, match="again"):
        site.sign()
    assert len(site.ledger.revisions.of(site.analysis)) == 1
    assert list(site.folder.glob("revisions/*")) == []


def test_headers_that_are_not_all_there(site: Site) -> None:
    (site.folder / "headers" / "1.dcm").unlink()
    with pytest.raises(StateError, match="gone"):
        site.sign()


def test_a_report_that_somebody_changed_is_not_signed(site: Site) -> None:
    path = site.folder / "artifacts" / "report.json"
    path.write_bytes(path.read_bytes().replace(b"Adipose", b"Obesity"))
    with pytest.raises(StateError, match="not the one"):
        site.sign()


def test_the_first_revision_is_written_down_once(site: Site) -> None:
    first = first_revision(site.analysis, site.folder / "artifacts")
    with site.ledger._write() as connection:
        site.ledger.revisions.add(connection, first)
        with pytest.raises(Conflict):
            site.ledger.revisions.add(connection, replace(first, report_sha256="0" * 64))
    assert site.ledger.revisions.of(site.analysis) == (first,)
    with pytest.raises(NotFound):
        site.ledger.revisions.get(site.analysis, 2)


def test_a_report_of_the_version_before_can_be_read_and_not_signed(site: Site) -> None:
    engine = site.ledger._engine
    with site.ledger._write() as connection:
        connection.exec_driver_sql("DELETE FROM events")  # SQLite makes the table of analyses anew on the way down
    migrate(engine, "0002")
    shutil.rmtree(site.folder / "headers")
    migrate(engine, "0003")
    [revision] = site.ledger.revisions.of(site.analysis)
    assert (revision.number, revision.state, revision.folder) == (1, ReportState.PRELIMINARY, "artifacts")
    with pytest.raises(Conflict, match="could not have it signed"):
        site.sign()


# Feedback


def test_feedback_is_kept_with_the_revision_that_it_is_about(site: Site) -> None:
    series = from_json((site.folder / "artifacts" / "report.json").read_bytes()).slides[0].series
    site.give(Feedback(Verdict.AGREE))
    site.sign()
    site.give(Feedback(Verdict.REJECT, Code("6574001", "SCT", "Necrosis"), series, "Mrs Miller's slide is thick."))
    first, second = site.ledger.feedback.of(site.analysis)
    assert (first.revision, first.feedback) == (1, Feedback(Verdict.AGREE))
    assert (second.revision, second.by, second.feedback.series) == (2, JANE.subject, series)
    given = [detail for subtype, _, detail in site.audited() if subtype == "feedback-given"]
    assert given == [{"verdict": "agree", "revision": 1}, {"verdict": "reject", "revision": 2}]


def test_feedback_on_a_slide_that_was_not_read(site: Site) -> None:
    with pytest.raises(InvalidInput):
        site.give(Feedback(Verdict.AGREE, series="2.25.404"))
    assert site.ledger.feedback.of(site.analysis) == ()


def test_the_training_signal_names_models_and_slides_and_no_patient(site: Site) -> None:
    report = from_json((site.folder / "artifacts" / "report.json").read_bytes())
    site.give(Feedback(Verdict.AMEND, Code("6574001", "SCT", "Necrosis"), None, "Mrs Miller"))
    [line] = site.ledger.feedback.signal(site.settings.state / "analyses")
    assert line["verdict"] == "amend"
    assert line["finding"] == {"code": "6574001", "scheme": "SCT", "display": "Necrosis"}
    assert line["series"] == [report.slides[0].series]
    assert [model["weights_sha256"] for model in line["models"]] == [each.weights_sha256 for each in report.models]
    header = report.slides[0].header
    assert header is not None
    said = json.dumps(line)
    assert not [
        word for word in ("Miller", header.patient_id, header.patient_name, header.accession) if str(word) in said
    ]
    shutil.rmtree(site.folder)
    [line] = site.ledger.feedback.signal(site.settings.state / "analyses")
    assert (line["verdict"], line["models"], line["series"]) == ("amend", [], [])
