"""What a slide's files say about it: which files belong to the series, and the identity in its header."""

import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag
from pydicom.uid import VLWholeSlideMicroscopyImageStorage

from gateway.archive.bounded import HEADER_READS, BoundedReads, read_meta
from gateway.domain.codes import Code
from gateway.domain.slide import SlideHeader
from gateway.operations.errors import (
    InvalidSlide,
    MissingPixelSpacing,
    NotDicom,
    NoVolumeImage,
    TruncatedFile,
    UnsupportedTransferSyntax,
)
from gateway.slides.elements import UNDEFINED
from gateway.slides.places import PER_FRAME_GROUPS

_IMPLICIT, _EXPLICIT, _BIG_ENDIAN = (f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".2"))
NATIVE = frozenset((_IMPLICIT, _EXPLICIT, _BIG_ENDIAN))
_MAX_VALUE = 8 * 1024 * 1024
"""The largest value of a header (an ICC profile has a megabyte): more is damage, and would be held in memory."""
_REQUIRED = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "Rows",
    "Columns",
    "TotalPixelMatrixColumns",
    "TotalPixelMatrixRows",
    "SamplesPerPixel",
    "BitsAllocated",
    "PhotometricInterpretation",
)
_IDENTIFIERS = ("StudyInstanceUID", "PatientID", "IssuerOfPatientID", "AccessionNumber", "ContainerIdentifier")
# They name folders. Leading zeros, which PS3.5 9.1 forbids, are met in practice and do no harm there.
_UID = re.compile(r"(?=.{1,64}\Z)\d+(\.\d+)+", re.ASCII)
_COPIED_GROUPS = {0x0008, 0x0010, 0x0012, 0x0018, 0x0020, 0x0028, 0x0038, 0x0048}
"""Study, patient, de-identification, equipment, frame of reference, image, visit and slide: where what a report and its
objects copy from the header lies."""
_SPECIMEN = {0x00400512, 0x00400513, 0x00400518, 0x00400560}
"""The Specimen module (PS3.3 C.7.6.22), which its objects carry too."""
_MIN_UM, _MAX_UM = 0.02, 500.0
"""Plausible pixel spacing of a level; what lies outside is a unit error of the converter (mm, µm and inch mixed up)."""
_SAME_SIZE, _ANOTHER_MAGNIFICATION = 1.05, 1.5
"""How far the imaged volume may differ from its pixels' size: beyond the first a remark, beyond the last an error."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageFile:
    """One file of the series with its header (no per-frame groups, no pixels); what follows it begins at `rest`.

    `state` tells whether the file at `path` is still the one that was read.
    """

    path: Path
    dataset: Dataset
    rest: int
    state: tuple[int, int]

    def is_replaced(self) -> bool:
        """Whether another file has taken its place, or it is gone."""
        try:
            return _state(self.path.stat()) != self.state
        except OSError:
            return True

    @property
    def is_slide(self) -> bool:
        return bool(self.dataset.get("SOPClassUID") == VLWholeSlideMicroscopyImageStorage)

    @property
    def transfer_syntax(self) -> str:
        return str(self.dataset.file_meta.TransferSyntaxUID)

    @property
    def explicit(self) -> bool:
        return self.transfer_syntax != _IMPLICIT

    @property
    def big_endian(self) -> bool:
        return self.transfer_syntax == _BIG_ENDIAN

    @property
    def encapsulated(self) -> bool:
        """Not asked of pydicom, which does not know all transfer syntaxes that are read (JPEG XL)."""
        return self.transfer_syntax not in NATIVE

    @property
    def role(self) -> str:
        """ImageType value 3: VOLUME, LABEL, OVERVIEW, THUMBNAIL (PS3.3 C.8.12.4.1.1)."""
        values: Sequence[str] = self.dataset.get("ImageType") or ()
        return str(values[2]) if len(values) > 2 else ""


def _state(status: os.stat_result) -> tuple[int, int]:
    # Not the inode: on some network file systems it changes while the file does not.
    return status.st_size, status.st_mtime_ns


def _read_header(path: Path) -> tuple[Dataset, int, tuple[int, int]]:
    """The header of one file up to per-frame groups and pixel data, where it ends, and the file's state; of a file that
    is no slide the file meta information alone.

    Raises NotDicom, TruncatedFile, UnsupportedTransferSyntax (a deflated image).
    """
    try:
        meta = read_meta(path)
        if (
            meta.get("MediaStorageSOPClassUID", VLWholeSlideMicroscopyImageStorage)
            != VLWholeSlideMicroscopyImageStorage
        ):
            return meta, 0, (0, 0)
        if meta.get("TransferSyntaxUID") in _DEFLATED:
            raise UnsupportedTransferSyntax(
                f"{path.name} is stored deflated, so its frames cannot be reached without inflating all of it. Store "
                "or send the slide as it was before, or uncompressed."
            )
        with path.open("rb") as stream:
            state = _state(os.fstat(stream.fileno()))
            dataset = read_partial(BoundedReads(stream), stop_when=_header_ends)
            rest = stream.tell()
    except (UnsupportedTransferSyntax, TruncatedFile):
        raise
    except InvalidDicomError:
        raise NotDicom(f"{path.name} is not a DICOM file. Give a folder of DICOM whole-slide images.") from None
    except OSError as error:
        raise NotDicom(f"{path.name} cannot be read ({error.strerror}). Check the file and its permissions.") from error
    except Exception as error:
        # pydicom's parser has no closed set of errors for a header that breaks off.
        raise TruncatedFile(_BREAKS_OFF.format(path.name)) from error
    if "TransferSyntaxUID" not in dataset.file_meta or "SOPClassUID" not in dataset:
        raise TruncatedFile(_BREAKS_OFF.format(path.name))
    if dataset.SOPClassUID == VLWholeSlideMicroscopyImageStorage and not dataset.get("Modality"):
        dataset.Modality = "SM"  # the only one that its SOP class has (PS3.3 A.32.8)
    return dataset, rest, state


_DEFLATED = {"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"}
"""Deflated explicit VR little endian, JPIP referenced deflate, JPIP HTJ2K referenced deflate."""
_BREAKS_OFF = "{} is DICOM but its header breaks off. Send the slide to the archive again."


def _header_ends(tag: BaseTag, _vr: str | None, length: int) -> bool:
    if tag >= PER_FRAME_GROUPS:
        return True
    if _MAX_VALUE < length < UNDEFINED:
        raise ValueError("a value of the header is too long")
    return False


def select_series(files: Sequence[Path], series: str | None) -> list[ImageFile]:
    """The VOLUME images of one slide series among the files; other objects and other series may lie beside them.

    Raises NotDicom, TruncatedFile, InvalidSlide (several slides, or a header without what it needs), NoVolumeImage,
    MissingPixelSpacing.
    """
    if not files:
        raise NoVolumeImage("There are no files to read a slide from.")
    images = [image for path in files if (image := ImageFile(path, *_read_header(path))).is_slide]
    if series is not None:
        images = [image for image in images if image.dataset.get("SeriesInstanceUID") == series]
    volumes = [image for image in images if image.role == "VOLUME"]
    if not volumes:
        raise NoVolumeImage(_no_volume(images))
    # Fluorescence images, one grey image a channel, may lie beside the brightfield ones.
    volumes = [image for image in volumes if image.dataset.get("SamplesPerPixel") != 1] or volumes
    if len({image.dataset.get("SeriesInstanceUID") for image in volumes}) > 1:
        raise InvalidSlide("The files hold more than one slide. Name the series to read.")
    _check_one_identity(volumes)
    unique = {image.dataset.get("SOPInstanceUID"): image for image in volumes}
    for image in unique.values():
        _check_header(image)
    return list(unique.values())


def _check_one_identity(volumes: Sequence[ImageFile]) -> None:
    """Raise InvalidSlide where two images of the slide, or two copies of one, contradict each other about whose it is:
    the header of one speaks for all of them."""
    for keyword in _IDENTIFIERS:
        said = {text for image in volumes if (text := str(image.dataset.get(keyword) or "").strip())}
        if len(said) > 1:
            raise InvalidSlide(
                f"The slide's images differ in {keyword}, so it cannot be told whose slide it is. Nothing was read. "
                "Correct or remove the wrong ones."
            )


def _no_volume(images: list[ImageFile]) -> str:
    if not images:
        return "There is no whole-slide image among the files. Give the slide's DICOM series (modality SM)."
    roles = ", ".join(sorted({image.role or "unknown" for image in images}))
    return f"The series holds no VOLUME image, only {roles}. Send the slide's VOLUME images to the archive."


def _decode(element: DataElement, left: int) -> int:
    """Decode an element to its last item; its data set has given it here, and so decoded what is outside.

    Returns how many of the `left` elements that may be decoded remain. Raises ValueError where there are more: a value
    of defined length is read at once, however many items it holds.
    """
    if left <= 0:
        raise ValueError("the header has more elements than any slide's")
    left -= 1
    if element.VR == "SQ":
        for item in element.value:
            left -= 1
            for inner in item:
                left = _decode(inner, left)
    return left


def _check_header(image: ImageFile) -> None:
    dataset = image.dataset
    left = HEADER_READS
    for tag in [tag for tag in dataset.keys() if tag.group in _COPIED_GROUPS or tag in _SPECIMEN]:  # noqa: SIM118
        left = _decode(dataset[tag], left)  # so that damage is found now, and not when the report is written
    missing = [keyword for keyword in _REQUIRED if dataset.get(keyword) in (None, "", 0)]
    if missing:
        raise InvalidSlide(f"{image.path.name} lacks {', '.join(missing)} in its header. Check how it was converted.")
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        if not _UID.fullmatch(str(dataset.get(keyword))):
            raise InvalidSlide(f"The {keyword} of {image.path.name} is not a UID. Check how it was converted.")
    if dataset.SamplesPerPixel != 3 or dataset.BitsAllocated != 8:
        raise InvalidSlide(
            f"{image.path.name} is not an 8-bit colour image (samples {dataset.SamplesPerPixel}, bits "
            f"{dataset.BitsAllocated}). Only brightfield slides can be read."
        )
    spacing_um(image)


def spacing_um(image: ImageFile) -> tuple[float, float]:
    """Pixel spacing (x, y) in micrometres, from the shared Pixel Measures (PS3.3 C.7.6.16.2.1). Raises
    MissingPixelSpacing where it is absent or cannot be true: it is never guessed."""
    try:
        x_mm, y_mm = _spacing_mm(image.dataset)
    except (AttributeError, IndexError, TypeError, ValueError):
        raise MissingPixelSpacing(
            f"{image.path.name} has no pixel spacing, so nothing on the slide can be measured. Convert the slide with "
            "its pixel spacing."
        ) from None
    x_um, y_um = x_mm * 1000, y_mm * 1000
    if not all(math.isfinite(value) and _MIN_UM <= value <= _MAX_UM for value in (x_um, y_um)):
        raise MissingPixelSpacing(
            f"{image.path.name} gives a pixel spacing of {x_mm:g} × {y_mm:g} mm, which cannot be true of a slide. "
            "Convert the slide with its real pixel spacing."
        )
    return x_um, y_um


def _spacing_mm(dataset: Dataset) -> tuple[float, float]:
    y_mm, x_mm = (
        float(value) for value in dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    )
    return x_mm, y_mm


def size_contradiction(dataset: Dataset) -> str | None:
    """A sentence where the size of the imaged volume (PS3.3 C.8.12.4) is not that of its pixels; None where it is, or
    is not said. Raises MissingPixelSpacing where they are so far apart that the magnification may be another one."""
    try:
        x_mm, y_mm = _spacing_mm(dataset)
        said = sorted(float(dataset[keyword].value) for keyword in ("ImagedVolumeWidth", "ImagedVolumeHeight"))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None
    # In order of size: which of them is the width depends on how the slide lay, and writers differ.
    pixels = sorted((dataset.TotalPixelMatrixColumns * x_mm, dataset.TotalPixelMatrixRows * y_mm))
    if not all(math.isfinite(value) and value > 0 for value in said):
        return None
    ratio = max(max(a / b, b / a) for a, b in zip(said, pixels, strict=True))
    if ratio > _ANOTHER_MAGNIFICATION:
        raise MissingPixelSpacing(
            f"The header contradicts itself: its pixels measure {pixels[0]:.3g} × {pixels[1]:.3g} mm and the imaged "
            f"volume {said[0]:.3g} × {said[1]:.3g} mm, so its pixel spacing cannot be trusted. Convert the slide again."
        )
    if ratio <= _SAME_SIZE:
        return None
    return (
        f"The header contradicts itself: its pixels measure {pixels[0]:.3g} × {pixels[1]:.3g} mm and the imaged volume "
        f"{said[0]:.3g} × {said[1]:.3g} mm. The pixel spacing was believed."
    )


def slide_header(dataset: Dataset) -> SlideHeader:
    """Identity, specimen and device of a slide, as its header says them."""
    specimen = _first(dataset, "SpecimenDescriptionSequence")
    kinds, preparation = _specimen_codes(dataset)
    issuer = dataset.get("IssuerOfPatientID")
    return SlideHeader(
        study_uid=str(dataset.StudyInstanceUID),
        series_uid=str(dataset.SeriesInstanceUID),
        frame_of_reference_uid=_text(dataset, "FrameOfReferenceUID"),
        patient_id=_text(dataset, "PatientID"),
        patient_id_issuer=str(issuer) if issuer else None,
        patient_name=_text(dataset, "PatientName"),
        patient_birth_date=_text(dataset, "PatientBirthDate"),
        patient_sex=_text(dataset, "PatientSex"),
        accession=_text(dataset, "AccessionNumber"),
        container_id=_text(dataset, "ContainerIdentifier"),
        specimen_id=_text(specimen, "SpecimenIdentifier"),
        specimen_uid=_text(specimen, "SpecimenUID"),
        stains=_stains(dataset),
        site=_code(_first(specimen, "PrimaryAnatomicStructureSequence")),
        specimen_type=_code(_first(specimen, "SpecimenTypeCodeSequence")),
        kinds=kinds,
        preparation=preparation,
        institution=_text(dataset, "InstitutionName"),
        manufacturer=_text(dataset, "Manufacturer"),
        model_name=_text(dataset, "ManufacturerModelName"),
        serial_number=_text(dataset, "DeviceSerialNumber"),
        acquired=_text(dataset, "AcquisitionDateTime"),
        icc_profile=any("ICCProfile" in path for path in dataset.get("OpticalPathSequence") or ()),
    )


def _text(dataset: Dataset | None, keyword: str) -> str | None:
    value = dataset.get(keyword) if dataset is not None else None
    return str(value) if value not in (None, "") else None


def _first(dataset: Dataset | None, keyword: str) -> Dataset | None:
    sequence = dataset.get(keyword) if dataset is not None else None
    return sequence[0] if sequence else None


def _code(item: Dataset | None) -> Code | None:
    value = _text(item, "CodeValue") or _text(item, "LongCodeValue")
    scheme = _text(item, "CodingSchemeDesignator")
    if value is None or scheme is None:
        return None
    return Code(value, scheme, _text(item, "CodeMeaning") or value)


# PS3.16 TID 8003: "Using substance" in its SNOMED CT and its retired SNOMED-RT form.
_USING_SUBSTANCE = {("424361007", "SCT"), ("G-C350", "SRT")}
# TID 8001 and 8002: "Specimen type" and "Parent specimen type".
_SPECIMEN_TYPE = {("371439000", "SCT"), ("R-00254", "SRT"), ("111707", "DCM")}


def _stains(dataset: Dataset) -> tuple[Code, ...]:
    """The substances of the staining steps (PS3.16 TID 8003), over all specimens, in order, each once."""
    return _once(value for name, value in _prepared(dataset) if (name.code, name.scheme) in _USING_SUBSTANCE)


def _specimen_codes(dataset: Dataset) -> tuple[tuple[Code, ...], tuple[Code, ...]]:
    """What the specimens are and were taken from (anatomic structure and type, PS3.3 C.7.6.22, and the types in their
    preparation steps), and all else that is coded in these steps but stains; in order, each once."""
    kinds: list[Code] = []
    for specimen in dataset.get("SpecimenDescriptionSequence") or ():
        for keyword in ("PrimaryAnatomicStructureSequence", "SpecimenTypeCodeSequence"):
            kinds += [code for item in specimen.get(keyword) or () if (code := _code(item))]
    preparation = []
    for name, value in _prepared(dataset):
        if (name.code, name.scheme) in _SPECIMEN_TYPE:
            kinds.append(value)
        elif (name.code, name.scheme) not in _USING_SUBSTANCE:
            preparation.append(value)
    return _once(kinds), _once(preparation)


def _prepared(dataset: Dataset) -> Iterator[tuple[Code, Code]]:
    """The coded content of the preparation steps (PS3.16 TID 8000) of all specimens: its name and its value."""
    for specimen in dataset.get("SpecimenDescriptionSequence") or ():
        for step in specimen.get("SpecimenPreparationSequence") or ():
            for item in step.get("SpecimenPreparationStepContentItemSequence") or ():
                name = _code(_first(item, "ConceptNameCodeSequence"))
                value = _code(_first(item, "ConceptCodeSequence"))
                if name and value:
                    yield name, value


def _once(codes: Iterable[Code]) -> tuple[Code, ...]:
    found: dict[tuple[str, str], Code] = {}
    for code in codes:
        found.setdefault((code.code, code.scheme), code)
    return tuple(found.values())
