"""Whole-slide images made in the tests, of any layout: pydicom writes them, so the reader is not tested by its kin."""

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID, generate_uid

IMPLICIT, NATIVE, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
JPEG = "1.2.840.10008.1.2.4.50"
ITEM, EMPTY = b"\xfe\xff\x00\xe0", b"\0\0"
STUDY, SERIES = generate_uid(entropy_srcs=["study"]), generate_uid(entropy_srcs=["series"])
BRIGHTFIELD, EPIFLUORESCENCE = ("111744", "DCM"), ("111743", "DCM")


def picture(width_px: int, height_px: int, seed: int = 0) -> np.ndarray:
    """A picture (H, W, 3) of soft blobs and edges in all colours, in which no two places look alike."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height_px // 16 + 2, width_px // 16 + 2, 3)).astype(np.float64)
    y, x = np.arange(height_px) / 16, np.arange(width_px) / 16
    rows = coarse[y.astype(int)] * (1 - y % 1)[:, None, None] + coarse[y.astype(int) + 1] * (y % 1)[:, None, None]
    x0 = x.astype(int)
    blended = rows[:, x0] * (1 - x % 1)[None, :, None] + rows[:, x0 + 1] * (x % 1)[None, :, None]
    return np.clip(blended + rng.normal(0, 2, blended.shape), 0, 255).astype(np.uint8)


def cut(image: np.ndarray, frame_px: tuple[int, int]) -> list[np.ndarray]:
    """The frames (rows, columns given) of a picture, row by row; edge frames are filled up with white."""
    rows, columns = frame_px
    height, width, _ = image.shape
    padded = np.full((-(-height // rows) * rows, -(-width // columns) * columns, 3), 255, np.uint8)
    padded[:height, :width] = image
    return [
        np.ascontiguousarray(padded[y : y + rows, x : x + columns])
        for y in range(0, padded.shape[0], rows)
        for x in range(0, padded.shape[1], columns)
    ]


def header(
    size_px: tuple[int, int], frame_px: tuple[int, int], frames: int, *, mpp: float = 0.5, name: str = "level"
) -> Dataset:
    """The least a whole-slide image needs: `size_px` (width, height), `frame_px` (rows, columns)."""
    dataset = Dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[name])
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = STUDY, SERIES
    dataset.PatientID, dataset.Modality = "MADE-1", "SM"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    dataset.TotalPixelMatrixColumns, dataset.TotalPixelMatrixRows = size_px
    dataset.Rows, dataset.Columns = frame_px
    dataset.NumberOfFrames = frames
    dataset.SamplesPerPixel, dataset.PlanarConfiguration = 3, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.PhotometricInterpretation = "RGB"
    dataset.DimensionOrganizationType = "TILED_FULL"
    measures = Dataset()
    measures.PixelSpacing = [mpp / 1000, mpp / 1000]
    shared = Dataset()
    shared.PixelMeasuresSequence = [measures]
    dataset.SharedFunctionalGroupsSequence = [shared]
    return dataset


def place(dataset: Dataset, places: Sequence[tuple[int, int]], *, z_um=None, paths=None) -> None:
    """Make the image TILED_SPARSE: `places` are 1-based (column, row) pixels of each frame's top left corner."""
    dataset.DimensionOrganizationType = "TILED_SPARSE"
    dataset.NumberOfFrames = len(places)
    dataset.PerFrameFunctionalGroupsSequence = []
    for i, (column, row) in enumerate(places):
        plane = Dataset()
        plane.ColumnPositionInTotalImagePixelMatrix, plane.RowPositionInTotalImagePixelMatrix = column, row
        if z_um is not None:
            plane.ZOffsetInSlideCoordinateSystem = f"{z_um[i]:.4f}"
        group = Dataset()
        group.PlanePositionSlideSequence = [plane]
        if paths is not None:
            identification = Dataset()
            identification.OpticalPathIdentifier = paths[i]
            group.OpticalPathIdentificationSequence = [identification]
        dataset.PerFrameFunctionalGroupsSequence.append(group)


def optical_path(name: str, light: tuple[str, str] | None = None, profile: bytes | None = None) -> Dataset:
    item = Dataset()
    item.OpticalPathIdentifier = name
    if light is not None:
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator = light
        item.IlluminationTypeCodeSequence = [code]
    if profile is not None:
        item.ICCProfile = profile
    return item


