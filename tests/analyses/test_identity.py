"""The right patient: identifiers of order and slides agree, or nothing is read and nothing leaves."""

import dataclasses
from pathlib import Path

import pydicom
import pytest

from gateway.analyses.identity import (
    IdentityHeld,
    check_identity,
    check_one_patient,
    differences_now,
    unreleased,
)
from gateway.archive import FolderArchive
from gateway.archive.cache import FrameCache
from gateway.domain.identity import Problem
from gateway.domain.order import Order, Patient, SlideReference, Specimen
from gateway.domain.report import Report
from gateway.domain.slide import SlideHeader
from gateway.operations.errors import IdentityMismatch, SlideNotInArchive
from tests.reports.conftest import COMMITTED, reading_of, report_of, result_of, volume_headers

HEADER = SlideHeader(
    study_uid="1.2", series_uid="1.2.3", patient_id="P-1", patient_id_issuer="H", accession="A-1", container_id="C-1"
)
SPECIMEN = Specimen(slides=(SlideReference("1.2"),), container="C-1")
ORDER = Order("p", (SPECIMEN,), accession="A-1", patient=Patient("P-1", "H"))


def found(order: Order = ORDER, *headers: SlideHeader, container: str | None = "C-1") -> list[tuple[str, Problem]]:
    specimen = dataclasses.replace(SPECIMEN, container=container)
    slides = [(specimen, header) for header in headers or (HEADER,)]
    return [(each.attribute, each.problem) for each in unreleased(order, slides, ())]


def header(**changed: str | None) -> SlideHeader:
    return dataclasses.replace(HEADER, **changed)


def order(**changed: object) -> Order:
    return dataclasses.replace(ORDER, **changed)


def test_what_is_the_same_passes() -> None:
    assert found() == []
    check_identity(ORDER, [(SPECIMEN, HEADER)], ())


def test_blanks_around_a_value_do_not_count_and_all_else_does() -> None:
    assert found(ORDER, header(patient_id=" P-1  ", accession="A-1 ", container_id=" C-1")) == []
    assert found(order(patient=Patient("P-1 ", "H"))) == []
    for other in ("p-1", "P- 1", "P-1\t", "P‐1", "P-01", "P-1\u00a0"):
        assert found(ORDER, header(patient_id=other)) == [("patient id", Problem.DIFFERS)], other


@pytest.mark.parametrize(
    ("changed", "attribute"),
    [("patient_id", "patient id"), ("accession", "accession number"), ("container_id", "container identifier")],
)
@pytest.mark.parametrize(
    ("value", "problem"), [("other", Problem.DIFFERS), (None, Problem.NOT_IN_SLIDE), ("  ", Problem.NOT_IN_SLIDE)]
)
def test_what_differs_or_is_not_in_the_slide(changed: str, attribute: str, value: str | None, problem: Problem) -> None:
    assert found(ORDER, header(**{changed: value})) == [(attribute, problem)]


def test_what_is_not_in_the_order_and_what_is_nowhere() -> None:
    bare = order(patient=Patient(), accession=None)
    attributes = ["patient id", "accession number", "container identifier"]
    assert found(bare, container=None) == [(attribute, Problem.NOT_IN_ORDER) for attribute in attributes]
    empty = header(patient_id=None, accession="", container_id=None)
    assert found(bare, empty, container=" ") == [(attribute, Problem.NOT_ANYWHERE) for attribute in attributes]


@pytest.mark.parametrize(
    ("ordered", "read", "differs"), [("H", "G", True), (None, "G", False), ("H", None, False), ("H", " H ", False)]
)
def test_issuers_are_compared_where_both_give_one(ordered: str | None, read: str | None, differs: bool) -> None:
    expected = [("issuer of the patient id", Problem.DIFFERS)] if differs else []
    assert found(order(patient=Patient("P-1", ordered)), header(patient_id_issuer=read)) == expected


def test_slides_of_two_patients_are_a_difference_of_their_own() -> None:
    """Also where the order names no patient and a person has released that."""
    strangers = (HEADER, header(series_uid="1.2.4", patient_id="P-2"))
    assert ("patient id among the slides", Problem.DIFFERS) in found(order(patient=Patient()), *strangers)


