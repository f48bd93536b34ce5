"""Instances on the local disk: whose they are, and whether they are whole."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.uid import DeflatedExplicitVRLittleEndian

from gateway.archive.bounded import HEAD_READS, BoundedReads, is_systems, read_meta
from gateway.archive.dicomweb_answers import Transient
from gateway.operations.errors import ArchiveRefused, NotDicom, SlideError, TruncatedFile, UnsupportedTransferSyntax

UNDEFINED_LENGTH = 0xFFFFFFFF
_PIXEL_DATA = (b"\xe0\x7f\x10\x00", b"\xe0\x7f\x08\x00", b"\xe0\x7f\x09\x00")
_ITEM, _SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_WHOSE = (
    "PatientID",
    "IssuerOfPatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "ContainerIdentifier",
)


@dataclass(frozen=True, slots=True)
class InstanceId:
    """Which instance a file is."""

    study: str
    series: str
    sop: str


def instance_id(path: Path) -> InstanceId:
    """The UIDs in the data set of a DICOM file (PS3.10); no more than its header is read.

    Raises NotDicom, TruncatedFile, UnsupportedTransferSyntax (a deflated data set cannot be read in bounded memory).
    """
    with path.open("rb") as file:
        return _read_header(file)[0]


def is_whole(path: Path) -> bool:
    """True where the pixel data of a DICOM image file are there to the last byte.

    Encapsulated pixel data (PS3.5 A.4) are walked item by item to the sequence delimiter, without reading frames.
    Raises as `instance_id`.
    """
    with path.open("rb") as file:
        _, implicit = _read_header(file)
        header = file.read(8 if implicit else 12)
        length = int.from_bytes(header[-4:], "little")
        return header[:4] in _PIXEL_DATA and _reaches_its_end(file, length, path.stat().st_size)


def check_received(file: Path, wanted: InstanceId, *, whole: bool) -> None:
    """Raise ArchiveRefused where the file is not the instance that was asked for, Transient where it broke off.

    `whole` says that HTTP has told its end. A slide that lies truncated in the PACS passes then: what is wrong with a
    slide is for `gateway.slides` to say.
    """
    try:
        received = instance_id(file)
        whole = whole or is_whole(file)
    except SlideError as error:
        raise ArchiveRefused(f"The PACS gave an instance that cannot be used. {error.detail}") from None
    if received != wanted:
        raise ArchiveRefused(f"The PACS gave another instance than {wanted.sop}: see its log.")
    if not whole:
        raise Transient(f"The PACS broke off in the middle of the instance {wanted.sop}.")


def same_identity(described: Path, stored: Path) -> bool:
    """Whether a stored instance says of whose it is all that its header, as described today, says. Raises OSError."""
    try:
        files = described, stored
        sides = [pydicom.dcmread(file, stop_before_pixels=True, specific_tags=[*_WHOSE]) for file in files]
        pairs = [[str(side.get(keyword) or "").strip("^= ") for side in sides] for keyword in _WHOSE]
    except Exception as error:  # pydicom raises nearly anything for a damaged value
        if is_systems(error):
            raise
        return False
    return all(said in ("", stored_says) for said, stored_says in pairs)


def _read_header(file: BinaryIO) -> tuple[InstanceId, bool]:
    """The UIDs, and whether the syntax is implicit VR; leaves the file at its pixel data."""
    name = Path(file.name).name.removeprefix(".").removesuffix(".part")
    try:
        meta = read_meta(Path(file.name))
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            raise UnsupportedTransferSyntax(f"{name} is deflated: store it with another transfer syntax.")
        dataset = pydicom.dcmread(
            BoundedReads(file, HEAD_READS),
            stop_before_pixels=True,
            specific_tags=["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"],
        )
        uids = InstanceId(str(dataset.StudyInstanceUID), str(dataset.SeriesInstanceUID), str(dataset.SOPInstanceUID))
        return uids, bool(dataset.file_meta.TransferSyntaxUID.is_implicit_VR)
    except UnsupportedTransferSyntax:
        raise
    except pydicom.errors.InvalidDicomError:
        raise NotDicom(f"{name} is not a DICOM file.") from None
    except Exception:
        # A hostile or broken header makes pydicom raise nearly anything; none of it may cross this room's wall.
        raise TruncatedFile(f"The header of {name} cannot be read to its end: the file is damaged.") from None


def _reaches_its_end(file: BinaryIO, length: int, size: int) -> bool:
    if length != UNDEFINED_LENGTH:
        return file.tell() + length <= size
    return end_of_items(file, size) is not None


def end_of_items(file: BinaryIO, size: int) -> int | None:
    """Where the run of items ends that begins here (PS3.5 A.4), its delimiter included; None where it breaks off.

    `size` is that of the file.
    """
    while len(item := file.read(8)) == 8:
        if item[:4] == _SEQUENCE_END:
            return file.tell()
        item_length = int.from_bytes(item[4:], "little")
        if item[:4] != _ITEM or file.tell() + item_length > size:
            return None
        file.seek(item_length, os.SEEK_CUR)
    return None
