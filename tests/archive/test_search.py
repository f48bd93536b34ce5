"""Slides found by study, series, accession number and container: in a PACS, in PACS that differ, and in a folder."""

from dataclasses import replace
from pathlib import Path

import pydicom
import pytest

from gateway.archive import FolderArchive, SeriesEntry, SlideQuery, open_archive
from gateway.archive.dicomweb import DicomWebArchive
from gateway.archive.dicomweb_http import Limits
from gateway.operations.errors import IdentityMismatch, InvalidInput, SlideNotInArchive
from tests.support.dicom import dicom_file
from tests.support.orthanc import Orthanc
from tests.support.qido import Qido, Slide, running_qido

ONE = Slide("2.25.1", "2.25.11")
SAME_CONTAINER = Slide("2.25.1", "2.25.12")
OTHER_CONTAINER = Slide("2.25.1", "2.25.13", container="C2")
REPORT = Slide("2.25.1", "2.25.14", accession="", modality="SR")
OTHER_CASE = Slide("2.25.2", "2.25.21", accession="a1", container="c1", patient="P2")
THIRD_CASE = Slide("2.25.3", "2.25.31", accession="A3", container="C3", patient="P3")
ALL = (ONE, SAME_CONTAINER, OTHER_CONTAINER, REPORT, OTHER_CASE, THIRD_CASE)

QUERIES = [
    (SlideQuery(study="2.25.1"), [ONE, SAME_CONTAINER, OTHER_CONTAINER]),
    (SlideQuery(series="2.25.31"), [THIRD_CASE]),
    (SlideQuery(study="2.25.1", series="2.25.12"), [SAME_CONTAINER]),
    (SlideQuery(accession="A1"), [ONE, SAME_CONTAINER, OTHER_CONTAINER]),
    (SlideQuery(container="C1"), [ONE, SAME_CONTAINER]),
    (SlideQuery(accession="A1", container="C2"), [OTHER_CONTAINER]),
    (SlideQuery(study="2.25.1", container="C1"), [ONE, SAME_CONTAINER]),
    (SlideQuery(study="2.25.1", accession="A1", container="C1", series="2.25.11"), [ONE]),
]
NOTHING = [
    SlideQuery(study="2.25.404"),
    SlideQuery(series="2.25.404"),
    SlideQuery(series="2.25.14"),  # a report
    SlideQuery(accession="A"),
    SlideQuery(accession="A*"),  # a wildcard in QIDO, a letter here
    SlideQuery(container="C404"),
    SlideQuery(study="2.25.1", accession="A3"),
    SlideQuery(accession="A1", container="C3"),
    SlideQuery(study="2.25.2", series="2.25.11"),
]


def found(entries: tuple[SeriesEntry, ...]) -> list[tuple[str, str]]:
    return [(entry.study, entry.series) for entry in entries]


def named(slides: list[Slide]) -> list[tuple[str, str]]:
    return [(slide.study, slide.series) for slide in slides]


@pytest.fixture
def folder(tmp_path: Path) -> FolderArchive:
    for slide in ALL:
        for number in (1, 2):
            path = tmp_path / f"{slide.series}-{number}.dcm"
            path.write_bytes(dicom_file(slide.study, slide.series, f"{slide.series}.{number}", modality=slide.modality))
            dataset = pydicom.dcmread(path)
            dataset.AccessionNumber, dataset.PatientID = slide.accession, slide.patient
            dataset.ContainerIdentifier = slide.container
            dataset.save_as(path)
    return FolderArchive(tmp_path)


@pytest.mark.parametrize(("query", "slides"), QUERIES)
def test_in_a_folder(folder: FolderArchive, query: SlideQuery, slides: list[Slide]) -> None:
    assert found(folder.search(query)) == named(slides)
    assert folder.search(query)[0].instances == 2


@pytest.mark.parametrize("query", NOTHING)
def test_nothing_in_a_folder(folder: FolderArchive, query: SlideQuery) -> None:
    with pytest.raises(SlideNotInArchive):
        folder.search(query)


