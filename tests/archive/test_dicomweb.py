"""The DICOMweb archive with a real PACS."""

import time
from pathlib import Path

import pytest

from gateway.archive.breaker import Breaker
from gateway.archive.cache import FrameCache
from gateway.archive.dicomweb import DicomWebArchive
from gateway.archive.dicomweb_http import Limits
from gateway.archive.protocol import SeriesEntry
from gateway.domain.uids import derive_uid
from gateway.operations.errors import (
    ArchiveRefused,
    ArchiveUnavailable,
    InvalidInput,
    NotDicom,
    SlideNotInArchive,
)
from tests.support.dicom import dicom_file
from tests.support.orthanc import Orthanc

pytestmark = pytest.mark.pacs

QUICK = Limits(backoff_s=0.01)


@pytest.fixture
def archive(orthanc: Orthanc) -> DicomWebArchive:
    return DicomWebArchive.from_address(orthanc.address)


def test_finds_the_slide_series(archive: DicomWebArchive, slide_uids: tuple[str, str]) -> None:
    study, series = slide_uids
    expected = (SeriesEntry(study, series, 8),)
    assert archive.find_series(study) == expected
    assert archive.find_series(study, [series]) == expected


def test_other_modalities_are_no_slides(archive: DicomWebArchive, orthanc: Orthanc, tmp_path: Path) -> None:
    study, slide, document = "2.25.301", "2.25.302", "2.25.303"
    (tmp_path / "slide.dcm").write_bytes(dicom_file(study, slide, "2.25.304"))
    (tmp_path / "document.dcm").write_bytes(dicom_file(study, document, "2.25.305", modality="SR", pixels=None))
    orthanc.upload(tmp_path)
    assert [entry.series for entry in archive.find_series(study)] == [slide]
    with pytest.raises(SlideNotInArchive):
        archive.find_series(study, [slide, document])


def test_unknown_study_and_series(archive: DicomWebArchive, slide_uids: tuple[str, str], cache: FrameCache) -> None:
    with pytest.raises(SlideNotInArchive, match=r"2\.25\.404 is not in the PACS"):
        archive.find_series("2.25.404")
    with pytest.raises(SlideNotInArchive, match=r"2\.25\.404"):
        archive.find_series(slide_uids[0], ["2.25.404"])
    with pytest.raises(SlideNotInArchive):
        archive.fetch(SeriesEntry(slide_uids[0], "2.25.404"), cache)


def test_uids_of_the_order_are_checked(archive: DicomWebArchive, cache: FrameCache, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        archive.find_series("../../instances")
    with pytest.raises(InvalidInput):
        archive.fetch(SeriesEntry("2.25.1", "../../outside"), cache)
    assert not any(tmp_path.iterdir())


def test_stored_once_however_often(
    archive: DicomWebArchive, orthanc: Orthanc, slide_uids: tuple[str, str], tmp_path: Path
) -> None:
    sop = derive_uid("some-analysis", "sr")
    content = dicom_file(slide_uids[0], "2.25.401", sop, modality="SR", pixels=None)
    report = tmp_path / "report.sr.dcm"
    report.write_bytes(content)
    archive.store([report])
    archive.store([report])
    assert orthanc.instances("SR").count(sop) == 1
    assert orthanc.file(sop) == content
    assert archive.find_series(slide_uids[0])[0].instances == 8


def test_another_object_under_the_same_uid_is_refused(
    archive: DicomWebArchive, orthanc: Orthanc, slide_uids: tuple[str, str], tmp_path: Path
) -> None:
    """Orthanc keeps the first, and answers that all is well."""
    sop = derive_uid("another-analysis", "sr")
    content = dicom_file(slide_uids[0], "2.25.402", sop, modality="SR", pixels=None)
    report = tmp_path / "report.sr.dcm"
    report.write_bytes(content)
    archive.store([report])
    report.write_bytes(content.replace(b"TEST^P0001", b"TEST^P0002"))
    with pytest.raises(ArchiveRefused, match=r"report\.sr\.dcm is not what was sent .it differs in PatientName"):
        archive.store([report])
    assert orthanc.file(sop) == content
    orthanc.delete(sop)


def test_what_cannot_be_stored_is_said(archive: DicomWebArchive, tmp_path: Path) -> None:
    text = tmp_path / "report.sr.dcm"
    text.write_bytes(b"not DICOM at all")
    with pytest.raises(NotDicom):
        archive.store([text])


def test_wrong_password(orthanc: Orthanc, tmp_path: Path) -> None:
    archive = DicomWebArchive.from_address(f"dicomweb://pacs:guessed-wrong@127.0.0.1:{orthanc.port}/dicom-web")
    for work in (archive.probe, lambda: archive.find_series("2.25.1")):
        with pytest.raises(ArchiveRefused, match="HTTP 401") as caught:
            work()
        assert "guessed-wrong" not in str(caught.value)
    assert "guessed-wrong" not in archive.address
    assert "guessed-wrong" not in repr(archive.__dict__)


def test_probe(archive: DicomWebArchive, orthanc: Orthanc) -> None:
    archive.probe()
    elsewhere = DicomWebArchive.from_address(orthanc.address.replace("/dicom-web", "/nothing-here"))
    with pytest.raises(ArchiveRefused, match="path"):
        elsewhere.probe()


def test_down_and_up_again(orthanc: Orthanc, slide_uids: tuple[str, str], cache: FrameCache) -> None:
    now = 0.0
    archive = DicomWebArchive.from_address(orthanc.address, QUICK, breaker=Breaker(lambda: now))
    [entry] = archive.find_series(slide_uids[0])
    orthanc.stop()
    try:
        began = time.monotonic()
        for work in (archive.probe, lambda: archive.find_series(entry.study), lambda: archive.fetch(entry, cache)):
            with pytest.raises(ArchiveUnavailable):
                work()
        assert time.monotonic() - began < 15
    finally:
        orthanc.start()
    with pytest.raises(ArchiveUnavailable, match="left alone"):
        archive.probe()
    now += 10
    assert len(archive.fetch(entry, cache).files) == 8
