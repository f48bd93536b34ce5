"""Report -> DICOM Comprehensive 3D SR by TID 1500 (PS3.16), one document a study.

The document is a pure function of the report and of the headers of the images that were read: UIDs come from the
analysis id, times from `Report.issued`, and encoding twice gives the same bytes.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from highdicom import sr as hd
from pydicom import Dataset
from pydicom.sr.codedict import codes

from gateway.domain.codes import PRIVATE_SCHEME, Code
from gateway.domain.report import FindingKind, Report, SlideReading
from gateway.operations.errors import PathserveError
from gateway.reports import sr_concepts as concept
from gateway.reports import wording
from gateway.reports.derived import Kind, ObjectName, complete, evidence, evidence_read
from gateway.reports.sr_groups import SlideGroups
from gateway.reports.sr_screening import case_items
from gateway.reports.sr_signed import amendment_container, replace_document, verify

_SHORT_STRING = 16


def to_sr(
    report: Report, source_images: Sequence[Dataset], segmentations: Mapping[str, Dataset] = MappingProxyType({})
) -> Dataset:
    """The SR of one study. `source_images`: for each of its slides that was read, the header (without pixels) of an
    instance of the level that was read. `segmentations`: the headers of those that segments lie in, by file.

    Patient and study attributes are copied from the first source image as received. Raises PathserveError where the
    images belong to several studies or do not cover the study's slides that were read.
    """
    if len({str(source.StudyInstanceUID) for source in source_images}) != 1:
        raise PathserveError("A structured report belongs to one study, but its source images do not. Report this.")
    study = str(source_images[0].StudyInstanceUID)
    pairs = _slides_with_sources(report, study, source_images)
    images = [image for _, _, image in pairs]
    name = ObjectName(report.analysis_id, Kind.SR, study, report.revision)
    signature = report.signature
    document = hd.Comprehensive3DSR(
        evidence=[*evidence_read(report, images), *map(evidence, segmentations.values())],
        content=_content(report, pairs, segmentations),
        series_instance_uid=name.series_instance_uid,
        series_number=name.series_number,
        sop_instance_uid=name.sop_instance_uid,
        instance_number=1,
        is_complete=True,
        is_final=signature is not None,
        is_verified=False,
        manufacturer=concept.long_string(report.software.manufacturer),
        content_qualification="RESEARCH",
        requested_procedures=_request(report, study),
        specific_character_set="ISO_IR 192",
    )
    complete(document, report, images[0], name)
    if signature is not None:
        verify(document, signature)
    if report.supersedes is not None:
        replace_document(document, ObjectName(report.analysis_id, Kind.SR, study, report.supersedes))
    return document


def _slides_with_sources(
    report: Report, study: str, source_images: Sequence[Dataset]
) -> list[tuple[int, SlideReading, Dataset]]:
    """Number (from 1), reading and image of each slide of the study that was read."""
    pairs = []
    for number, slide in enumerate(report.slides, 1):
        if slide.study != study or not slide.read:
            continue
        image = next((image for image in source_images if image.SOPInstanceUID in slide.sop_instance_uids), None)
        if image is None:
            raise PathserveError(f"The image that slide {number} was read from is not at hand. Run the analysis again.")
        pairs.append((number, slide, image))
    if not pairs:
        raise PathserveError("No slide of this study was read, so there is nothing to put into a structured report.")
    return pairs


def _request(report: Report, study: str) -> list[Dataset] | None:
    """The request that this document answers (PS3.3 C.17.2), where the order named an accession that fits VR SH."""
    accession = report.order.accession
    if accession is None or len(accession) > _SHORT_STRING or "\\" in accession or not accession.isprintable():
        return None
    request = Dataset()
    request.StudyInstanceUID = study
    request.ReferencedStudySequence = []
    request.AccessionNumber = accession
    request.PlacerOrderNumberImagingServiceRequest = None
    request.FillerOrderNumberImagingServiceRequest = None
    request.RequestedProcedureID = None
    request.RequestedProcedureDescription = None
    request.RequestedProcedureCodeSequence = []
    return [request]


def _content(
    report: Report, pairs: Sequence[tuple[int, SlideReading, Dataset]], segmentations: Mapping[str, Dataset]
) -> hd.MeasurementReport:
    subjects = [_subject(image) for _, _, image in pairs]
    shared = subjects[0] if len({_specimen_uid(image) for _, _, image in pairs}) == 1 else None
    groups = [
        group
        for (number, slide, image), subject in zip(pairs, subjects, strict=True)
        for group in SlideGroups(report, number, slide, image, None if shared else subject, segmentations).all()
    ]
    content = hd.MeasurementReport(
        observation_context=hd.ObservationContext(
            observer_device_context=device_observer(report), subject_context=shared
        ),
        procedure_reported=concept.coded(concept.IMAGE_ANALYSIS),
        title=hd.CodedConcept(*concept.REPORT, concept.long_string(f"Imaging Measurement Report, {_use(report)}")),
        imaging_measurements=groups,
        referenced_images=[image for _, _, image in pairs],
    )
    content[0].ContentSequence.append(_remarks(report, pairs))
    for amended in report.amendments:
        content[0].ContentSequence.append(amendment_container(amended, pairs[0][2]))
    return content


def _use(report: Report) -> str:
    return "research use, exploratory" if report.exploratory else "research use"


def device_observer(report: Report) -> hd.ObserverContext:
    """The software as the observer (TID 1004): no person has read the slide."""
    return hd.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=hd.DeviceObserverIdentifyingAttributes(
            uid=report.software.device_uid,
            name=concept.plain(report.software.name),
            manufacturer_name=concept.plain(report.software.manufacturer),
            model_name=concept.plain(report.software.name),
        ),
    )


def _specimen_uid(image: Dataset) -> str | None:
    specimens = image.get("SpecimenDescriptionSequence")
    uid = specimens[0].get("SpecimenUID") if specimens else None
    return uid if isinstance(uid, str) else None  # several values are none


def _subject(image: Dataset) -> hd.SubjectContext | None:
    """The specimen as the image names it (TID 1009); none where it has no UID: identifiers are never invented."""
    uid = _specimen_uid(image)
    if not uid:
        return None
    return hd.SubjectContext(
        subject_class=codes.DCM.Specimen,
        subject_class_specific_context=hd.SubjectContextSpecimen(
            uid=uid,
            identifier=image.SpecimenDescriptionSequence[0].get("SpecimenIdentifier") or None,
            container_identifier=image.get("ContainerIdentifier") or None,
        ),
    )


def _remarks(report: Report, pairs: Sequence[tuple[int, SlideReading, Dataset]]) -> hd.ContainerContentItem:
    """The case's category, the statement, and each finding about the case or one of these slides, as TID 1500's
    qualitative evaluations."""
    container = hd.ContainerContentItem(
        name=concept.coded(concept.QUALITATIVE_EVALUATIONS), relationship_type=hd.RelationshipTypeValues.CONTAINS
    )
    statements = [wording.RESEARCH_USE, wording.standing(report), wording.remark_of_signer(report) or ""]
    if report.exploratory:
        statements.append(wording.EXPLORATORY)
    items: list[hd.ContentItem] = [*case_items(report)]
    items += [
        _text(text, hd.RelationshipTypeValues.CONTAINS) for text in (*statements, report.statement) if text.strip()
    ]
    read_here = {slide.series for _, slide, _ in pairs}
    read_elsewhere = {slide.series for slide in report.slides if slide.read} - read_here
    for finding in report.findings:
        if finding.series in read_elsewhere:
            continue
        item = hd.CodeContentItem(
            name=concept.coded(_kind(finding.kind)),
            value=concept.coded(finding.code),
            relationship_type=hd.RelationshipTypeValues.CONTAINS,
        )
        about = wording.slide_name(report, finding.series)
        item.ContentSequence = hd.ContentSequence(
            [_text(f"{about}: {finding.text}", hd.RelationshipTypeValues.HAS_PROPERTIES)]
        )
        if finding.series is not None:
            item.ContentSequence.append(_series(finding.series))
        items.append(item)
    for slide, reason in wording.unread(report):
        about = wording.slide_name(report, slide.series)
        items.append(_text(f"{about} was not read: {reason}", hd.RelationshipTypeValues.CONTAINS))
    container.ContentSequence = hd.ContentSequence(items)
    return container


def _kind(kind: FindingKind) -> Code:
    return Code(kind.value, PRIVATE_SCHEME, wording.kind_title(kind))


def _text(text: str, relationship: hd.RelationshipTypeValues) -> hd.TextContentItem:
    return hd.TextContentItem(
        name=concept.coded(concept.COMMENT), value=concept.plain(text), relationship_type=relationship
    )


def _series(series: str) -> hd.UIDRefContentItem:
    return hd.UIDRefContentItem(
        name=concept.coded(concept.SERIES_UID),
        value=series,
        relationship_type=hd.RelationshipTypeValues.HAS_PROPERTIES,
    )
