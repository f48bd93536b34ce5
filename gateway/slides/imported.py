"""The header of a slide that was converted from a vendor's file: what the importer was told, and nothing made up.

The pixel data are copied as they are; only the header before them is written anew.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.filewriter import dcmwrite

from gateway import __version__
from gateway.domain.codes import Code
from gateway.slides.specimen import coded, staining

_PIXEL_DATA_GROUP = 0x7FE00000
UNKNOWN = "Unknown"
"""What stands where DICOM demands an identifier (PS3.3 C.7.6.22: type 1) and nobody gave one."""

_HEMATOXYLIN = Code("12710003", "SCT", "hematoxylin stain")
STAINS = {
    "HE": (_HEMATOXYLIN, Code("36879007", "SCT", "water soluble eosin stain")),
    "PAP": (_HEMATOXYLIN, Code("54221006", "SCT", "orange G stain")),
}
"""The substances of the stains that can be named on import (PS3.16 CID 8112)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideFacts:
    """What is known of a slide besides its file; None stays empty in the header."""

    study: str | None = None
    accession: str | None = None
    patient_id: str | None = None
    patient_issuer: str | None = None
    patient_name: str | None = None
    patient_birth_date: str | None = None
    patient_sex: str | None = None
    container: str | None = None
    stain: str | None = None
    organ: Code | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What the converter did: sizes of the levels that the source has, finest first, and what else came from it."""

    converter: str
    native: tuple[tuple[int, int], ...]
    passed_through: bool
    icc: bool
    acquired: bool
    mpp: float | None

    def described(self) -> str:
        """What was done to the pixels and what was assumed, for people (Contribution Description, at most 1024)."""
        said = [
            f"Converted from a vendor's file by {self.converter}.",
            "Pixel data of its levels copied unchanged." if self.passed_through else "Pixel data encoded anew.",
            "Missing levels added. Place on the glass is the converter's assumption.",
        ]
        if self.mpp is not None:
            said.append(f"Pixel spacing of {self.mpp:g} um given on import, not taken from the file.")
        if not self.icc:
            said.append("No ICC profile in the file: sRGB assumed.")
        if not self.acquired:
            said.append("No time of acquisition in the file.")
        return " ".join(said)


def rewrite(file: Path, target: Path, facts: SlideFacts, conversion: Conversion) -> None:
    """Copy a converted instance with a header that says what is known. Raises OSError."""
    with file.open("rb") as source, target.open("wb") as out:
        header = read_partial(source, stop_when=lambda tag, _vr, _length: tag >= _PIXEL_DATA_GROUP)
        pixel_bytes = file.stat().st_size - source.tell()
        _identify(header, facts)
        _describe_image(header, conversion, pixel_bytes)
        header.ContributingEquipmentSequence = [_contribution(conversion.described())]
        dcmwrite(out, header, enforce_file_format=True)
        shutil.copyfileobj(source, out, 1 << 20)


def _identify(header: Dataset, facts: SlideFacts) -> None:
    header.SpecificCharacterSet = "ISO_IR 192"
    if facts.study is not None:
        header.StudyInstanceUID = facts.study
    header.AccessionNumber = facts.accession
    header.PatientID = facts.patient_id
    header.PatientName = facts.patient_name
    header.PatientBirthDate = facts.patient_birth_date
    header.PatientSex = facts.patient_sex
    if facts.patient_issuer is not None:
        header.IssuerOfPatientID = facts.patient_issuer
    container = facts.container or UNKNOWN
    header.ContainerIdentifier = container
    for specimen in header.SpecimenDescriptionSequence:
        specimen.SpecimenIdentifier = container
        if facts.organ is not None:
            specimen.PrimaryAnatomicStructureSequence = [coded(facts.organ)]
        if facts.stain is not None:
            specimen.SpecimenPreparationSequence = [staining(container, STAINS[facts.stain])]


def _describe_image(header: Dataset, conversion: Conversion, pixel_bytes: int) -> None:
    if not conversion.acquired:
        header.AcquisitionDateTime = None  # the converter writes 1970
    size = (int(header.TotalPixelMatrixColumns), int(header.TotalPixelMatrixRows))
    if header.ImageType[2] != "VOLUME" or size == conversion.native[0]:
        return
    # PS3.3 C.8.12.4.1.1: levels below the one that was scanned are resampled, whoever did it.
    header.ImageType = ["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"]
    for groups in header.SharedFunctionalGroupsSequence:
        groups.WholeSlideMicroscopyImageFrameTypeSequence[0].FrameType = header.ImageType
    if size not in conversion.native and header.LossyImageCompression == "01":
        # The converter repeats the finest level's; PS3.3 C.7.6.1.1.5: one value for each time it was compressed.
        pixels = int(header.NumberOfFrames) * int(header.Rows) * int(header.Columns) * int(header.SamplesPerPixel)
        first, method = header.LossyImageCompressionRatio, header.LossyImageCompressionMethod
        header.LossyImageCompressionRatio = [first, f"{pixels / max(pixel_bytes, 1):.2f}"]
        header.LossyImageCompressionMethod = [method, method]


def _contribution(description: str) -> Dataset:
    """PS3.3 C.12.1.1.5: the equipment that made this object from another."""
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = [coded(Code("109103", "DCM", "Modifying Equipment"))]
    equipment.Manufacturer = "pathserve"
    equipment.ManufacturerModelName = "pathserve import"
    equipment.SoftwareVersions = __version__
    equipment.ContributionDescription = description
    return equipment
