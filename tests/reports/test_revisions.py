"""A signature or a correction is a revision of its own: every encoding says it, nothing before it changes."""

import html
import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import jsonschema
import pydicom
import pytest

from gateway.domain.codes import Code
from gateway.domain.report import SIGNED, UNSIGNED, Amendment, Picture, Report, ReportState, Signature
from gateway.operations.errors import StateError
from gateway.reports import (
    from_json,
    keep,
    kept,
    report_schema,
    result_objects,
    to_sr,
    wording,
    write_all,
    write_revision,
)
from tests.reports.conftest import source_of
from tests.reports.pdf_text import pages
from tests.support.dciodvfy import needs_dciodvfy, validate
from tests.support.dicom import file_bytes

SIGNED_AT = datetime(2026, 11, 26, 14, 5, 0, tzinfo=UTC)
SIGNER = Signature(
    by="person:jane", name="Jane Doe", organisation="pathology", time=SIGNED_AT, comment="Seen & agreed."
)
CORRECTOR = replace(SIGNER, by="person:max", name="Max Müller", time=SIGNED_AT.replace(hour=15), comment=None)
AMENDMENT = Amendment(
    reason="A second look after the conference.",
    text="The area called mucus is <b>necrosis</b>;\nmuscle is as reported.",
    findings=(Code("6574001", "SCT", "Necrosis"), Code("no-mucus", "99LOCAL", "No mucus, in spite of the map")),
)
NEW = {
    "report.json",
    "report.html",
    "report.pdf",
    "report.sr.dcm",
    "report.pdf.dcm",
    "report.ko.dcm",
    "tissue-1.geojson",
}


@dataclass(frozen=True)
class Made:
    """The revisions of one report, the machine's first, each with its folder."""

    reports: tuple[Report, ...]
    folders: tuple[Path, ...]

    def sr(self, number: int) -> pydicom.Dataset:
        return pydicom.dcmread(self.folders[number - 1] / "report.sr.dcm")


def made_in(folder: Path, report: Report, images: Sequence[pydicom.Dataset]) -> Made:
    """Preliminary, signed, amended, signed again."""
    sources = [source_of(image, report.tissue_of(image.SeriesInstanceUID)) for image in images]
    first = replace(
        report, statement=f"Research use. {UNSIGNED} For colon.", objects=result_objects(report.slides, sources)
    )
    reports = [first, first.signed(SIGNER)]
    reports.append(reports[-1].amended(AMENDMENT, CORRECTOR))
    reports.append(reports[-1].signed(replace(SIGNER, comment=None)))
    (folder / "headers").mkdir(parents=True)
    keep(folder / "headers", images)
    folders = [folder / str(each.revision) for each in reports]
    for each in folders:
        each.mkdir()
    write_all(folders[0], first, sources, {}, segmentation_type="BINARY")
    for number, revised in enumerate(reports[1:], 1):
        write_revision(folders[number], revised, kept(folder / "headers"), folders[:number][::-1])
    return Made(tuple(reports), tuple(folders))


