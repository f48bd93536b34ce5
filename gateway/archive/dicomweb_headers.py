"""The headers of a series' instances: from WADO-RS metadata (PS3.18 10.4.1.1.5), which is what the PACS says today, and
from the beginning of a stored instance for what metadata leave out: transfer syntax, ICC profile, per-frame groups.

URLs of bulk data in the metadata are never followed.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import pydicom
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_partial
from pydicom.uid import UID

from gateway.archive.bounded import HEAD_READS, BoundedReads, is_systems
from gateway.archive.dicomweb_answers import dicom_in
from gateway.archive.dicomweb_files import InstanceId
from gateway.archive.dicomweb_http import DICOM_JSON, Session, Transient, text, values
from gateway.archive.dicomweb_multipart import MultipartError
from gateway.archive.protocol import SeriesEntry
from gateway.domain.uids import is_uid
from gateway.operations.errors import (
    ArchiveRefused,
    InvalidSlide,
    NotDicom,
    PathserveError,
    TruncatedFile,
    UnsupportedTransferSyntax,
)

# pydicom warns of every value that its VR does not allow, and its warnings, which are logged, hold the value.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

_STUDY, _SERIES, _SOP, _MODALITY, _SYNTAX = "0020000D", "0020000E", "00080018", "00080060", "00083002"
_OPTICAL_PATHS, _ICC, _PER_FRAME = "00480105", "00282000", "52009230"
_OF_THE_ANSWER = {"00080054", "00080056", _SYNTAX, "00081190", "00041130"}
"""Attributes that say how to retrieve an instance, not what it is."""
_PIXEL_DATA_GROUP = 0x7FE0
_PER_FRAME_TAG = 0x52009230
_HEAD_BYTES = 128 * 2**20
_MOST_FRAMES = 1 << 24
_MOST_ELEMENTS = 300_000
"""Attributes in the metadata of a series: a slide of a dozen images has 4,000. Each takes half a kilobyte."""


@dataclass(frozen=True, slots=True)
class Head:
    """The beginning of a stored instance: its data set up to the pixel data, with its file meta information.

    `digest` is that of the data set's bytes, `size` the bytes of the whole instance where the PACS says so.
    """

    dataset: Dataset
    digest: str
    size: int

    @property
    def icc_profiles(self) -> list[bytes | None]:
        """The ICC profile of each optical path."""
        return [path.get("ICCProfile") for path in self.dataset.get("OpticalPathSequence") or ()]


@dataclass(frozen=True, slots=True)
class Described:
    """One instance as the archive describes it. `dataset` has no pixel data, and no file meta information yet.

    `syntax` is None where it is not said; `without_icc` counts the optical paths whose ICC profile is not there;
    `names_icc` says that one exists; `per_frame` that there are per-frame groups, which are not there.
    """

    sop: str
    digest: str
    dataset: Dataset
    syntax: str | None
    without_icc: int
    names_icc: bool
    per_frame: bool

    @classmethod
    def of_head(cls, sop: str, head: Head) -> Self:
        """An instance that only its own head describes."""
        return cls(sop, head.digest, head.dataset, str(head.dataset.file_meta.TransferSyntaxUID), 0, False, False)

    @property
    def frames(self) -> int:
        """Number of Frames (PS3.3 C.7.6.6). Raises InvalidSlide where no slide can have so many, or fewer than one."""
        count = _whole(self.dataset.get("NumberOfFrames") or 1)
        if not 1 <= count <= _MOST_FRAMES:
            raise InvalidSlide("The slide gives a number of frames that no slide can have: convert it again.")
        return count

    @property
    def raw_frame_bytes(self) -> int:
        """The bytes of a decoded frame; 0 where the header does not say its size."""
        keywords = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")
        return math.prod(max(0, _whole(self.dataset.get(keyword) or 0)) for keyword in keywords) // 8

    @property
    def is_volume(self) -> bool:
        """ImageType value 3 (PS3.3 C.8.12.4.1.1)."""
        kind: Any = self.dataset.get("ImageType") or ()
        return not isinstance(kind, str) and len(kind) > 2 and kind[2] == "VOLUME"


def completed(dataset: Dataset, head: Head) -> Dataset:
    """A header with the instance's own transfer syntax, ICC profiles and per-frame groups, whatever was presumed."""
    syntax = head.dataset.file_meta.TransferSyntaxUID
    before = getattr(dataset, "file_meta", None)
    if before is not None and before.TransferSyntaxUID.is_implicit_VR != syntax.is_implicit_VR:
        for _ in dataset.iterall():  # decodes what was read, so that it can be written in another encoding
            pass
    paths, own = dataset.get("OpticalPathSequence") or (), head.dataset.get("OpticalPathSequence") or ()
    if len(paths) != len(own):
        dataset.OpticalPathSequence = own
    for path, profile in zip(paths, head.icc_profiles, strict=False):
        if profile is not None:
            path.ICCProfile = profile
        elif "ICCProfile" in path:
            del path.ICCProfile
    if _PER_FRAME_TAG in head.dataset:
        dataset[_PER_FRAME_TAG] = head.dataset.get_item(_PER_FRAME_TAG)
    return _with_syntax(dataset, syntax)


