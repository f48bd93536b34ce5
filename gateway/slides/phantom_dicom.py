"""Writes whole-slide images as DICOM (PS3.3 A.32.8), frame by frame, for the phantom.

The header is pydicom's; the pixel data follow it as a stream, and the offset table is filled in at the end.
"""

import struct
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ImageCms
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID, VLWholeSlideMicroscopyImageStorage

from gateway.domain.codes import Code
from gateway.slides.specimen import coded, collection, sampling, staining

_ITEM = b"\xfe\xff\x00\xe0"
_SEQUENCE_END = b"\xfe\xff\xdd\xe0\0\0\0\0"
_PIXEL_DATA = b"\xe0\x7f\x10\x00"
_EXTENDED_OFFSETS = b"\xe0\x7f\x01\x00OV\0\0"
_EXTENDED_LENGTHS = b"\xe0\x7f\x02\x00OV\0\0"
_UNDEFINED = 0xFFFFFFFF
_BASIC_LIMIT = 2**32

_HEMATOXYLIN = Code("12710003", "SCT", "hematoxylin stain")
_EOSIN = Code("36879007", "SCT", "water soluble eosin stain")
_ORANGE_G = Code("54221006", "SCT", "orange G stain")
_STAINS = {"he": (_HEMATOXYLIN, _EOSIN), "cytology": (_HEMATOXYLIN, _ORANGE_G)}


@dataclass(frozen=True, slots=True)
class Encoding:
    """How pixels are encoded: transfer syntax, photometric interpretation, lossy method (None = lossless)."""

    transfer_syntax: str
    photometric: str
    lossy_method: str | None


