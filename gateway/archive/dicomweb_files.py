"""Instances on the local disk: whose they are, and whether they are whole."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.uid import DeflatedExplicitVRLittleEndian

from gateway.operations.errors import (
    NotDicom,
    TruncatedFile,
    UnsupportedTransferSyntax,
)

_UNDEFINED_LENGTH = 0xFFFFFFFF
_PIXEL_DATA = (b"\xe0\x7f\x10\x00", b"\xe0\x7f\x08\x00", b"\xe0\x7f\x09\x00")
_ITEM, _SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"


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


def _read_header(file: BinaryIO) -> tuple[InstanceId, bool]:
    """The UIDs, and whether the syntax is implicit VR; leaves the file at its pixel data."""
    name = Path(file.name).name.removeprefix(".").removesuffix(".part")
    try:
        meta = pydicom.filereader.read_file_meta_info(file.name)
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            raise UnsupportedTransferSyntax(f"{name} is deflated: store it with another transfer syntax.")
        dataset = pydicom.dcmread(
            file, stop_before_pixels=True, specific_tags=["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"]
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
    if length != _UNDEFINED_LENGTH:
        return file.tell() + length <= size
    while len(item := file.read(8)) == 8:
        if item[:4] == _SEQUENCE_END:
            return True
        item_length = int.from_bytes(item[4:], "little")
        if item[:4] != _ITEM or file.tell() + item_length > size:
            return False
        file.seek(item_length, os.SEEK_CUR)
    return False
