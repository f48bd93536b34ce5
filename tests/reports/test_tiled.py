"""The streaming writer: what comes back is what went in, whatever the sizes; nothing is held but a frame."""

import shutil
import struct
import subprocess
import tracemalloc
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.encaps import generate_frames, parse_basic_offsets
from pydicom.uid import SegmentationStorage

from gateway.operations.errors import PathserveError
from gateway.reports import dicom_file, tiled
from gateway.reports.tiled import Tiling, write_tiled

DTYPE = {1: np.uint8, 8: np.uint8, 16: np.uint16}


def an_object() -> pydicom.Dataset:
    dataset = dicom_file.begin(SegmentationStorage, "SEG")
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "2.25.1"
    return dataset


def random_frames(tiling: Tiling, channels: int, bits: int, seed: int) -> list[np.ndarray]:
    """Frames as large as their tile, those at the right and lower edge cut at the matrix's edge."""
    random = np.random.default_rng(seed)
    return [
        random.integers(0, 1 << bits, (rows.stop - rows.start, columns.stop - columns.start), DTYPE[bits])
        for _ in range(channels)
        for rows, columns in tiling.windows()
    ]


def whole(tiling: Tiling, frame: np.ndarray) -> np.ndarray:
    """The frame with zeros where it reaches beyond the matrix."""
    full = np.zeros((tiling.tile_rows, tiling.tile_columns), frame.dtype)
    full[: frame.shape[0], : frame.shape[1]] = frame
    return full


def pixels(path: Path) -> np.ndarray:
    dataset = pydicom.dcmread(path)
    return dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)


tilings = st.builds(
    Tiling,
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    tile_rows=st.integers(3, 17),
    tile_columns=st.integers(3, 17),
)


@settings(max_examples=60, deadline=None)
@given(tilings, st.integers(1, 3), st.sampled_from([1, 8, 16]), st.booleans(), st.integers(0, 99))
def test_what_is_written_is_read(tiling: Tiling, channels: int, bits: int, compressed: bool, seed: int) -> None:
    """Bits run on from frame to frame; edge tiles are padded; native and JPEG-LS; odd lengths."""
    path = PATHS / "random.dcm"
    frames = random_frames(tiling, channels, bits, seed)
    compressed = compressed and bits > 1
    write_tiled(path, an_object(), tiling, iter(frames), bits=bits, channels=channels, jpeg_ls=compressed)
    dataset = pydicom.dcmread(path)
    assert dataset.NumberOfFrames == len(frames) == channels * tiling.tiles
    assert (dataset.TotalPixelMatrixRows, dataset.TotalPixelMatrixColumns) == (tiling.rows, tiling.columns)
    assert len(dataset.PixelData) % 2 == 0
    assert np.array_equal(pixels(path), [whole(tiling, frame) for frame in frames])


@pytest.fixture(scope="module", autouse=True)
def _paths(tmp_path_factory: pytest.TempPathFactory) -> None:
    global PATHS
    PATHS = tmp_path_factory.mktemp("tiled")


