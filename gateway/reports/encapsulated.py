"""The report's PDF inside a DICOM object (Encapsulated PDF, PS3.3 A.45.1), so that a PACS keeps it with the slides."""

from pathlib import Path

from pydicom import Dataset
from pydicom.uid import EncapsulatedPDFStorage

from gateway.domain.codes import Code
from gateway.domain.report import Report
from gateway.reports import dicom_file, wording
from gateway.reports import sr_concepts as concept
from gateway.reports.derived import Kind, ObjectName, complete, reference_to

_TITLE = Code(*concept.REPORT, "Imaging Measurement Report")


def write_encapsulated_pdf(path: Path, report: Report, image: Dataset, pdf: bytes) -> None:
    """Write `pdf` as one object of the study of `image`, the header of a level that was read.

    It names as its source every image of that study that the report was read from. Raises OSError.
    """
    dataset = dicom_file.begin(EncapsulatedPDFStorage, "DOC")
    dataset.ConversionType = "WSD"
    dataset.AcquisitionDateTime = None
    dataset.BurnedInAnnotation = "YES"  # the pages name the patient
    dataset.SourceInstanceSequence = [
        reference_to(image, uid)
        for slide in report.slides
        if slide.read and slide.study == image.StudyInstanceUID
        for uid in slide.sop_instance_uids
    ]
    dataset.DocumentTitle = wording.document_title(report)
    dataset.ConceptNameCodeSequence = [concept.coded(_TITLE)]
    dataset.VerificationFlag = "VERIFIED" if report.signature else "UNVERIFIED"
    dataset.MIMETypeOfEncapsulatedDocument = "application/pdf"
    dataset.EncapsulatedDocument = pdf + b"\0" * (len(pdf) % 2)
    dataset.EncapsulatedDocumentLength = len(pdf)
    name = ObjectName(report.analysis_id, Kind.PDF, str(image.StudyInstanceUID), report.revision)
    complete(dataset, report, image, name)
    dicom_file.save(dataset, path)
