"""Instances on the local disk: what they are, and whether they are whole."""

import contextlib
from pathlib import Path

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from gateway.archive.dicomweb_files import InstanceId, instance_id, is_whole
from gateway.operations.errors import NotDicom, SlideError, UnsupportedTransferSyntax
from tests.support.dicom import dicom_file
from tests.support.rogue_pacs import SERIES, SOP, STUDY

FILE = dicom_file(pixels=200)
WANTED = InstanceId(STUDY, SERIES, SOP)


@pytest.fixture(scope="session")
def encapsulated(slide_folder: Path) -> bytes:
    """The smallest instance of the small slide: JPEG frames in items."""
    return min(slide_folder.glob("*.dcm"), key=lambda path: path.stat().st_size).read_bytes()


def test_native(tmp_path: Path) -> None:
    file = tmp_path / "a.dcm"
    file.write_bytes(FILE)
    assert instance_id(file) == WANTED
    assert is_whole(file)
    file.write_bytes(FILE[:-1])
    assert instance_id(file) == WANTED
    assert not is_whole(file)


def test_implicit(tmp_path: Path) -> None:
    file = tmp_path / "a.dcm"
    file.write_bytes(FILE)
    dataset = pydicom.dcmread(file)
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.save_as(file, implicit_vr=True)
    assert instance_id(file) == WANTED
    assert is_whole(file)
    file.write_bytes(file.read_bytes()[:-1])
    assert not is_whole(file)


def test_encapsulated_is_whole_to_its_last_delimiter(encapsulated: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.dcm"
    file.write_bytes(encapsulated)
    assert is_whole(file)
    start = encapsulated.index(b"\xe0\x7f\x10\x00OB")
    for kept in range(start, len(encapsulated), 997):
        file.write_bytes(encapsulated[:kept])
        assert not is_whole(file)
    file.write_bytes(encapsulated[:-1])
    assert not is_whole(file)


def test_no_pixels(tmp_path: Path) -> None:
    file = tmp_path / "a.dcm"
    file.write_bytes(dicom_file(pixels=None))
    assert not is_whole(file)


def test_no_dicom(tmp_path: Path) -> None:
    file = tmp_path / "a.dcm"
    for content in (b"", b"<html>", bytes(1000)):
        file.write_bytes(content)
        with pytest.raises(NotDicom, match=r"a\.dcm"):
            instance_id(file)


def test_deflated_is_not_inflated(tmp_path: Path) -> None:
    file = tmp_path / "a.dcm"
    file.write_bytes(FILE)
    dataset = pydicom.dcmread(file)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(file)
    with pytest.raises(UnsupportedTransferSyntax):
        instance_id(file)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=2000)
@given(st.lists(st.tuples(st.integers(0, len(FILE) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_damage_gives_an_answer_or_a_typed_error(tmp_path: Path, damage: list[tuple[int, int]]) -> None:
    content = bytearray(FILE)
    for position, value in damage:
        content[position] = value
    file = tmp_path / "a.dcm"
    file.write_bytes(content)
    # Any other exception than the room's own fails this test.
    with contextlib.suppress(SlideError):
        instance_id(file)
        is_whole(file)
