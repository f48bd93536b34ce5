"""What is the same object in another encoding, what an archive may change, and what it may not."""

import io
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless

from gateway.archive.compare import check_same, compare
from gateway.operations.errors import ArchiveRefused, PathserveError, SlideError
from tests.support.dicom import dicom_file

LARGE = 1_000_000


def item(text: str, points: int = 0) -> pydicom.Dataset:
    inner = pydicom.Dataset()
    inner.CodeValue, inner.CodingSchemeDesignator, inner.CodeMeaning = "1", "99TEST", text
    outer = pydicom.Dataset()
    outer.AnnotationGroupLabel = text
    outer.AnnotationPropertyTypeCodeSequence = [inner]
    outer.PointCoordinatesData = bytes(range(256)) * (points // 256)
    return outer


@pytest.fixture
def sent(tmp_path: Path) -> Path:
    """An object with a large value, a large sequence, nested sequences, and Chinese in it."""
    dataset = pydicom.dcmread(io.BytesIO(dicom_file(pixels=60_000)))
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName = "王^小東"
    dataset.AccessionNumber = "A1"
    dataset.PixelData = bytes(range(256)) * (LARGE // 256)
    dataset.AnnotationGroupSequence = [item("one", LARGE), item("two")]
    path = tmp_path / "sent.dcm"
    dataset.save_as(path)
    return path


def changed(sent: Path, change: Callable[[pydicom.Dataset], None], **how: object) -> Path:
    dataset = pydicom.dcmread(sent)
    change(dataset)
    path = sent.with_name("got.dcm")
    dataset.save_as(path, **how)
    return path


def undefined_lengths(dataset: pydicom.Dataset) -> None:
    dataset["AnnotationGroupSequence"].is_undefined_length = True
    for one in dataset.AnnotationGroupSequence:
        one.is_undefined_length_sequence_item = True


def own_meta(dataset: pydicom.Dataset) -> None:
    dataset.file_meta.ImplementationVersionName = "SOME_PACS"
    dataset.file_meta.SourceApplicationEntityTitle = "PACS"


def own_padding(dataset: pydicom.Dataset) -> None:
    dataset.DataSetTrailingPadding = bytes(100)


def own_character_set(dataset: pydicom.Dataset) -> None:
    dataset.decode()
    dataset.SpecificCharacterSet = "GB18030"


@pytest.mark.parametrize("change", [undefined_lengths, own_meta, own_padding, own_character_set])
def test_the_same_in_another_encoding(sent: Path, change: Callable[[pydicom.Dataset], None]) -> None:
    got = changed(sent, change)
    assert got.read_bytes() != sent.read_bytes()
    found = compare(sent, got)
    assert (found.coerced, found.differing) == ((), ())
    check_same(sent, got, "the PACS")


def test_implicit_value_representations(sent: Path) -> None:
    dataset = pydicom.dcmread(sent)
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.save_as(sent.with_name("got.dcm"), implicit_vr=True, little_endian=True)
    assert compare(sent, sent.with_name("got.dcm")).differing == ()


def coerce(dataset: pydicom.Dataset) -> None:
    """As an archive does that knows the patient better (PS3.3 C.12.1.1.9)."""
    before = pydicom.Dataset()
    before.PatientName, before.AccessionNumber = dataset.PatientName, dataset.AccessionNumber
    record = pydicom.Dataset()
    record.ModifiedAttributesSequence = [before]
    record.AttributeModificationDateTime, record.ModifyingSystem = "20260101120000", "PACS"
    record.SourceOfPreviousValues, record.ReasonForTheAttributeModification = "", "COERCE"
    dataset.OriginalAttributesSequence = [record]
    dataset.PatientName, dataset.AccessionNumber = "王^小东", "A2"


def test_what_an_archive_may_coerce_where_it_says_so(sent: Path, caplog: pytest.LogCaptureFixture) -> None:
    got = changed(sent, coerce)
    found = compare(sent, got)
    assert (found.coerced, found.differing) == (("AccessionNumber", "PatientName"), ())
    check_same(sent, got, "the PACS")
    assert "replaced AccessionNumber, PatientName of sent.dcm" in caplog.text
    assert "小" not in caplog.text


def coerce_silently(dataset: pydicom.Dataset) -> None:
    coerce(dataset)
    del dataset.OriginalAttributesSequence


def coerce_too_much(dataset: pydicom.Dataset) -> None:
    coerce(dataset)
    dataset.OriginalAttributesSequence[0].ModifiedAttributesSequence[0].AnnotationGroupSequence = Sequence()
    dataset.OriginalAttributesSequence[0].ModifiedAttributesSequence[0].StudyInstanceUID = dataset.StudyInstanceUID
    dataset.AnnotationGroupSequence[1].AnnotationGroupLabel = "three"
    dataset.StudyInstanceUID = "2.25.77"


def lose_an_item(dataset: pydicom.Dataset) -> None:
    del dataset.AnnotationGroupSequence[1]


def change_deep_inside(dataset: pydicom.Dataset) -> None:
    dataset.AnnotationGroupSequence[1].AnnotationPropertyTypeCodeSequence[0].CodeValue = "2"


def change_a_large_value(dataset: pydicom.Dataset) -> None:
    dataset.PixelData = dataset.PixelData[:-2] + b"\0\0"


def change_a_large_value_deep_inside(dataset: pydicom.Dataset) -> None:
    data = dataset.AnnotationGroupSequence[0].PointCoordinatesData
    dataset.AnnotationGroupSequence[0].PointCoordinatesData = data[:-2] + b"\0\0"


def lengthen(dataset: pydicom.Dataset) -> None:
    dataset.PixelData += bytes(2)


def lose(dataset: pydicom.Dataset) -> None:
    del dataset.PatientID


def add(dataset: pydicom.Dataset) -> None:
    dataset.ContentDescription = "more"


def add_private(dataset: pydicom.Dataset) -> None:
    dataset.private_block(0x0011, "SOMEBODY", create=True).add_new(0x01, "LO", "x")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (coerce_silently, ("AccessionNumber", "PatientName")),
        (coerce_too_much, ("StudyInstanceUID", "AnnotationGroupSequence")),
        (lose_an_item, ("AnnotationGroupSequence",)),
        (change_deep_inside, ("AnnotationGroupSequence",)),
        (change_a_large_value, ("PixelData",)),
        (change_a_large_value_deep_inside, ("AnnotationGroupSequence",)),
        (lengthen, ("PixelData",)),
        (lose, ("PatientID",)),
        (add, ("ContentDescription",)),
        (add_private, ("(0011,0010)", "(0011,1001)")),
    ],
)
def test_what_it_may_not(sent: Path, change: Callable[[pydicom.Dataset], None], says: tuple[str, ...]) -> None:
    got = changed(sent, change)
    assert set(compare(sent, got).differing) == set(says)
    with pytest.raises(ArchiveRefused, match="is not what was sent") as caught:
        check_same(sent, got, "the PACS")
    assert "小" not in caught.value.detail