@dataclass(frozen=True, slots=True)
class Preparation:
    """How the material was collected (PS3.16 CID 8109), and the slide made (CID 8110) of what kind of it (CID 8103)."""

    collection: Code
    method: Code
    material: Code


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Whose slide the phantom says it is. All invented; empty UIDs follow from the phantom's arguments. A `description`
    says what the slide is, and with it the subject stands in the header as no patient but a phantom."""

    patient_id: str = "PHANTOM-1"
    patient_name: str = "TEST^PHANTOM"
    patient_birth_date: str = "19700101"
    patient_sex: str = "O"
    accession: str = "PHANTOM-ACC-1"
    container: str = "PHANTOM-A-1"
    study_uid: str = ""
    series_uid: str = ""
    root: str = ""
    stains: tuple[Code, ...] = ()
    organ: Code | None = None
    preparation: Preparation | None = None
    description: str = ""

    def completed(self, root: str, kind: str, stains: tuple[Code, ...] | None, organ: Code | None) -> "Identity":
        """With UIDs derived from `root` where none were given, and stain and organ as asked for."""
        named = replace(self, root=root)
        return replace(
            named,
            study_uid=self.study_uid or named.uid("study"),
            series_uid=self.series_uid or named.uid("series"),
            stains=_STAINS[kind] if stains is None else stains,
            organ=organ,
        )

    def uid(self, role: str) -> str:
        """A UID under the 2.25 root (PS3.5 B.2) that depends on the phantom and the role only."""
        return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'pathserve-phantom/{self.root}/{role}').int}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelFile:
    """One level to write. `kept` (rows, columns) selects the frames of a TILED_SPARSE image, None = TILED_FULL."""

    index: int
    width_px: int
    height_px: int
    spacing_mm: float | None
    frame_px: int
    encoding: Encoding
    compression_ratio: float
    offset_table: str = "auto"
    parts: int = 1
    kept: NDArray[np.bool_] | None = None
    empty: Sequence[int] = field(default_factory=tuple)


def write_level(out: Path, identity: Identity, level: LevelFile, rows: Iterable[list[bytes]]) -> list[Path]:
    """Write one level as one file, or as a concatenation of `parts`; `rows` gives the encoded frames row by row."""
    columns = -(-level.width_px // level.frame_px)
    count = columns * -(-level.height_px // level.frame_px)
    numbers = np.arange(count) if level.kept is None else np.flatnonzero(level.kept)
    frames = _frames(rows, level)
    parts = np.array_split(numbers, min(level.parts, len(numbers)))
    files = []
    done = 0
    for part, part_numbers in enumerate(parts):
        header = _level_header(identity, level, part)
        header.NumberOfFrames = len(part_numbers)
        if len(parts) > 1:
            header.ConcatenationUID = identity.uid(f"concatenation-{level.index}")
            header.SOPInstanceUIDOfConcatenationSource = identity.uid(f"level-{level.index}-whole")
            header.InConcatenationNumber = part + 1
            header.InConcatenationTotalNumber = len(parts)
            header.ConcatenationFrameOffsetNumber = done
        done += len(part_numbers)
        if level.kept is not None:
            header.PerFrameFunctionalGroupsSequence = [_position(int(n), columns, level) for n in part_numbers]
        path = out / f"level-{level.index}{f'-{part}' if len(parts) > 1 else ''}.dcm"
        with path.open("wb") as stream:
            _write_header(stream, header, level.encoding.transfer_syntax)
            if UID(level.encoding.transfer_syntax).is_encapsulated:
                _write_encapsulated(stream, islice(frames, len(part_numbers)), len(part_numbers), level)
            else:
                _write_native(stream, islice(frames, len(part_numbers)), len(part_numbers) * level.frame_px**2 * 3)
        files.append(path)
    return files


def _frames(rows: Iterable[list[bytes]], level: LevelFile) -> Iterable[bytes]:
    empty = frozenset(level.empty)
    number = 0
    for r, row in enumerate(rows):
        for c, data in enumerate(row):
            if level.kept is None or level.kept[r, c]:
                yield b"" if number in empty else data
            number += 1


def _write_header(stream: BinaryIO, header: Dataset, transfer_syntax: str) -> None:
    header.file_meta = FileMetaDataset()
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    header.file_meta.TransferSyntaxUID = UID(transfer_syntax)
    dcmwrite(stream, header, enforce_file_format=True)


def _write_encapsulated(stream: BinaryIO, frames: Iterable[bytes], count: int, level: LevelFile) -> None:
    """Pixel data as one item a frame (PS3.5 A.4), behind a basic or an extended offset table."""
    nominal = count * level.frame_px**2 * 3 / level.compression_ratio
    extended = level.offset_table == "extended" or (level.offset_table == "auto" and nominal > 0.8 * _BASIC_LIMIT)
    basic = level.offset_table != "empty" and not extended
    if extended:
        for head in (_EXTENDED_OFFSETS, _EXTENDED_LENGTHS):
            stream.write(head + struct.pack("<I", 8 * count) + bytes(8 * count))
    tables_end = stream.tell()
    table_bytes = 4 * count if basic else 0
    stream.write(_PIXEL_DATA + b"OB\0\0" + struct.pack("<I", _UNDEFINED))
    stream.write(_ITEM + struct.pack("<I", table_bytes) + bytes(table_bytes))
    offsets, lengths = np.zeros(count, np.uint64), np.zeros(count, np.uint64)
    position = 0
    for i, frame in enumerate(frames):
        padded = len(frame) + len(frame) % 2
        stream.write(_ITEM + struct.pack("<I", padded) + frame + b"\0" * (padded - len(frame)))
        offsets[i], lengths[i] = position, len(frame)
        position += 8 + padded
    stream.write(_SEQUENCE_END)
    if basic:
        if position > _BASIC_LIMIT:
            raise ValueError("the frames exceed 4 GiB: ask for an extended offset table")
        stream.seek(tables_end + 12 + 8)
        stream.write(offsets.astype("<u4").tobytes())
    if extended:
        stream.seek(tables_end - 8 * count)
        stream.write(lengths.astype("<u8").tobytes())
        stream.seek(tables_end - 8 * count - 12 - 8 * count)
        stream.write(offsets.astype("<u8").tobytes())


def _write_native(stream: BinaryIO, frames: Iterable[bytes], length: int) -> None:
    stream.write(_PIXEL_DATA + b"OB\0\0" + struct.pack("<I", length + length % 2))
    for frame in frames:
        stream.write(frame)
    stream.write(b"\0" * (length % 2))


def _level_header(identity: Identity, level: LevelFile, part: int) -> Dataset:
    header = _header(identity, f"level-{level.index}-{part}", level.index + 1)
    header.ImageType = (
        ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"] if level.index == 0 else ["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"]
    )
    header.VolumetricProperties = "VOLUME"
    header.DimensionOrganizationType = "TILED_FULL" if level.kept is None else "TILED_SPARSE"
    header.Rows = header.Columns = level.frame_px
    header.TotalPixelMatrixColumns, header.TotalPixelMatrixRows = level.width_px, level.height_px
    header.PhotometricInterpretation = level.encoding.photometric
    lossy = level.encoding.lossy_method is not None
    header.LossyImageCompression = "01" if lossy else "00"
    if lossy:
        header.LossyImageCompressionRatio = f"{level.compression_ratio:.2f}"
        header.LossyImageCompressionMethod = level.encoding.lossy_method
    header.SpecimenLabelInImage = "NO"
    header.BurnedInAnnotation = "NO"
    if level.spacing_mm is not None:
        header.ImagedVolumeWidth = level.width_px * level.spacing_mm
        header.ImagedVolumeHeight = level.height_px * level.spacing_mm
        header.ImagedVolumeDepth = 1.0
        _shared_groups(header).PixelMeasuresSequence = [_measures(level.spacing_mm)]
    return header


def _measures(spacing_mm: float) -> Dataset:
    measures = Dataset()
    measures.SliceThickness = 0.001
    measures.PixelSpacing = [f"{spacing_mm:.10g}"[:16]] * 2
    return measures


def _position(number: int, columns: int, level: LevelFile) -> Dataset:
    row, column = divmod(number, columns)
    plane = Dataset()
    plane.ColumnPositionInTotalImagePixelMatrix = column * level.frame_px + 1
    plane.RowPositionInTotalImagePixelMatrix = row * level.frame_px + 1
    spacing = level.spacing_mm or 0.0
    plane.XOffsetInSlideCoordinateSystem = f"{_ORIGIN_MM[0] - row * level.frame_px * spacing:.6f}"[:16]
    plane.YOffsetInSlideCoordinateSystem = f"{_ORIGIN_MM[1] - column * level.frame_px * spacing:.6f}"[:16]
    plane.ZOffsetInSlideCoordinateSystem = "0"
    content = Dataset()
    content.DimensionIndexValues = [column + 1, row + 1]
    group = Dataset()
    group.FrameContentSequence = [content]
    group.PlanePositionSlideSequence = [plane]
    return group


_ORIGIN_MM = (22.0, 60.0)


def write_label(out: Path, identity: Identity, number: int) -> Path:
    """Write the slide's LABEL image (PS3.3 C.8.12.8): one frame with invented text."""
    pixels = np.full((128, 256, 3), 250, np.uint8)
    pixels[16:112:24, 16:200] = 30
    data = simplejpeg.encode_jpeg(pixels, quality=80, colorspace="RGB", colorsubsampling="422")
    header = _header(identity, "label", number)
    header.ImageType = ["ORIGINAL", "PRIMARY", "LABEL", "NONE"]
    header.VolumetricProperties = "VOLUME"
    header.DimensionOrganizationType = "TILED_FULL"
    header.Rows, header.Columns = pixels.shape[:2]
    header.TotalPixelMatrixColumns, header.TotalPixelMatrixRows = pixels.shape[1], pixels.shape[0]
    header.NumberOfFrames = 1
    header.PhotometricInterpretation = "YBR_FULL_422"
    header.LossyImageCompression = "01"
    header.LossyImageCompressionRatio = f"{pixels.nbytes / len(data):.2f}"
    header.LossyImageCompressionMethod = "ISO_10918_1"
    header.SpecimenLabelInImage = "YES"
    header.BurnedInAnnotation = "YES"
    header.LabelText = identity.container
    header.BarcodeValue = identity.container
    header.ImagedVolumeWidth, header.ImagedVolumeHeight, header.ImagedVolumeDepth = 25.6, 12.8, 1.0
    _shared_groups(header).PixelMeasuresSequence = [_measures(0.1)]
    path = out / "label.dcm"
    jpeg = "1.2.840.10008.1.2.4.50"
    level = LevelFile(
        index=0,
        width_px=256,
        height_px=128,
        spacing_mm=None,
        frame_px=256,
        encoding=Encoding(jpeg, "YBR_FULL_422", "ISO_10918_1"),
        compression_ratio=1.0,
    )
    with path.open("wb") as stream:
        _write_header(stream, header, jpeg)
        _write_encapsulated(stream, [data], 1, level)
    return path