def test_a_release_covers_what_it_was_given_for_and_nothing_else() -> None:
    slides = [(SPECIMEN, header(accession="A-2"))]
    with pytest.raises(IdentityHeld) as held:
        check_identity(ORDER, slides, ())
    released = {difference.digest for difference in held.value.differences}
    check_identity(ORDER, slides, released)
    for changed in (
        header(accession="A-3"),
        header(accession="A-2", series_uid="1.2.4"),
        header(accession="A-2", patient_id="P-2"),
    ):
        with pytest.raises(IdentityHeld) as again:
            check_identity(ORDER, [(SPECIMEN, changed)], released)
        assert len(again.value.differences) == 1


def test_the_sentence_names_attributes_and_no_value() -> None:
    with pytest.raises(IdentityMismatch) as caught:
        check_identity(ORDER, [(SPECIMEN, header(patient_id="P-2", container_id="C-2"))], ())
    detail = caught.value.detail
    assert "patient id, container identifier" in detail
    assert not [value for value in ("P-1", "P-2", "C-1", "C-2") if value in detail]


def test_slides_that_nobody_ordered_belong_to_one_patient() -> None:
    check_one_patient([HEADER, header(patient_id="P-1 "), header(patient_id=None), header(patient_id_issuer=None)])
    for other in (header(patient_id="P-2"), header(patient_id_issuer="G")):
        with pytest.raises(IdentityMismatch):
            check_one_patient([HEADER, other])


# Before anything leaves, with fresh headers


@pytest.fixture
def archive(tmp_path: Path) -> FolderArchive:
    """The committed slide, to be changed in place."""
    folder = tmp_path / "pacs"
    folder.mkdir()
    for path in COMMITTED.glob("*.dcm"):
        (folder / path.name).write_bytes(path.read_bytes())
    return FolderArchive(folder)


@pytest.fixture
def report() -> Report:
    slide = reading_of(volume_headers(COMMITTED)[0])
    report = report_of([slide], [result_of(slide)])
    specimen = dataclasses.replace(report.order.specimens[0], container=slide.container)
    return dataclasses.replace(report, order=dataclasses.replace(report.order, specimens=(specimen,)))


def test_headers_are_read_anew_before_anything_leaves(archive: FolderArchive, report: Report, tmp_path: Path) -> None:
    cache = FrameCache(tmp_path / "cache", 2**30)
    assert differences_now(report, archive, cache, ()) == ()
    for path in (tmp_path / "pacs").glob("*.dcm"):
        corrected = pydicom.dcmread(path)
        corrected.PatientID = "P0002"
        corrected.save_as(path)
    [difference] = differences_now(report, archive, cache, ())
    assert (difference.attribute, difference.problem) == ("patient id", Problem.DIFFERS)
    assert difference.series == report.slides[0].series


@pytest.mark.parametrize("keyword", ["PatientID", "IssuerOfPatientID", "AccessionNumber", "ContainerIdentifier"])
def test_a_report_of_another_header_never_leaves(
    archive: FolderArchive, report: Report, tmp_path: Path, keyword: str
) -> None:
    """A release covers what differs between order and slide, not objects that carry the patient the slide had."""
    cache = FrameCache(tmp_path / "cache", 2**30)
    for path in (tmp_path / "pacs").glob("*.dcm"):
        corrected = pydicom.dcmread(path)
        setattr(corrected, keyword, "CORRECTED")
        corrected.save_as(path)
    released = {each.digest for each in differences_now(report, archive, cache, ())} if keyword[0] != "I" else set()
    with pytest.raises(IdentityMismatch, match="Order the analysis again") as caught:
        differences_now(report, archive, cache, released)
    assert not isinstance(caught.value, IdentityHeld)
    assert "CORRECTED" not in caught.value.detail


def test_a_header_that_was_corrected_to_what_the_order_says(
    archive: FolderArchive, report: Report, tmp_path: Path
) -> None:
    """Released as it was, then corrected: nothing differs any more, but for the report's own objects."""
    [slide] = report.slides
    assert slide.header is not None
    wrong = dataclasses.replace(slide, header=dataclasses.replace(slide.header, patient_id="WRONG"))
    with pytest.raises(IdentityMismatch):
        differences_now(
            dataclasses.replace(report, slides=(wrong,)), archive, FrameCache(tmp_path / "cache", 2**30), ()
        )


def test_a_slide_that_is_gone_cannot_be_compared(archive: FolderArchive, report: Report, tmp_path: Path) -> None:
    for path in (tmp_path / "pacs").glob("*.dcm"):
        path.unlink()
    with pytest.raises(SlideNotInArchive):
        differences_now(report, archive, FrameCache(tmp_path / "cache", 2**30), ())
