"""The headers that the documents of a report are made from, kept beside it: a person may sign when the slide is gone.

Only what the documents take of an image is kept: whose it is, where it lies on the slide, what its specimen is.
"""

from collections.abc import Sequence
from pathlib import Path

from pydicom import Dataset

from gateway.reports import dicom_file
from gateway.reports.derived import AS_RECEIVED, EVIDENCE, SCANNER, SPECIMEN

_PLACE = (
    "FrameOfReferenceUID",
    "TotalPixelMatrixOriginSequence",
    "ImageOrientationSlide",
    "TotalPixelMatrixColumns",
    "TotalPixelMatrixRows",
)
_NAMES = ("SpecificCharacterSet", "CodingSchemeIdentificationSequence")


def keep(folder: Path, images: Sequence[Dataset]) -> None:
    """Write the headers to `folder`, in their order. `images`: of each slide that was read, the header of the level.

    Raises OSError.
    """
    for number, image in enumerate(images, 1):
        kept = dicom_file.begin(image.SOPClassUID, image.get("Modality", "SM"))
        for keyword in (*_NAMES, *AS_RECEIVED, *SPECIMEN, *EVIDENCE, *SCANNER, *_PLACE):
            if keyword in image:
                kept[keyword] = image[keyword]
        if measures := _measures(image):
            kept.SharedFunctionalGroupsSequence = [measures]
        kept.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        dicom_file.save(kept, folder / f"{number}.dcm")


def kept(folder: Path) -> list[Dataset]:
    """The headers in `folder`, in their order. Raises OSError, StateError."""
    return [dicom_file.read(path) for path in sorted(folder.glob("*.dcm"), key=lambda path: int(path.stem))]


def _measures(image: Dataset) -> Dataset | None:
    """The spacing of the level: all that is used of what its frames share."""
    groups = image.get("SharedFunctionalGroupsSequence")
    if not groups or "PixelMeasuresSequence" not in groups[0]:
        return None
    shared = Dataset()
    shared.PixelMeasuresSequence = groups[0].PixelMeasuresSequence
    return shared