def test_differences_in_a_sequence_of_another_encoding(sent: Path) -> None:
    def both(dataset: pydicom.Dataset) -> None:
        undefined_lengths(dataset)
        change_a_large_value_deep_inside(dataset)

    assert compare(sent, changed(sent, both)).differing == ("AnnotationGroupSequence",)


@pytest.fixture
def encapsulated(sent: Path) -> Path:
    dataset = pydicom.dcmread(sent)
    dataset.NumberOfFrames = 10
    dataset.PixelData = encapsulate([bytes([n]) * 100_000 for n in range(10)])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = JPEGLSLossless
    dataset.save_as(sent)
    return sent


def test_encapsulated_pixel_data(encapsulated: Path) -> None:
    assert compare(encapsulated, changed(encapsulated, own_meta)).differing == ()
    data = bytearray(encapsulated.read_bytes())
    data[data.rindex(bytes([7]) * 1000) + 999] ^= 1
    other = encapsulated.with_name("other.dcm")
    other.write_bytes(data)
    assert compare(encapsulated, other).differing == ("PixelData",)


@pytest.mark.parametrize("kept", [0, 100, 132, 300, 1_000_000, -1])
def test_a_part_of_it(encapsulated: Path, kept: int) -> None:
    part = encapsulated.with_name("part.dcm")
    part.write_bytes(encapsulated.read_bytes()[:kept])
    with pytest.raises(ArchiveRefused, match=r"sent\.dcm is not what was sent"):
        check_same(encapsulated, part, "the PACS")


def test_any_damage_is_a_typed_error(sent: Path) -> None:
    data = sent.read_bytes()
    small = len(data) - 2 * LARGE
    damaged = sent.with_name("damaged.dcm")
    for position in range(132, small, max(1, small // 120)):
        damaged.write_bytes(data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :])
        try:
            assert compare(sent, damaged).differing or position < 700
        except SlideError:
            continue


def test_a_large_object_in_little_memory(tmp_path: Path) -> None:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    sent, got = tmp_path / "sent.dcm", tmp_path / "got.dcm"
    data = dicom_file(pixels=100)
    size = 200_000_000
    head = data[: data.index(b"\xe0\x7f\x10\x00")] + b"\xe0\x7f\x10\x00OB\0\0" + size.to_bytes(4, "little")
    for path, name in ((sent, b"P0001"), (got, b"P0002")):
        with path.open("wb") as out:
            out.write(head.replace(b"P0001", name))
            out.truncate(len(head) + size)
    tracemalloc.start()
    try:
        assert compare(sent, got).differing == ("PatientName", "PatientID")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000_000
    assert issubclass(ArchiveRefused, PathserveError)


def test_a_damaged_sequence_is_no_trouble_of_the_disk(tmp_path):
    sent, got = tmp_path / "sent.dcm", tmp_path / "got.dcm"
    dataset = pydicom.dcmread(io.BytesIO(dicom_file()))
    dataset.ReferencedImageSequence = [item("one")]
    dataset.save_as(sent)
    data = sent.read_bytes()
    value = data.index(b"\x08\x00\x40\x11SQ") + 12
    end = value + int.from_bytes(data[value - 4 : value], "little")
    # The sequence ends in the middle of its item's head.
    got.write_bytes(data[: value - 4] + b"\x04\0\0\0" + data[value : value + 4] + data[end:])
    with pytest.raises(ArchiveRefused, match="damaged"):
        check_same(sent, got, "The PACS")


def test_the_same_bytes_as_another_kind_of_number_are_another_value(sent: Path) -> None:
    mine = changed(sent, lambda dataset: setattr(dataset, "ImagedVolumeWidth", 1.5)).rename(sent)
    value = b"\x48\x00\x01\x00%s\x04\x00\x00\x00\xc0\x3f"
    data = mine.read_bytes()
    assert data.count(value % b"FL") == 1
    got = mine.with_name("got.dcm")
    got.write_bytes(data.replace(value % b"FL", value % b"UL"))
    assert compare(mine, got).differing == ("ImagedVolumeWidth",)