def write(
    path: Path,
    dataset: Dataset,
    frames: Sequence[bytes],
    syntax: str = NATIVE,
    *,
    table: str = "basic",
    fragments: int = 1,
) -> Path:
    """Write the image. `table`: basic, empty or extended."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    if syntax in (IMPLICIT, NATIVE, BIG_ENDIAN):
        data = b"".join(frames)
        dataset.PixelData = data + b"\0" * (len(data) % 2)
    elif table == "extended":
        encapsulated = encapsulate_extended(list(frames))
        dataset.PixelData, dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = encapsulated
    else:
        # pydicom refuses frames of zero length: a byte pair stands for them until they are encapsulated.
        data = encapsulate([f or EMPTY for f in frames], fragments_per_frame=fragments, has_bot=table == "basic")
        assert all(frames) or fragments == 1
        dataset.PixelData = data if all(frames) else emptied(data, len(frames) if table == "basic" else 0)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = syntax not in (IMPLICIT, NATIVE, BIG_ENDIAN)
    # The syntax is named afterwards where pydicom does not know it (JPEG XL).
    known = UID(syntax) if UID(syntax).is_transfer_syntax else UID(JPEG)
    dataset.file_meta.TransferSyntaxUID = known
    dcmwrite(path, dataset, enforce_file_format=True)
    if known != syntax:
        rename_syntax(path, known, syntax)
    return path


def emptied(data: bytes, offsets: int) -> bytes:
    """Encapsulated frames, those that are EMPTY made so; behind a basic offset table of so many entries."""
    position, items, starts = 8 + 4 * offsets, b"", []
    while position < len(data):
        end = position + 8 + int.from_bytes(data[position + 4 : position + 8], "little")
        item = data[position:end]
        starts.append(len(items))
        items += ITEM + bytes(4) if item[8:] == EMPTY else item
        position = end
    return ITEM + struct.pack(f"<I{offsets}I", 4 * offsets, *starts[:offsets]) + items


def rename_syntax(path: Path, old: str, new: str) -> None:
    """Give the file meta information another transfer syntax (0002,0010)."""
    was, now = ((uid + "\0" * (len(uid) % 2)).encode() for uid in (old, new))
    head = b"\x02\x00\x10\x00UI"
    data = path.read_bytes()
    group = data.index(b"\x02\x00\x00\x00UL\x04\x00") + 8
    length = int.from_bytes(data[group : group + 4], "little") + len(now) - len(was)
    data = data[:group] + struct.pack("<I", length) + data[group + 4 :]
    old_element, new_element = (head + struct.pack("<H", len(uid)) + uid for uid in (was, now))
    assert data.count(old_element) == 1
    path.write_bytes(data.replace(old_element, new_element))


def full(
    path: Path,
    image: np.ndarray,
    frame_px: tuple[int, int],
    encode: Callable[[np.ndarray], bytes] = np.ndarray.tobytes,
    syntax: str = NATIVE,
    photometric: str = "RGB",
    *,
    table: str = "basic",
    fragments: int = 1,
    **values,
) -> Path:
    """A picture as a TILED_FULL image, one level, with further header values."""
    frames = [encode(frame) for frame in cut(image, frame_px)]
    dataset = header((image.shape[1], image.shape[0]), frame_px, len(frames), name=path.name)
    dataset.PhotometricInterpretation = photometric
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return write(path, dataset, frames, syntax, table=table, fragments=fragments)


def segment(marker: int, payload: bytes) -> bytes:
    """One JPEG marker segment."""
    return bytes((0xFF, marker)) + struct.pack(">H", len(payload) + 2) + payload


def without_segments(data: bytes, *markers: int) -> bytes:
    """A JPEG stream without its segments of these kinds before the first scan."""
    kept, position = [data[:2]], 2
    while data[position + 1] != 0xDA:
        length = 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if data[position + 1] not in markers:
            kept.append(data[position : position + length])
        position += length
    return b"".join(kept) + data[position:]


def with_adobe(data: bytes, transform: int) -> bytes:
    """A JPEG stream with an Adobe marker in place of any JFIF or Adobe one: transform 0 is RGB, 1 YCbCr."""
    bare = without_segments(data, 0xE0, 0xEE)
    return bare[:2] + segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform])) + bare[2:]
