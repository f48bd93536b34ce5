import subprocess
from pathlib import Path

import pydicom
import pytest

from gateway.domain.report import Report
from gateway.reports.derived import Kind, ObjectName
from gateway.reports.encapsulated import write_encapsulated_pdf
from gateway.reports.pdf import to_pdf
from tests.reports.conftest import reading_of, report_of, result_of
from tests.reports.drawn import POOR, REAL_SLIDES, poor, real_levels
from tests.support.dciodvfy import needs_dciodvfy, validate


def taken_out(file: Path) -> bytes:
    """The document as dcmtk takes it out."""
    out = file.with_suffix(".pdf")
    subprocess.run(["dcm2pdf", str(file), str(out)], check=True, capture_output=True)
    return out.read_bytes()


@pytest.mark.validators
@needs_dciodvfy
@pytest.mark.parametrize("name", REAL_SLIDES)
def test_the_same_document_comes_out(name: str, tmp_path: Path) -> None:
    image = real_levels(name)[0]
    slide = reading_of(image)
    report = report_of([slide], [result_of(slide)])
    document = to_pdf(report, {})
    write_encapsulated_pdf(tmp_path / "report.dcm", report, image, document)
    assert validate(tmp_path / "report.dcm") == []
    assert taken_out(tmp_path / "report.dcm") == document
    dataset = pydicom.dcmread(tmp_path / "report.dcm")
    assert dataset.EncapsulatedDocumentLength == len(document)
    assert dataset.MIMETypeOfEncapsulatedDocument == "application/pdf"
    assert dataset.VerificationFlag == "UNVERIFIED"
    assert (dataset.Modality, dataset.ConversionType) == ("DOC", "WSD")
    assert dataset.ConceptNameCodeSequence[0].CodeValue == "126000"
    assert dataset.BurnedInAnnotation == "YES"
    assert dataset.DocumentTitle == "Tissue classification, research use"
    assert dataset.SeriesDescription == "Tissue classification, research use: document"
    assert (dataset.PatientName, dataset.PatientID) == (image.PatientName, image.PatientID)
    assert [item.ReferencedSOPInstanceUID for item in dataset.SourceInstanceSequence] == [image.SOPInstanceUID]
    name = ObjectName(report.analysis_id, Kind.PDF, str(image.StudyInstanceUID))
    assert (dataset.SOPInstanceUID, dataset.SeriesInstanceUID) == (name.sop_instance_uid, name.series_instance_uid)


@pytest.mark.validators
@needs_dciodvfy
@pytest.mark.parametrize("length", [1000, 1001])
def test_an_odd_length_is_padded_and_told(length: int, report: Report, image: pydicom.Dataset, tmp_path: Path) -> None:
    document = b"%PDF-1.7\n".ljust(length - 6, b" ") + b"\n%%EOF"
    write_encapsulated_pdf(tmp_path / "report.dcm", report, image, document)
    dataset = pydicom.dcmread(tmp_path / "report.dcm")
    assert dataset.EncapsulatedDocumentLength == length
    assert dataset.EncapsulatedDocument[:length] == document
    assert len(dataset.EncapsulatedDocument) % 2 == 0
    assert validate(tmp_path / "report.dcm") == []


@pytest.mark.validators
@needs_dciodvfy
@pytest.mark.parametrize("name", POOR)
def test_a_poor_header_still_gives_an_object(name: str, tmp_path: Path) -> None:
    report, source = poor(name)
    write_encapsulated_pdf(tmp_path / "report.dcm", report, source.image, b"%PDF-1.7")
    assert validate(tmp_path / "report.dcm") == []
    assert pydicom.dcmread(tmp_path / "report.dcm").PatientName == source.image.PatientName


def test_names_every_image_of_its_study(
    two_slides: Report, second_study: tuple[Report, list[pydicom.Dataset]], image: pydicom.Dataset, tmp_path: Path
) -> None:
    def sources(report: Report, of: pydicom.Dataset) -> list[str]:
        write_encapsulated_pdf(tmp_path / "report.dcm", report, of, b"%PDF-1.7")
        items = pydicom.dcmread(tmp_path / "report.dcm").SourceInstanceSequence
        assert {item.ReferencedSOPClassUID for item in items} == {of.SOPClassUID}
        return [item.ReferencedSOPInstanceUID for item in items]

    assert sources(two_slides, image) == [image.SOPInstanceUID, "2.25.902"]
    report, images = second_study
    assert [sources(report, of) for of in images] == [[of.SOPInstanceUID] for of in images]


def test_encoding_twice_gives_the_same_bytes(report: Report, image: pydicom.Dataset, tmp_path: Path) -> None:
    for name in "ab":
        write_encapsulated_pdf(tmp_path / name, report, image, b"%PDF-1.7")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_says_when_it_is_exploratory(exploratory: Report, image: pydicom.Dataset, tmp_path: Path) -> None:
    write_encapsulated_pdf(tmp_path / "report.dcm", exploratory, image, b"%PDF-1.7")
    dataset = pydicom.dcmread(tmp_path / "report.dcm")
    assert dataset.DocumentTitle == "Tissue classification, research use, exploratory"
    assert dataset.SeriesDescription.endswith("exploratory: document")
