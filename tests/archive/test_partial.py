"""A partial instance: what is in it, and what a kill at any moment leaves of it."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import FileMetaDataset

from gateway.archive.partial import PartialInstance, header_of, is_partial

SOP = "2.25.7"


def header() -> pydicom.Dataset:
    dataset = pydicom.Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.VLWholeSlideMicroscopyImageStorage, SOP
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    return dataset


@pytest.fixture
def part(tmp_path: Path) -> PartialInstance:
    return PartialInstance.create(tmp_path, header(), 5)


def frames(part: PartialInstance) -> dict[int, bytes]:
    data = part.frames_file.read_bytes()
    return {frame: data[begin:end] for frame, (begin, end) in enumerate(part.extents()) if begin >= 0}


def test_frames_by_number_in_any_order(part: PartialInstance, tmp_path: Path) -> None:
    assert part.header == header_of(tmp_path, SOP)
    assert is_partial(part.header)
    assert part.missing(range(5)) == [0, 1, 2, 3, 4]
    assert part.append([(3, b"three"), (0, b"")]) == 5
    assert part.append([(1, b"one")]) == 3
    assert frames(part) == {0: b"", 1: b"one", 3: b"three"}
    assert part.missing([0, 2, 4]) == [2, 4]
    assert part.is_usable(5)
    assert not part.is_usable(6)
    assert pydicom.dcmread(part.header).SOPInstanceUID == SOP


def test_an_append_that_fails_adds_nothing(part: PartialInstance) -> None:
    def breaking() -> Iterator[tuple[int, bytes]]:
        yield 1, b"half of it"
        raise ConnectionError

    part.append([(0, b"zero")])
    with pytest.raises(ConnectionError):
        part.append(breaking())
    assert frames(part) == {0: b"zero"}
    part.append([(1, b"one")])
    assert frames(part) == {0: b"zero", 1: b"one"}
    assert part.frames_file.read_bytes() == b"zeroone"  # what was left over is gone


def test_made_anew_it_has_no_frames(part: PartialInstance, tmp_path: Path) -> None:
    part.append([(0, b"zero")])
    before = part.checksum()
    changed = header()
    changed.PatientName = "Corrected^Name"
    assert PartialInstance.create(tmp_path, changed, 5).missing([0]) == [0]
    assert part.checksum() != before
    assert not part.frames_file.exists()


def test_nobody_else_can_read_it(part: PartialInstance, tmp_path: Path) -> None:
    part.append([(0, b"zero")])
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}
    assert len(list(tmp_path.iterdir())) == 3
    part.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["index", "frames"])
def test_damage_is_noticed(name: str, part: PartialInstance, tmp_path: Path) -> None:
    part.append([(0, b"zero")])
    file = tmp_path / f"{SOP}.{name}"
    whole = file.read_bytes()
    for kept in range(len(whole)):
        file.write_bytes(whole[:kept])
        assert not part.is_usable(5)
    file.unlink()
    assert not part.is_usable(5)