@pytest.mark.parametrize(
    "server",
    [
        pytest.param(Qido(ALL), id="as-the-standard-says"),
        pytest.param(Qido(ALL, case_insensitive=True), id="case-insensitive"),
        pytest.param(Qido(ALL, last_says=True), id="another-object-speaks-for-the-study"),
        pytest.param(Qido(ALL, returns_container=False), id="container-not-returned"),
        pytest.param(Qido(ALL, ignored=frozenset({"ContainerIdentifier"})), id="container-not-matched"),
        pytest.param(
            Qido(ALL, ignored=frozenset({"ContainerIdentifier", "AccessionNumber"}), returns_container=False),
            id="nothing-matched",
        ),
    ],
)
def test_in_pacs_that_differ(server: Qido) -> None:
    with running_qido(server) as address:
        archive = open_archive(address)
        for query, slides in QUERIES:
            assert found(archive.search(query)) == named(slides), query
        for query in NOTHING:
            with pytest.raises(SlideNotInArchive):
                archive.search(query)


def test_one_number_for_two_patients(folder: FolderArchive, tmp_path: Path) -> None:
    other = replace(THIRD_CASE, accession="A1", container="C1")
    (tmp_path / "other.dcm").write_bytes(dicom_file(other.study, other.series, "2.25.31.1"))
    dataset = pydicom.dcmread(tmp_path / "other.dcm")
    dataset.AccessionNumber, dataset.ContainerIdentifier, dataset.PatientID = "A1", "C1", "P3"
    dataset.save_as(tmp_path / "other.dcm")
    with running_qido(Qido((*ALL[:-1], other))) as address:
        for archive in (folder, open_archive(address)):
            for query in (SlideQuery(accession="A1"), SlideQuery(container="C1")):
                with pytest.raises(IdentityMismatch, match="several patients"):
                    archive.search(query)
            assert found(archive.search(SlideQuery(study="2.25.3", accession="A1"))) == named([other])


def test_a_container_in_two_studies_of_one_patient() -> None:
    other = replace(ONE, study="2.25.4", series="2.25.41")
    with running_qido(Qido((ONE, other))) as address:
        assert found(open_archive(address).search(SlideQuery(container="C1"))) == named([ONE, other])


def test_too_many() -> None:
    many = tuple(Slide(f"2.25.1{n}", f"2.25.2{n}", patient="P1") for n in range(30))
    with running_qido(Qido(many)) as address:
        archive = DicomWebArchive.from_address(address, Limits(series=20))
        for query in (SlideQuery(accession="A1"), SlideQuery(container="C1")):
            with pytest.raises(InvalidInput, match="more slides than a case has"):
                archive.search(query)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"study": "../x"},
        {"series": ""},
        {"accession": ""},
        {"accession": "A\\B"},
        {"container": "C\n1"},
        {"container": " C1"},
        {"accession": "1" * 65},
    ],
)
def test_a_query_that_is_none(keys: dict[str, str]) -> None:
    with pytest.raises(InvalidInput):
        SlideQuery(**keys)


@pytest.mark.pacs
def test_in_a_real_pacs(orthanc: Orthanc, slide_uids: tuple[str, str]) -> None:
    archive = open_archive(orthanc.address)
    study, series = slide_uids
    expected = (SeriesEntry(study, series, 8),)
    for query in (
        SlideQuery(study=study),
        SlideQuery(series=series),
        SlideQuery(accession="ACC0001"),
        SlideQuery(container="ACC0001-A1-1"),
        SlideQuery(accession="ACC0001", container="ACC0001-A1-1"),
    ):
        assert archive.search(query) == expected, query
    for query in (
        SlideQuery(accession="acc0001"),
        SlideQuery(accession="ACC000*"),
        SlideQuery(container="ACC0001-A1"),
        SlideQuery(accession="ACC0001", container="ACC0001-A1-2"),
    ):
        with pytest.raises(SlideNotInArchive):
            archive.search(query)