def _header(identity: Identity, role: str, number: int) -> Dataset:
    """What all images of the series share."""
    header = Dataset()
    header.SOPClassUID = VLWholeSlideMicroscopyImageStorage
    header.SOPInstanceUID = identity.uid(role)
    header.Modality = "SM"
    header.StudyInstanceUID, header.SeriesInstanceUID = identity.study_uid, identity.series_uid
    header.StudyDate = header.SeriesDate = header.ContentDate = "20260101"
    header.StudyTime = header.SeriesTime = header.ContentTime = "120000"
    header.AcquisitionDateTime = "20260101120000"
    header.StudyID, header.SeriesNumber, header.InstanceNumber = "1", 1, number
    header.AccessionNumber = identity.accession
    header.ReferringPhysicianName = ""
    header.PatientName, header.PatientID = identity.patient_name, identity.patient_id
    header.PatientBirthDate, header.PatientSex = identity.patient_birth_date, identity.patient_sex
    if identity.description:
        header.SeriesDescription, header.QualityControlSubject = identity.description, "YES"
    header.Manufacturer, header.ManufacturerModelName = "pathserve", "phantom"
    header.DeviceSerialNumber, header.SoftwareVersions = "1", "1"
    header.FrameOfReferenceUID = identity.uid("frame-of-reference")
    header.PositionReferenceIndicator = "SLIDE_CORNER"
    header.SamplesPerPixel, header.PlanarConfiguration = 3, 0
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 8, 8, 7, 0
    header.TotalPixelMatrixFocalPlanes = 1
    origin = Dataset()
    origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = _ORIGIN_MM
    header.TotalPixelMatrixOriginSequence = [origin]
    header.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    header.FocusMethod, header.ExtendedDepthOfField = "AUTO", "NO"
    header.NumberOfOpticalPaths = 1
    header.OpticalPathSequence = [_optical_path()]
    _dimensions(header, identity)
    _specimen(header, identity)
    return header