def presumed(described: Described, example: Head | None) -> Dataset:
    """A header that takes what the archive leaves out from another instance of its series, until its own is known."""
    syntax = described.syntax or (example.dataset.file_meta.TransferSyntaxUID if example else "")
    for path, profile in zip(
        described.dataset.get("OpticalPathSequence") or (), example.icc_profiles if example else (), strict=False
    ):
        if profile is not None and "ICCProfile" not in path:
            path.ICCProfile = profile
    return _with_syntax(described.dataset, UID(syntax))


def _with_syntax(dataset: Dataset, syntax: UID) -> Dataset:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def _whole(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return 0


def metadata(session: Session, entry: SeriesEntry) -> dict[str, Described | None] | None:
    """What the PACS says of the slide instances (modality SM) of a series, by SOP instance UID.

    None in place of an instance whose description cannot be read, and in place of all where the PACS has none, or more
    than is read at once: then the heads say it. Raises ArchiveUnavailable, ArchiveRefused (not this series), Cancelled.
    """
    found = session.repeated(lambda: _metadata(session, entry))
    if not found:
        return None
    if _elements(found) > _MOST_ELEMENTS:
        return None
    described: dict[str, Described | None] = {}
    for instance in found:
        if (text(instance, _MODALITY) or "SM") != "SM":
            continue
        sop = text(instance, _SOP) or ""
        if not is_uid(sop):
            raise ArchiveRefused("The PACS lists an object whose UID is not valid: correct it in the PACS.")
        if (text(instance, _STUDY) or entry.study, text(instance, _SERIES) or entry.series) != (
            entry.study,
            entry.series,
        ):
            raise ArchiveRefused("The PACS describes another series than the one that was asked for: see its log.")
        described[sop] = _described(sop, instance)
    return described


def _metadata(session: Session, entry: SeriesEntry) -> list[dict[str, Any]] | None:
    path = f"/studies/{entry.study}/series/{entry.series}/metadata"
    with session.request("metadata", "GET", path, headers={"Accept": DICOM_JSON}) as response:
        if response.status_code != 200 or "json" not in response.headers.get("content-type", ""):
            return None
        try:
            found = json.loads(session.body(response))
        except (ArchiveRefused, ValueError, RecursionError):
            return None
    instances = isinstance(found, list) and len(found) <= session.limits.instances
    return found if instances and all(isinstance(instance, dict) for instance in found) else None


def _described(sop: str, instance: dict[str, Any]) -> Described | None:
    said = {
        tag: element for tag, element in instance.items() if tag not in _OF_THE_ANSWER and not tag.startswith("0002")
    }
    per_frame = said.pop(_PER_FRAME, None) is not None
    syntaxes = values(instance, _SYNTAX)
    syntax = syntaxes[0] if len(syntaxes) == 1 and isinstance(syntaxes[0], str) and is_uid(syntaxes[0]) else None
    try:
        paths = values(said, _OPTICAL_PATHS)
        named = any(_ICC in path for path in paths)
        without_icc = sum("InlineBinary" not in path.get(_ICC, {}) for path in paths)
        without_bulk = {tag: _without_bulk(element) for tag, element in said.items() if _is_value(element)}
        dataset = Dataset.from_json(without_bulk)
        # Text of DICOM JSON is Unicode, whatever the stored instance is written in (PS3.18 F.2).
        dataset.SpecificCharacterSet = "ISO_IR 192"
    except Exception:  # pydicom raises nearly anything for a damaged value
        return None
    digest = hashlib.sha256(json.dumps(without_bulk, sort_keys=True).encode()).hexdigest()
    return Described(sop, digest, dataset, syntax, without_icc, named, per_frame)


def _elements(found: list[dict[str, Any]]) -> int:
    """How many attributes there are in these instances and their sequences, but for those of per-frame groups."""
    count, pending = 0, list(found)
    while pending:
        dataset = pending.pop()
        count += len(dataset)
        if count > _MOST_ELEMENTS:
            break
        for tag, element in dataset.items():
            if tag != _PER_FRAME and isinstance(element, dict) and element.get("vr") == "SQ":
                pending += [item for item in values(dataset, tag) if isinstance(item, dict)]
    return count


def _is_value(element: object) -> bool:
    return isinstance(element, dict) and "BulkDataURI" not in element


def _without_bulk(element: Mapping[str, Any]) -> dict[str, Any]:
    if element.get("vr") != "SQ":
        return dict(element)
    items = [
        {tag: _without_bulk(inner) for tag, inner in (item or {}).items() if _is_value(inner)}
        for item in element.get("Value", ())
    ]
    return {"vr": "SQ", "Value": items}


def head_from(session: Session, response: httpx.Response, wanted: InstanceId) -> Head:
    """The head of a stored instance, from an answer that brings the instance; the rest of it is not read.

    Raises Transient, ArchiveUnavailable, ArchiveRefused, SlideError, Cancelled.
    """
    try:
        pieces = dicom_in(response, session.pieces(response, _HEAD_BYTES))
        head = _read(_Growing(pieces), wanted.sop, int(response.headers.get("content-length") or 0))
    except MultipartError:
        raise Transient(f"The PACS broke off in the middle of the instance {wanted.sop}.") from None
    found = InstanceId(*(str(head.dataset.get(f"{level}InstanceUID")) for level in ("Study", "Series", "SOP")))
    if found != wanted:
        raise ArchiveRefused(f"The PACS gave another instance than {wanted.sop}: see its log.")
    return head


def head_in(file: Path) -> Head:
    """The head of an instance that lies on the local disk. Raises SlideError, OSError."""
    with file.open("rb") as stream:
        return _read(_Growing(iter(lambda: stream.read(1 << 16), b"")), file.stem, file.stat().st_size)


class _Growing:
    """Pieces as a file that can be read, and read again, as far as they have come."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._data = bytearray()
        self._at = 0

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            raise UnsupportedTransferSyntax("The slide is deflated: store it with another transfer syntax.")
        while len(self._data) < self._at + size and (piece := next(self._pieces, None)) is not None:
            self._data += piece
        data = bytes(self._data[self._at : self._at + size])
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset if whence == 0 else self._at + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def digest(self) -> str:
        """Of all that lies before the current position."""
        return hashlib.sha256(self._data[: self._at]).hexdigest()


def _read(stream: _Growing, name: str, size: int) -> Head:
    try:
        bounded = BoundedReads(stream, HEAD_READS)
        dataset = read_partial(bounded, stop_when=lambda tag, _vr, _length: tag >> 16 >= _PIXEL_DATA_GROUP)
        if not dataset.file_meta.get("TransferSyntaxUID"):
            raise ValueError("no transfer syntax")
        return Head(dataset, stream.digest(), size)
    except pydicom.errors.InvalidDicomError:
        raise NotDicom(f"{name} is not a DICOM file.") from None
    except (PathserveError, MultipartError, httpx.HTTPError, httpx.StreamError):
        raise  # of the pieces that are read, and what is deflated
    except Exception as error:
        if is_systems(error):
            raise
        # A hostile or broken header makes pydicom raise nearly anything; none of it may cross this room's wall.
        raise TruncatedFile(f"The header of {name} cannot be read to its end: the file is damaged.") from None
