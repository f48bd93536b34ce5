"""Headers that would take for ever: more elements than any slide has, and data sets that inflate to anything."""

import io
import struct
import zlib

import pydicom
import pytest
from pydicom.filereader import read_partial

from gateway.archive import FolderArchive
from gateway.archive.bounded import HEADER_READS, BoundedReads
from gateway.operations.errors import TruncatedFile, UnsupportedTransferSyntax
from tests.support.dicom import dicom_file

EMPTY_ITEM = b"\xfe\xff\x00\xe0\0\0\0\0"


def with_items(count: int) -> bytes:
    """A file whose Referenced Image Sequence has so many empty items."""
    data = dicom_file()
    at = data.index(b"\x08\x00\x60\x00CS")
    sequence = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + EMPTY_ITEM * count + b"\xfe\xff\xdd\xe0\0\0\0\0"
    return data[:at] + sequence + data[at:]


def test_a_header_is_read_to_its_end_or_refused() -> None:
    whole = read_partial(BoundedReads(io.BytesIO(with_items(1000))))
    assert len(whole.ReferencedImageSequence) == 1000
    with pytest.raises(ValueError, match="more elements"):
        read_partial(BoundedReads(io.BytesIO(with_items(HEADER_READS))))


def test_a_slide_with_endless_items_is_damaged(tmp_path) -> None:
    (tmp_path / "endless.dcm").write_bytes(with_items(1_000_000))
    with pytest.raises(TruncatedFile):
        FolderArchive(tmp_path).entries()


def test_endless_file_meta_information_is_damaged(tmp_path) -> None:
    (tmp_path / "endless.dcm").write_bytes(bytes(128) + b"DICM" + b"\x02\x00\x16\x00AE\0\0" * HEADER_READS)
    with pytest.raises(TruncatedFile):
        FolderArchive(tmp_path).entries()


def deflated(sop_class: str) -> bytes:
    """A file of a kilobyte whose data set has a megabyte."""
    meta = pydicom.dcmread(io.BytesIO(dicom_file())).file_meta
    meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    meta.MediaStorageSOPClassUID = sop_class
    out = io.BytesIO()
    out.write(bytes(128) + b"DICM")
    pydicom.filewriter.write_file_meta_info(out, meta)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    out.write(packer.compress(b"\x10\x00\x10\x00UT\0\0" + struct.pack("<I", 1 << 20) + bytes(1 << 20)))
    return out.getvalue() + packer.flush()


def test_a_deflated_slide_is_refused_by_name(tmp_path) -> None:
    (tmp_path / "slide.dcm").write_bytes(deflated("1.2.840.10008.5.1.4.1.1.77.1.6"))
    with pytest.raises(UnsupportedTransferSyntax, match="deflated"):
        FolderArchive(tmp_path).entries()
    (tmp_path / "other.dcm").write_bytes(dicom_file())
    archive = FolderArchive(tmp_path)
    [entry] = archive.entries()
    with pytest.raises(UnsupportedTransferSyntax, match=r"slide\.dcm"):
        archive.fetch(entry, None)


def test_a_deflated_object_beside_a_slide_does_no_harm(tmp_path) -> None:
    (tmp_path / "report.dcm").write_bytes(deflated("1.2.840.10008.5.1.4.1.1.88.11"))
    (tmp_path / "slide.dcm").write_bytes(dicom_file())
    archive = FolderArchive(tmp_path)
    [entry] = archive.entries()
    assert [file.name for file in archive.fetch(entry, None).files] == ["slide.dcm"]
