"""Partial instances, made of whole files as an archive would bring them."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import pydicom
from pydicom.encaps import generate_frames

from gateway.archive.partial import PartialInstance
from gateway.archive.protocol import Wanted

EVERYTHING = None


def split(file: Path, folder: Path) -> PartialInstance:
    """The head of a whole file, none of its frames."""
    dataset = pydicom.dcmread(file)
    for keyword in ("PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        if keyword in dataset:
            del dataset[keyword]
    return PartialInstance.create(folder, dataset, int(dataset.get("NumberOfFrames", 1)))


def encoded_frames(file: Path) -> list[bytes]:
    """The frames of a whole file as they are stored."""
    dataset = pydicom.dcmread(file)
    count = int(dataset.get("NumberOfFrames", 1))
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        table = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
        offsets = table if table[0] is not None else None
        return list(generate_frames(dataset.PixelData, number_of_frames=count, extended_offsets=offsets))
    size = len(dataset.PixelData) // count
    return [dataset.PixelData[i * size : (i + 1) * size] for i in range(count)]


def fetch(files: Iterable[Path], parts: Mapping[str, PartialInstance], wanted: Wanted) -> None:
    """Bring what is wanted into the partial instances, in falling order, as single frames of a PACS might come."""
    for file in files:
        uid = str(pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID)
        if uid in wanted:
            frames = encoded_frames(file)
            numbers = range(len(frames)) if wanted[uid] is EVERYTHING else wanted[uid]
            parts[uid].append((number, frames[number]) for number in reversed(parts[uid].missing(numbers)))