@pytest.fixture(scope="module")
def made(report: Report, image: pydicom.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made_in(tmp_path_factory.mktemp("revisions"), report, [image])


def test_the_states_of_a_report(made: Made) -> None:
    first, signed, amended, again = made.reports
    assert [each.state.value for each in made.reports] == ["preliminary", "final", "amended", "amended"]
    assert [(each.revision, each.supersedes) for each in made.reports] == [(1, None), (2, 1), (3, 2), (4, 3)]
    assert [each.may_be_signed for each in made.reports] == [True, False, True, False]
    assert first.amended(AMENDMENT, CORRECTOR).state is ReportState.AMENDED
    assert signed.issued == SIGNED_AT
    assert (first.statement.count(UNSIGNED), signed.statement.count(UNSIGNED)) == (1, 0)
    assert SIGNED in again.statement
    assert [each.revision for each in again.amendments] == [3]
    twice = amended.amended(replace(AMENDMENT, text="And the rest."), SIGNER)
    assert [each.amendment.text for each in twice.amendments] == [AMENDMENT.text, "And the rest."]


def test_a_revision_writes_what_tells_the_report_and_nothing_else(made: Made) -> None:
    drawn = {"tissue-1.seg.dcm", "tissue-1.pm.dcm", "tissue-1.ann.dcm"}
    assert {path.name for path in made.folders[0].iterdir()} == NEW | drawn
    for folder in made.folders[1:]:
        assert {path.name for path in folder.iterdir()} == NEW


def test_every_encoding_says_who_signed_and_what_was_corrected(made: Made) -> None:
    for report, folder in zip(made.reports, made.folders, strict=True):
        document = json.loads((folder / "report.json").read_text())
        jsonschema.validate(document, report_schema())
        assert from_json((folder / "report.json").read_bytes()) == report
        page = (folder / "report.html").read_text()
        printed = pages((folder / "report.pdf").read_bytes())
        in_sr = pydicom.dcmread(folder / "report.sr.dcm").to_json()
        in_ko = pydicom.dcmread(folder / "report.ko.dcm").to_json()
        geojson = json.loads((folder / "tissue-1.geojson").read_text())["pathserve"]
        standing = wording.standing(report)
        assert (geojson["state"], geojson["revision"]) == (report.state.value, report.revision)
        assert standing in geojson["statements"]
        assert html.escape(standing) in page
        assert json.dumps(standing)[1:-1] in in_sr
        assert json.dumps(standing)[1:-1] in in_ko
        assert squeezed(standing) in "".join(printed)
        assert all(wording.mark(report) in each for each in printed)
        texts = [wording.remark_of_signer(report)]
        for amended in report.amendments:
            texts += [wording.amendment_title(amended), *(text for _, text in wording.amendment_rows(amended))]
        for text in filter(None, texts):
            assert html.escape(text) in page
            assert squeezed(text) in "".join(printed)
        for amended in report.amendments:
            for code in amended.amendment.findings:
                assert code.code in in_sr
                assert code.display in in_sr
        encapsulated = pydicom.dcmread(folder / "report.pdf.dcm")
        length = encapsulated.EncapsulatedDocumentLength
        assert encapsulated.EncapsulatedDocument[:length] == (folder / "report.pdf").read_bytes()
        assert encapsulated.VerificationFlag == ("UNVERIFIED" if report.revision == 1 else "VERIFIED")


def test_nothing_of_a_signed_report_says_that_it_is_not(made: Made) -> None:
    for folder in made.folders[1:]:
        said = [path.read_text() for path in folder.iterdir() if path.suffix in (".html", ".json", ".geojson")]
        said += [pydicom.dcmread(path).to_json() for path in folder.glob("*.dcm") if path.name != "report.pdf.dcm"]
        said += pages((folder / "report.pdf").read_bytes())
        for text in said:
            assert not [
                word for word in ("reliminary", "PRELIMINARY", "unsigned", "not signed", "UNVERIFIED") if word in text
            ]


def test_documents_are_verified_and_name_what_they_supersede(made: Made) -> None:
    first, *later = (made.sr(report.revision) for report in made.reports)
    assert "VerifyingObserverSequence" not in first
    assert "PredecessorDocumentsSequence" not in first
    before = first
    for document, signer in zip(later, (SIGNER, CORRECTOR, SIGNER), strict=True):
        assert (document.CompletionFlag, document.PreliminaryFlag, document.VerificationFlag) == (
            "COMPLETE", "FINAL", "VERIFIED",
        )  # fmt: skip
        [observer] = document.VerifyingObserverSequence
        assert str(observer.VerifyingObserverName) == f"{signer.name}^"
        assert observer.VerifyingOrganization == signer.organisation
        assert observer.VerificationDateTime == signer.time.strftime("%Y%m%d%H%M%S+0000")
        assert observer.VerifyingObserverIdentificationCodeSequence[0].CodeValue == signer.by
        [study] = document.PredecessorDocumentsSequence
        [series] = study.ReferencedSeriesSequence
        [instance] = series.ReferencedSOPSequence
        assert (study.StudyInstanceUID, series.SeriesInstanceUID, instance.ReferencedSOPInstanceUID) == (
            before.StudyInstanceUID, before.SeriesInstanceUID, before.SOPInstanceUID,
        )  # fmt: skip
        before = document


def test_what_is_made_anew_is_another_object_of_the_same_study_and_patient(made: Made) -> None:
    objects = [pydicom.dcmread(path) for folder in made.folders for path in folder.glob("report.*.dcm")]
    assert len(objects) == 12
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber"):
        assert len({each[keyword].value for each in objects}) == 12
    for keyword in ("StudyInstanceUID", "PatientID", "PatientName", "PatientBirthDate", "AccessionNumber"):
        assert len({str(each[keyword].value) for each in objects}) == 1


def test_an_amendment_stands_in_the_document_as_what_a_person_observed(made: Made) -> None:
    for number in (3, 4):
        [amendment] = [
            item for item in made.sr(number).ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == "amendment"
        ]
        said: dict[str, list[object]] = {}
        for item in amendment.ContentSequence:
            name = item.ConceptNameCodeSequence[0].CodeValue
            value = item.get("TextValue") or item.get("PersonName") or item.get("DateTime")
            said.setdefault(name, []).append(value or item.ConceptCodeSequence[0].CodeValue)
        assert said["121005"] == ["121006"]  # the observer is a person
        assert str(said["121008"][0]) == f"{CORRECTOR.name}^"
        assert said["amendment-reason"] == [AMENDMENT.reason]
        assert said["121106"] == [AMENDMENT.text]
        assert said["121071"] == [code.code for code in AMENDMENT.findings]


def test_key_objects_list_the_documents_of_their_own_revision_and_what_is_drawn(made: Made) -> None:
    drawn = {pydicom.dcmread(path).SOPInstanceUID for path in made.folders[0].glob("tissue-1.*.dcm")}
    for folder in made.folders:
        selection = pydicom.dcmread(folder / "report.ko.dcm")
        listed = {
            item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
            for item in selection.ContentSequence
            if "ReferencedSOPSequence" in item
        }
        own = {pydicom.dcmread(folder / f"report.{kind}.dcm").SOPInstanceUID for kind in ("sr", "pdf")}
        assert drawn | own <= listed
        assert len(listed) == len(drawn | own) + 1


def test_regions_stay_as_they_are(made: Made) -> None:
    first, *later = (json.loads((folder / "tissue-1.geojson").read_text()) for folder in made.folders)
    assert len(first["features"]) > 0
    assert all(each["features"] == first["features"] for each in later)


def test_kept_headers_make_the_same_documents(
    two_slides: Report, image: pydicom.Dataset, second_image: pydicom.Dataset, tmp_path: Path
) -> None:
    keep(tmp_path, [image, second_image])
    assert file_bytes(to_sr(two_slides, kept(tmp_path))) == file_bytes(to_sr(two_slides, [image, second_image]))


def test_a_revision_made_again_is_the_same_bytes(made: Made, tmp_path: Path) -> None:
    write_revision(tmp_path, made.reports[2], kept(made.folders[0].parent / "headers"), made.folders[:2][::-1])
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (made.folders[2] / path.name).read_bytes(), path.name


def test_two_studies(second_study: tuple[Report, list[pydicom.Dataset]], tmp_path: Path) -> None:
    made = made_in(tmp_path, *second_study)
    for name in ("report.sr.dcm", "report-2.sr.dcm"):
        first, second = (pydicom.dcmread(folder / name) for folder in made.folders[:2])
        [study] = second.PredecessorDocumentsSequence
        assert study.StudyInstanceUID == first.StudyInstanceUID
        assert (
            study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == first.SOPInstanceUID
        )


def test_names_that_are_none_of_dicom(report: Report, image: pydicom.Dataset) -> None:
    odd = replace(SIGNER, by="person:" + "x" * 200, name="Doe^Jane=\\\x00" + "é" * 90, organisation="\\")
    amendment = Amendment("\x07Why\\", "what\x00ever " * 100, (Code("x" * 16, "y" * 16, "z" * 64),))
    document = to_sr(report.amended(amendment, odd), [image])
    [observer] = document.VerifyingObserverSequence
    assert str(observer.VerifyingObserverName).startswith("Doe Jane")
    assert isinstance(observer.VerifyingObserverIdentificationCodeSequence[0].LongCodeValue, str)
    assert len(str(observer.VerifyingObserverName)) <= 64
    assert len(file_bytes(document)) > 1000


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("山田\u3000太郎", "山田 太郎^"),
        ("Dr.\u00a0Jane Doe", "Dr. Jane Doe^"),
        ("Мария Иванова", "Мария Иванова^"),
        ("A=B=C", "A B C^"),
        (" ", "unknown^"),
    ],
)
def test_names_of_people_everywhere(report: Report, image: pydicom.Dataset, name: str, expected: str) -> None:
    signed = report.signed(replace(SIGNER, by="person:CORP\\jane", name=name))
    document = pydicom.dcmread(BytesIO(file_bytes(to_sr(signed, [image]))))
    [observer] = document.VerifyingObserverSequence
    assert str(observer.VerifyingObserverName) == expected
    assert observer.VerifyingObserverIdentificationCodeSequence[0].CodeValue == "person:CORP/jane"


