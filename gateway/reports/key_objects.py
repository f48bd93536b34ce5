"""A Key Object Selection (PS3.3 A.35.4, TID 2010) that lists what belongs to one analysis in one study."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from pydicom import Dataset
from pydicom.sr.codedict import codes

from gateway.domain.report import Report
from gateway.operations.errors import PathserveError
from gateway.reports import dicom_file, wording
from gateway.reports import sr_concepts as concept
from gateway.reports.derived import EVIDENCE, Kind, ObjectName, complete, evidence, evidence_read
from gateway.reports.sr import device_observer


def write_key_objects(path: Path, report: Report, images: Sequence[Dataset], objects: Sequence[Path]) -> None:
    """Write the selection: every file of `objects` in the given order, then the `images` that they were drawn from.

    `images`: the headers of the levels that were read, one a slide of the study; all instances of each such level are
    listed (the parts of a concatenation, focal planes). Raises PathserveError where there is no object or one lies in
    another study, StateError where one is damaged, OSError.
    """
    study = str(images[0].StudyInstanceUID)
    headers = (dicom_file.read(file, EVIDENCE) for file in objects)
    listed = [*map(evidence, headers), *evidence_read(report, images)]
    if not objects or {str(item.StudyInstanceUID) for item in listed} != {study}:
        raise PathserveError("A key object selection lists objects of one study, and there are none. Report this.")
    name = ObjectName(report.analysis_id, Kind.KO, study, report.revision)
    document = KeyObjectSelectionDocument(
        evidence=listed,
        content=KeyObjectSelection(
            document_title=codes.DCM.Manifest,
            referenced_objects=listed,
            observer_device_context=device_observer(report),
            description=concept.plain(" ".join(_description(report))),
        ),
        series_instance_uid=name.series_instance_uid,
        series_number=name.series_number,
        sop_instance_uid=name.sop_instance_uid,
        instance_number=1,
        specific_character_set="ISO_IR 192",
    )
    complete(document, report, images[0], name)
    dicom_file.save(document, path)


def _description(report: Report) -> Iterator[str]:
    yield f"All objects of the analysis {report.analysis_id} in this study, and the images that were read."
    yield wording.RESEARCH_USE
    yield wording.standing(report)
    if report.exploratory:
        yield wording.EXPLORATORY
