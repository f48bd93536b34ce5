"""What a person adds to a structured report: the verification, the document it replaces, the amendments."""

from highdicom import sr as hd
from pydicom import Dataset
from pydicom.sr.codedict import codes

from gateway.domain.codes import PRIVATE_SCHEME, Code
from gateway.domain.report import Signature, SignedAmendment
from gateway.reports import sr_concepts as concept
from gateway.reports import wording
from gateway.reports.derived import ObjectName, local_time


def verify(document: Dataset, signature: Signature) -> None:
    """Mark the document as verified, in place (PS3.3 C.17.2): who, of which organisation, when.

    The time is in the document's own time zone, as the time of its content.
    """
    observer = Dataset()
    observer.VerifyingOrganization = concept.long_string(signature.organisation)
    observer.VerificationDateTime = local_time(signature.time, document).strftime("%Y%m%d%H%M%S%z")
    observer.VerifyingObserverName = person_name(signature.name)
    # A directory's name for a person may hold a backslash, which would make two values of one (PS3.5 6.2).
    identifier = concept.plain(signature.by).replace("\\", "/")
    observer.VerifyingObserverIdentificationCodeSequence = [
        concept.coded(Code(identifier, PRIVATE_SCHEME, signature.name))
    ]
    document.VerificationFlag = "VERIFIED"
    document.VerifyingObserverSequence = [observer]


def replace_document(document: Dataset, before: ObjectName) -> None:
    """Name the document that this one supersedes, in place (PS3.3 C.17.2: Predecessor Documents Sequence)."""
    instance = Dataset()
    instance.ReferencedSOPClassUID = document.SOPClassUID
    instance.ReferencedSOPInstanceUID = before.sop_instance_uid
    series = Dataset()
    series.SeriesInstanceUID = before.series_instance_uid
    series.ReferencedSOPSequence = [instance]
    study = Dataset()
    study.StudyInstanceUID = before.of
    study.ReferencedSeriesSequence = [series]
    document.PredecessorDocumentsSequence = [study]


def amendment_container(amended: SignedAmendment, image: Dataset) -> hd.ContainerContentItem:
    """An amendment, with the person who made it as the observer of what it says (PS3.16 TID 1002, 1003).

    Its time is in the time zone that the document has of the image, and does not repeat it: DCMTK 3.6.7 opens no
    document with a content item that does.
    """
    contains = hd.RelationshipTypeValues.CONTAINS
    amendment, by = amended.amendment, amended.signature
    observer = hd.ObserverContext(
        observer_type=codes.DCM.Person,
        observer_identifying_attributes=hd.PersonObserverIdentifyingAttributes(name=person_name(by.name)),
    )
    container = hd.ContainerContentItem(name=concept.coded(concept.AMENDMENT), relationship_type=contains)
    container.ContentSequence = hd.ContentSequence(
        [
            *observer,
            hd.DateTimeContentItem(
                name=concept.coded(concept.AMENDED_ON),
                value=local_time(by.time, image).replace(tzinfo=None),
                relationship_type=contains,
            ),
            hd.TextContentItem(
                name=concept.coded(concept.AMENDMENT_REASON),
                value=concept.plain(amendment.reason),
                relationship_type=contains,
            ),
            hd.TextContentItem(
                name=concept.coded(concept.COMMENT), value=concept.plain(amendment.text), relationship_type=contains
            ),
            *(
                hd.CodeContentItem(
                    name=concept.coded(concept.FINDING), value=concept.coded(code), relationship_type=contains
                )
                for code in amendment.findings
            ),
        ]
    )
    return container


def person_name(name: str) -> str:
    """A name for people as a DICOM person name (PS3.5 6.2.1), at most 64 characters: nobody knows which part of it is
    the family name, so it is one component, and the caret says that this is meant."""
    line = concept.long_string("".join(" " if character in "^=" else character for character in name)) or "unknown"
    return f"{wording.cut(line, 63)}^"