@pytest.mark.parametrize(("size", "side"), [(1, 8), (139, 144), (512, 512), (513, 264), (730, 368), (28_000, 512)])
def test_tiles_are_even_and_begin_with_a_byte(size: int, side: int) -> None:
    tiling = Tiling.of(size, 100_000)
    assert (tiling.tile_rows, tiling.tile_columns) == (side, 512)
    assert tiling.tiles == -(-size // side) * 196


def test_bits_of_a_frame_follow_the_last_frame_s(tmp_path: Path) -> None:
    """Three frames of five pixels: fifteen bits in two bytes, the first pixel in the lowest bit (PS3.5 8.1.1)."""
    tiling = Tiling(rows=1, columns=15, tile_rows=1, tile_columns=5)
    frames = [np.array([bits], np.uint8) for bits in ([1, 0, 0, 0, 1], [1, 1, 0, 0, 0], [0, 1, 0, 1, 1])]
    write_tiled(tmp_path / "bits.dcm", an_object(), tiling, frames, bits=1)
    assert pydicom.dcmread(tmp_path / "bits.dcm").PixelData == bytes([0b01110001, 0b01101000])


def test_each_offset_leads_to_its_frame(tmp_path: Path) -> None:
    tiling = Tiling(rows=30, columns=50, tile_rows=16, tile_columns=16)
    frames = random_frames(tiling, 2, 8, 1)
    write_tiled(tmp_path / "basic.dcm", an_object(), tiling, frames, bits=8, channels=2, jpeg_ls=True)
    dataset = pydicom.dcmread(tmp_path / "basic.dcm")
    offsets = parse_basic_offsets(BytesIO(dataset.PixelData))
    assert len(offsets) == len(frames)
    first = 8 + 4 * len(offsets)
    assert offsets[0] == 0
    encoded = list(generate_frames(dataset.PixelData, number_of_frames=len(frames)))
    for offset, frame in zip(offsets, encoded, strict=True):
        head = struct.unpack_from("<HHL", dataset.PixelData, first + offset)
        assert head == (0xFFFE, 0xE000, len(frame))


def test_beyond_32_bits_offsets_are_extended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiling = Tiling(rows=30, columns=50, tile_rows=16, tile_columns=16)
    frames = random_frames(tiling, 2, 8, 1)
    basic, extended = tmp_path / "basic.dcm", tmp_path / "extended.dcm"
    write_tiled(basic, an_object(), tiling, frames, bits=8, channels=2, jpeg_ls=True)
    monkeypatch.setattr(tiled, "_MOST_BASIC_BYTES", 0)
    write_tiled(extended, an_object(), tiling, frames, bits=8, channels=2, jpeg_ls=True)
    dataset = pydicom.dcmread(extended)
    assert parse_basic_offsets(BytesIO(dataset.PixelData)) == []
    tables = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    by_table = list(generate_frames(dataset.PixelData, number_of_frames=len(frames), extended_offsets=tables))
    assert by_table == list(generate_frames(pydicom.dcmread(basic).PixelData, number_of_frames=len(frames)))
    assert np.array_equal(pixels(extended), pixels(basic))


@pytest.mark.validators
@pytest.mark.skipif(not shutil.which("dcmdjpls"), reason="needs dcmtk")
def test_dcmtk_decodes_the_same(tmp_path: Path) -> None:
    tiling = Tiling(rows=61, columns=45, tile_rows=24, tile_columns=16)
    frames = random_frames(tiling, 1, 16, 3)
    write_tiled(tmp_path / "jls.dcm", an_object(), tiling, frames, bits=16, jpeg_ls=True)
    subprocess.run(["dcmdjpls", tmp_path / "jls.dcm", tmp_path / "native.dcm"], check=True, capture_output=True)
    assert np.array_equal(pixels(tmp_path / "native.dcm"), [whole(tiling, frame) for frame in frames])


@pytest.mark.parametrize("bits", [1, 8, 16])
def test_the_same_input_gives_the_same_bytes(tmp_path: Path, bits: int) -> None:
    tiling = Tiling.of(700, 300)
    for name in ("one", "two"):
        frames = random_frames(tiling, 2, bits, 5)
        write_tiled(tmp_path / name, an_object(), tiling, frames, bits=bits, channels=2, jpeg_ls=bits > 1)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_frames_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    tiling = Tiling(rows=10, columns=20, tile_rows=8, tile_columns=8)
    frames = random_frames(tiling, 1, 8, 0)

    def write(frames: list[np.ndarray]) -> None:
        write_tiled(tmp_path / "x.dcm", an_object(), tiling, frames, bits=8)

    for wrong in (
        frames[:-1],
        [*frames, frames[0]],
        [frames[0][:, :7], *frames[1:]],
        [frames[0].astype(np.uint16), *frames[1:]],
        [frames[0].astype(np.float32), *frames[1:]],
    ):
        with pytest.raises(PathserveError, match="tiled image"):
            write(wrong)


def test_what_no_length_can_say_is_refused(tmp_path: Path) -> None:
    def none() -> Iterator[np.ndarray]:
        raise AssertionError("no frame is asked for")
        yield

    with pytest.raises(PathserveError, match="4 GiB"):
        write_tiled(tmp_path / "x.dcm", an_object(), Tiling.of(70_000, 70_000), none(), bits=8)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_full_disk_is_an_os_error(compressed: bool) -> None:
    tiling = Tiling.of(4096, 4096)
    frames = (np.full((512, 512), number, np.uint8) for number in range(64))
    with pytest.raises(OSError, match="No space left"):
        write_tiled(Path("/dev/full"), an_object(), tiling, frames, bits=8, jpeg_ls=compressed)


@pytest.mark.parametrize(("bits", "compressed"), [(1, False), (8, False), (8, True)])
def test_memory_does_not_grow_with_the_image(tmp_path: Path, bits: int, compressed: bool) -> None:
    def peak_bytes(tiles_down: int) -> int:
        tiling = Tiling.of(512 * tiles_down, 1024)
        frames = (np.full((512, 512), number % 2, np.uint8) for number in range(tiling.tiles))
        tracemalloc.start()
        write_tiled(tmp_path / "x.dcm", an_object(), tiling, frames, bits=bits, jpeg_ls=compressed)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(1)
    assert peak_bytes(60) < 1.2 * peak_bytes(30) < 8e6
