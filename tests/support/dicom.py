"""Small DICOM files, made for tests."""

import io
import tempfile
from pathlib import Path

import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import BasicTextSRStorage, ExplicitVRLittleEndian, VLWholeSlideMicroscopyImageStorage

from gateway.reports.dicom_file import save
from tests.support.rogue_pacs import SERIES, SOP, STUDY


def file_bytes(dataset: pydicom.Dataset) -> bytes:
    """A derived object as the file that the product writes of it."""
    with tempfile.TemporaryDirectory() as folder:
        save(dataset, Path(folder, "object.dcm"))
        return Path(folder, "object.dcm").read_bytes()


def dicom_file(
    study: str = STUDY, series: str = SERIES, sop: str = SOP, *, modality: str = "SM", pixels: int | None = 60_000
) -> bytes:
    """A small DICOM file: native pixel data of so many bytes (a multiple of 100), or none."""
    dataset = pydicom.Dataset()
    dataset.SOPClassUID = VLWholeSlideMicroscopyImageStorage if modality == "SM" else BasicTextSRStorage
    dataset.SOPInstanceUID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID = sop, study, series
    dataset.PatientID, dataset.PatientName, dataset.Modality = "P0001", "TEST^P0001", modality
    dataset.StudyID = dataset.AccessionNumber = ""
    dataset.SeriesNumber = dataset.InstanceNumber = 1
    if pixels is not None:
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.BitsAllocated = pixels // 100, 100, 1, 8
        dataset.PixelData = bytes(index * 7 % 256 for index in range(pixels))
        dataset["PixelData"].VR = "OB"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = sop
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()
