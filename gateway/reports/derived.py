"""What every DICOM object that we derive from a slide has in common: whose it is, what made it, when, and its names.

Objects are built by highdicom, by our own writers or by hand; `complete` then makes them one family, so that no encoder
says it otherwise. All of it is a pure function of the report and of the source image's header.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum

from highdicom import AlgorithmIdentificationSequence
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import CodedConcept
from pydicom import DataElement, Dataset
from pydicom.sr.codedict import codes
from pydicom.tag import Tag

from gateway.domain.codes import PRIVATE_SCHEME
from gateway.domain.report import Report, Segmented
from gateway.domain.uids import derive_uid, object_uid
from gateway.reports import wording
from gateway.reports.sr_concepts import ARTIFICIAL_INTELLIGENCE, coded, long_string

AS_RECEIVED = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "OtherPatientIDsSequence",
    "PatientBirthDate",
    "PatientSex",
    "PatientAge",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "StudyInstanceUID",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "StudyDescription",
    "AccessionNumber",
    "IssuerOfAccessionNumberSequence",
    "ReferringPhysicianName",
    "TimezoneOffsetFromUTC",
)
"""What every object takes of patient and study, as received."""
TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
)
"""What every object has of patient and study, empty where the image lacks it."""
SPECIMEN = (
    "ContainerIdentifier",
    "IssuerOfTheContainerIdentifierSequence",
    "ContainerTypeCodeSequence",
    "SpecimenDescriptionSequence",
)
"""The Specimen module (PS3.3 C.7.6.22), copied into image objects as received."""
SCANNER = ("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions")
"""What is said of the scanner, as received."""
EVIDENCE = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "Rows", "Columns")
"""What a document's evidence sequence needs of an object."""
_SCHEME_DESIGNATOR = Tag("CodingSchemeDesignator")


@dataclass(frozen=True, slots=True)
class _Kind:
    series_number: int
    noun: str


class Kind(Enum):
    """The kinds of object that a report is encoded in; each lies in a series of its own in the slide's study."""

    SR = _Kind(9001, "report")
    SEG = _Kind(9002, "segments")
    PM = _Kind(9003, "heat map")
    ANN = _Kind(9004, "regions")
    PDF = _Kind(9005, "document")
    KO = _Kind(9006, "key objects")

    @property
    def extension(self) -> str:
        """The middle of the file's name: `….seg.dcm`."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class ObjectName:
    """The identity of one derived object. `of` is what it is about: a slide's series UID, or a study's UID; where there
    are several of a kind about a slide, its series and which of them.

    What a later revision of the report makes anew lies in a series of its own, so that no series ever changes.
    """

    analysis_id: str
    kind: Kind
    of: str
    revision: int = 1

    @property
    def sop_instance_uid(self) -> str:
        return object_uid(self.analysis_id, self.kind.extension, self.of, self.revision)

    @property
    def series_instance_uid(self) -> str:
        return object_uid(self.analysis_id, f"{self.kind.extension}-series", self.of, self.revision)

    @property
    def series_number(self) -> int:
        return self.kind.value.series_number + 10 * (self.revision - 1)


def complete(dataset: Dataset, report: Report, image: Dataset, name: ObjectName, *, instance_number: int = 1) -> None:
    """Set on `dataset` what all our objects carry, from the report and the source image's header; in place.

    Patient and study as received (empty where the image lacks them), equipment, series, UIDs, time of issue in the
    study's time zone, the scanner as contributing equipment. The caller's own modules stay as they are.
    """
    for keyword in AS_RECEIVED:
        if keyword in image:
            dataset[keyword] = image[keyword]
        elif keyword in TYPE_2:
            setattr(dataset, keyword, None)
    if _zone(dataset.get("TimezoneOffsetFromUTC")) is None:
        dataset.pop("TimezoneOffsetFromUTC", None)  # our times would be read by it
    issued = local_time(report.issued, dataset)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPInstanceUID = name.sop_instance_uid
    dataset.SeriesInstanceUID = name.series_instance_uid
    dataset.SeriesNumber = name.series_number
    dataset.InstanceNumber = instance_number
    dataset.SeriesDescription = series_description(report, name.kind)
    dataset.SeriesDate = dataset.ContentDate = dataset.InstanceCreationDate = issued.strftime("%Y%m%d")
    dataset.SeriesTime = dataset.ContentTime = dataset.InstanceCreationTime = issued.strftime("%H%M%S")
    dataset.Manufacturer = long_string(report.software.manufacturer)
    dataset.ManufacturerModelName = long_string(report.software.name)
    dataset.DeviceSerialNumber = long_string(report.software.device_uid)
    dataset.SoftwareVersions = long_string(report.software.version)
    # highdicom puts itself here, with the time of the day: the same report would not give the same bytes.
    dataset.ContributingEquipmentSequence = scanner(image)
    if not dataset.ContributingEquipmentSequence:
        del dataset.ContributingEquipmentSequence
    if "file_meta" in dataset.__dict__:
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    identified = _coding_schemes(dataset, report, image)
    if identified:
        dataset.CodingSchemeIdentificationSequence = identified


def copy_specimen(dataset: Dataset, image: Dataset) -> None:
    """The Specimen module of the image, as received."""
    for keyword in SPECIMEN:
        if keyword in image:
            dataset[keyword] = image[keyword]


def series_description(report: Report, kind: Kind) -> str:
    """What a PACS shows of the series: protocol, research use, whether exploratory, and what it holds."""
    title = wording.document_title(report)
    return long_string(title if kind is Kind.SR else f"{title}: {kind.value.noun}")


def local_time(time: datetime, dataset: Dataset) -> datetime:
    """The time in the time zone of the object, which is the study's own (TimezoneOffsetFromUTC), else in UTC."""
    return time.astimezone(_zone(dataset.get("TimezoneOffsetFromUTC")) or UTC)