def _shared_groups(header: Dataset) -> Dataset:
    if "SharedFunctionalGroupsSequence" not in header:
        frame_type = Dataset()
        frame_type.FrameType = header.ImageType
        path = Dataset()
        path.OpticalPathIdentifier = "1"
        groups = Dataset()
        groups.WholeSlideMicroscopyImageFrameTypeSequence = [frame_type]
        groups.OpticalPathIdentificationSequence = [path]
        header.SharedFunctionalGroupsSequence = [groups]
    shared: Dataset = header.SharedFunctionalGroupsSequence[0]
    return shared


def _optical_path() -> Dataset:
    path = Dataset()
    path.OpticalPathIdentifier = "1"
    path.OpticalPathDescription = "Brightfield"
    path.IlluminationTypeCodeSequence = [coded(Code("111744", "DCM", "Brightfield illumination"))]
    path.IlluminationColorCodeSequence = [coded(Code("414298005", "SCT", "Full Spectrum"))]
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # ICC.1 7.2.8: bytes 24 to 35 are the time of creation; fixed, so that the same phantom has the same bytes.
    path.ICCProfile = profile[:24] + struct.pack(">6H", 2026, 1, 1, 12, 0, 0) + profile[36:]
    path.ColorSpace = "SRGB"
    return path


def _dimensions(header: Dataset, identity: Identity) -> None:
    organization = Dataset()
    organization.DimensionOrganizationUID = identity.uid("dimensions")
    header.DimensionOrganizationSequence = [organization]
    header.DimensionIndexSequence = []
    for pointer in (0x0048021E, 0x0048021F):
        index = Dataset()
        index.DimensionOrganizationUID = organization.DimensionOrganizationUID
        index.DimensionIndexPointer = pointer
        index.FunctionalGroupPointer = 0x0048021A
        header.DimensionIndexSequence.append(index)


def _specimen(header: Dataset, identity: Identity) -> None:
    header.ContainerIdentifier = identity.container
    header.IssuerOfTheContainerIdentifierSequence = []
    header.ContainerTypeCodeSequence = [coded(Code("433466003", "SCT", "Microscope slide"))]
    header.AcquisitionContextSequence = []
    specimen = Dataset()
    specimen.SpecimenIdentifier = identity.container
    specimen.SpecimenUID = identity.uid("specimen")
    specimen.IssuerOfTheSpecimenIdentifierSequence = []
    specimen.SpecimenTypeCodeSequence = [coded(Code("1179252003", "SCT", "Slide"))]
    if identity.organ is not None:
        specimen.PrimaryAnatomicStructureSequence = [coded(identity.organ)]
    specimen.SpecimenPreparationSequence = [
        *_prepared(identity.container, identity.preparation),
        staining(identity.container, identity.stains),
    ]
    header.SpecimenDescriptionSequence = [specimen]


def _prepared(container: str, preparation: Preparation | None) -> list[Dataset]:
    """The steps before staining, of the material and of the slide made of it."""
    if preparation is None:
        return []
    material = f"{container}-M"
    return [
        collection(material, preparation.collection),
        sampling(container, preparation.method, material, preparation.material),
    ]
