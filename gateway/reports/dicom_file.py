"""A derived DICOM object that we build by hand: how it begins, and how it is written (PS3.10)."""

from pathlib import Path

from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian


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