def _zone(offset: object) -> timezone | None:
    """The time zone of an offset, ±HHMM from -1200 to +1400 (PS3.3 C.12.1.1); None where it is none of these."""
    matched = re.fullmatch(r"([+-]\d\d)([0-5]\d)", offset, re.ASCII) if isinstance(offset, str) else None
    if matched is None:
        return None
    minutes = int(f"{matched[1][0]}{matched[2]}")
    shift = timedelta(hours=int(matched[1]), minutes=minutes)
    return timezone(shift) if timedelta(hours=-12) <= shift <= timedelta(hours=14) else None


def scanner(image: Dataset) -> list[Dataset]:
    """The scanner as contributing equipment (PS3.3 C.12.1), as received, where its header names a manufacturer."""
    if not image.get("Manufacturer"):
        return []
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [CodedConcept.from_code(codes.DCM.AcquisitionEquipment)]
    for keyword in SCANNER:
        if keyword in image:
            item.add(image[keyword])
    return [item]


def reference_to(image: Dataset, uid: str | None = None) -> Dataset:
    """One item of a Referenced SOP Sequence (PS3.3 10.8): the image, or the instance `uid` of the same level."""
    item = Dataset()
    item.ReferencedSOPClassUID = image.SOPClassUID
    item.ReferencedSOPInstanceUID = uid or image.SOPInstanceUID
    return item


def evidence(dataset: Dataset, uid: str | None = None) -> Dataset:
    """An object, or the instance `uid` of the same level, as evidence (PS3.3 C.17.6.2.1); patient and study are left to
    `complete`, unchecked by highdicom."""
    item = Dataset()
    for keyword in EVIDENCE:
        if keyword in dataset:
            setattr(item, keyword, dataset[keyword].value)
    if uid is not None:
        item.SOPInstanceUID = uid
    for keyword in TYPE_2:
        setattr(item, keyword, None)
    return item


def evidence_read(report: Report, images: Sequence[Dataset]) -> list[Dataset]:
    """The evidence of every instance of the levels that were read, `images` being one of each."""
    return [evidence(image, uid) for image in images for uid in instances_read(report, image)]


def instances_read(report: Report, image: Dataset) -> tuple[str, ...]:
    """The SOP instance UIDs of the level that was read, `image` being that of one: all parts of a concatenation."""
    slide = report.slide_of(image.SeriesInstanceUID)
    return tuple(dict.fromkeys((str(image.SOPInstanceUID), *(slide.sop_instance_uids if slide else ()))))


def algorithm_of(report: Report) -> AlgorithmIdentificationSequence:
    """What made the segments and annotation groups of a report (PS3.3 10.16), with the engines that it ran."""
    return AlgorithmIdentificationSequence(
        name=long_string(report.protocol),
        version=long_string(report.software.version),
        source=long_string(report.software.manufacturer),
        parameters={
            model.name: f"version {model.version}, engine sha256 {model.engine_sha256}" for model in report.models
        }
        or None,
        family=coded(ARTIFICIAL_INTELLIGENCE),
    )


def tracking_of(report: Report, slide_number: int, role: str) -> tuple[str, str]:
    """Identifier and UID under which all objects speak of one thing on a slide (numbered from 1)."""
    identifier = f"{report.analysis_id}/slide-{slide_number}/{role}"
    return identifier, derive_uid(report.analysis_id, identifier)


def segment_role(segmented: Segmented) -> str:
    """The role of a prompt on a slide, in tracking identifiers and UIDs."""
    return f"segment-{segmented.index + 1}"


def _coding_schemes(dataset: Dataset, report: Report, image: Dataset) -> list[Dataset]:
    """Who is behind the private codes of an object (PS3.3 C.12.1.1.1): ours, and what the image says of its own.

    On the way every element is decoded by its own character set; pydicom would write untouched bytes as they are.
    """
    used = {element.value for element in _elements(dataset) if element.tag == _SCHEME_DESIGNATOR}
    others = used - {PRIVATE_SCHEME}
    known = image.get("CodingSchemeIdentificationSequence") or []
    identified = [item for item in known if item.get("CodingSchemeDesignator") in others]
    if PRIVATE_SCHEME in used:
        identified.append(
            CodingSchemeIdentificationItem(
                designator=PRIVATE_SCHEME,
                name="pathserve concepts",
                responsible_organization=long_string(report.software.manufacturer),
            )
        )
    return identified


def _elements(dataset: Dataset) -> Iterator[DataElement]:
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from _elements(item)
        yield element
