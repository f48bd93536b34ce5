"""Is what lies in an archive what was sent? Two DICOM files compared in bounded memory, whatever their encoding."""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag, tag_for_keyword

from gateway.archive.bounded import is_systems
from gateway.archive.dicomweb_files import UNDEFINED_LENGTH, end_of_items, instance_id
from gateway.archive.metrics import PACS_RESULTS_ALTERED
from gateway.operations.errors import ArchiveRefused, SlideError, TruncatedFile

_log = logging.getLogger(__name__)

_LARGE_BYTES = 256 * 1024
_PIECE_BYTES = 1 << 20

# What an archive adds of its own accord, and never changes what the object says: the record of its coercions (PS3.3
# C.12.1.1.9), when it coerced, padding; and the character set, since texts are compared decoded.
_ITS_OWN = frozenset(
    tag_for_keyword(keyword)
    for keyword in (
        "OriginalAttributesSequence",
        "InstanceCoercionDateTime",
        "DataSetTrailingPadding",
        "SpecificCharacterSet",
    )
)
# Patient and study attributes that an archive may coerce to what the hospital says of them (PS3.4 B.4.1.3).
_COERCIBLE = frozenset(
    tag_for_keyword(keyword)
    for keyword in (
        "PatientName",
        "PatientID",
        "IssuerOfPatientID",
        "IssuerOfPatientIDQualifiersSequence",
        "TypeOfPatientID",
        "OtherPatientIDs",
        "OtherPatientIDsSequence",
        "OtherPatientNames",
        "PatientBirthDate",
        "PatientBirthTime",
        "PatientSex",
        "PatientAge",
        "PatientSize",
        "PatientWeight",
        "PatientAddress",
        "PatientComments",
        "EthnicGroup",
        "StudyID",
        "StudyDate",
        "StudyTime",
        "StudyDescription",
        "AccessionNumber",
        "IssuerOfAccessionNumberSequence",
        "ReferringPhysicianName",
        "ReferencedStudySequence",
        "ReferencedPatientSequence",
    )
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Keywords of attributes: what the archive replaced and says so, and what differs without leave."""

    coerced: tuple[str, ...]
    differing: tuple[str, ...]


def compare(sent: Path, got: Path) -> Comparison:
    """The data sets of two files, element by element; file meta information is the archive's own business.

    Values larger than 256 KiB are compared on disk, and only byte by byte.
    Raises OSError, NotDicom, TruncatedFile, UnsupportedTransferSyntax (`got` is not a whole DICOM file).
    """
    with sent.open("rb") as ours, got.open("rb") as theirs:
        if _same_bytes(_pieces(ours), _pieces(theirs)):
            return Comparison((), ())
        ours.seek(0)
        theirs.seek(0)
        instance_id(got)
        try:
            first = pydicom.dcmread(ours, defer_size=_LARGE_BYTES)
            second = pydicom.dcmread(theirs, defer_size=_LARGE_BYTES)
            named = _named_as_coerced(second)
            different = sorted(
                tag
                for tag in set(first.keys()) | set(second.keys())
                if tag.element != 0 and tag not in _ITS_OWN and not _same(first, second, tag, ours, theirs)
            )
        except SlideError:
            raise
        except Exception as error:
            if is_systems(error):
                raise
            # A hostile or broken file makes pydicom raise nearly anything; none of it may cross this room's wall.
            raise TruncatedFile("The object cannot be read to its end: it is damaged.") from None
    coerced = [tag for tag in different if tag in named]
    return Comparison(tuple(map(_name, coerced)), tuple(_name(tag) for tag in different if tag not in named))


def check_same(sent: Path, got: Path, holder: str) -> None:
    """Raise ArchiveRefused unless `got`, as `holder` ("The PACS") holds it, is the object that was sent.

    What the archive coerced, as it may, is a warning in the log and in the metrics. Raises OSError.
    """
    try:
        found = compare(sent, got)
    except SlideError as error:
        raise ArchiveRefused(f"What {holder} holds as {sent.name} is not what was sent. {error.detail}") from None
    if found.differing:
        some = ", ".join(found.differing[:5]) + (", …" if len(found.differing) > 5 else "")
        raise ArchiveRefused(
            f"What {holder} holds as {sent.name} is not what was sent (it differs in {some}): remove it there, or have "
            "the PACS keep what it is given; then deliver again."
        )
    if found.coerced:
        PACS_RESULTS_ALTERED.inc()
        _log.warning("the archive replaced %s of %s", ", ".join(found.coerced), sent.name)


def _named_as_coerced(dataset: pydicom.Dataset) -> set[int]:
    """The coercible attributes that Original Attributes Sequence names as modified (PS3.3 C.12.1)."""
    return {
        int(tag)
        for record in dataset.get("OriginalAttributesSequence") or []
        for modified in record.get("ModifiedAttributesSequence") or []
        for tag in modified.keys()  # noqa: SIM118 - iterating a data set gives elements
        if tag in _COERCIBLE
    }


def _same(first: pydicom.Dataset, second: pydicom.Dataset, tag: Any, ours: BinaryIO, theirs: BinaryIO) -> bool:
    if tag not in first or tag not in second:
        return False
    mine, other = first.get_item(tag, keep_deferred=True), second.get_item(tag, keep_deferred=True)
    large = _on_disk(mine), _on_disk(other)
    if all(large) and _same_bytes(_stored(ours, mine), _stored(theirs, other)):
        return True
    if any(large) and not (_is_sequence(mine) or _is_sequence(other)):
        return False
    raw, other_raw = getattr(mine, "value", None), getattr(other, "value", None)
    if isinstance(raw, bytes) and raw == other_raw and mine.VR == other.VR:
        return True
    # Padding, the encoding of lengths, and character sets may differ: what counts is the value.
    return _equal(first, second, tag)


def _equal(first: pydicom.Dataset, second: pydicom.Dataset, tag: Any) -> bool:
    mine, other = first[tag], second[tag]
    if mine.VR != "SQ" or other.VR != "SQ":
        return bool(mine.value == other.value)
    if len(mine.value) != len(other.value):
        return False
    return all(
        {key for key in one.keys() if key.element} == {key for key in two.keys() if key.element}  # noqa: SIM118
        and all(_equal(one, two, key) for key in one.keys() if key.element)  # noqa: SIM118
        for one, two in zip(mine.value, other.value, strict=True)
    )


def _is_sequence(element: Any) -> bool:
    if element.VR is not None:
        return bool(element.VR == "SQ")
    # Without explicit value representations the dictionary tells (PS3.5 7.1.3).
    return bool(dictionary_has_tag(element.tag) and dictionary_VR(element.tag) == "SQ")


def _on_disk(element: Any) -> bool:
    return isinstance(element, pydicom.dataelem.RawDataElement) and element.value is None and element.length != 0


def _stored(file: BinaryIO, element: Any) -> Iterator[bytes]:
    """The element's value as it is stored; of encapsulated pixel data (PS3.5 A.4) the items up to their end."""
    end = element.value_tell + element.length
    if element.length == UNDEFINED_LENGTH:
        end = _end_of_items(file, element.value_tell)
    position = element.value_tell
    while position < end:
        file.seek(position)
        piece = file.read(min(_PIECE_BYTES, end - position))
        if not piece:
            raise TruncatedFile("The object ends in the middle of a value: it is damaged.")
        position += len(piece)
        yield piece


def _end_of_items(file: BinaryIO, start: int) -> int:
    file.seek(start)
    end = end_of_items(file, os.fstat(file.fileno()).st_size)
    if end is None:
        raise TruncatedFile("The object ends in the middle of its pixel data: it is damaged.")
    return end


def _same_bytes(first: Iterator[bytes], second: Iterator[bytes]) -> bool:
    # Both come in pieces of the same size, the last one excepted.
    return all(one == two for one, two in zip_longest(first, second))


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(_PIECE_BYTES):
        yield piece


def _name(tag: Any) -> str:
    return keyword_for_tag(tag) or f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