def test_a_picture_that_was_changed_is_not_signed(report: Report, image: pydicom.Dataset, tmp_path: Path) -> None:
    for name in ("1", "2", "headers"):
        (tmp_path / name).mkdir()
    (tmp_path / "1" / "thumbnail-1.jpg").write_bytes(b"another")
    shown = Picture(
        role="thumbnail", file="thumbnail-1.jpg", media_type="image/jpeg", sha256=sha256(b"made").hexdigest(),
        width_px=1, height_px=1, series=report.slides[0].series,
    )  # fmt: skip
    with pytest.raises(StateError, match="not the one"):
        write_revision(tmp_path / "2", replace(report, pictures=(shown,)).signed(SIGNER), [image], [tmp_path / "1"])


@pytest.mark.validators
@needs_dciodvfy
def test_validators_find_no_error(made: Made) -> None:
    for folder in made.folders[1:]:
        objects = sorted(folder.glob("*.dcm"))
        assert len(objects) == 3
        assert {path.name: validate(path) for path in objects} == {path.name: [] for path in objects}


@pytest.mark.validators
@pytest.mark.skipif(not shutil.which("dsrdump"), reason="needs dcmtk")
def test_dcmtk_reads_every_revision(made: Made) -> None:
    for folder in made.folders:
        shown = subprocess.run(["dsrdump", folder / "report.sr.dcm"], capture_output=True, text=True, check=False)
        assert shown.returncode == 0, shown.stderr


def squeezed(text: str) -> str:
    return "".join(text.split())
