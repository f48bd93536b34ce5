"""A derived DICOM object that we build by hand: how it begins, and how it is written (PS3.10)."""

from collections.abc import Sequence
from pathlib import Path

from pydicom import Dataset, dcmread, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from gateway.operations.errors import StateError


def begin(sop_class_uid: str, modality: str) -> Dataset:
    """An object of a SOP class and modality; what all our objects carry is `derived.complete`'s to add."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = sop_class_uid
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = sop_class_uid
    dataset.Modality = modality
    return dataset


def save(dataset: Dataset, path: Path) -> None:
    """Write the object as a DICOM file. Raises OSError."""
    dcmwrite(path, dataset, enforce_file_format=True)


def read(path: Path, keywords: Sequence[str] | None = None) -> Dataset:
    """An object that was saved, without its pixels; of its elements all, or these.

    Raises OSError, and StateError where the file is none of ours any more.
    """
    try:
        dataset = dcmread(path, stop_before_pixels=True, specific_tags=keywords and [*keywords])
    except OSError:
        raise
    except Exception:  # pydicom has no class of errors for what is no DICOM
        dataset = Dataset()
    if "SOPInstanceUID" not in dataset or "StudyInstanceUID" not in dataset:
        raise StateError("A DICOM file of the report is damaged. Restore it, or order the analysis again.")
    return dataset
