"""Damage to a folder of files: names, links, pipes, a file-set that points elsewhere; damaged partial instances."""

import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from tests.fuzz.lies import deflate_bomb

Trick = Callable[[Random, Path], None]
_NAMES = (
    "a\nb.dcm",
    "-rf.dcm",
    " .dcm",
    "%00.dcm",
    "..dcm",
    "ü漢.dcm",
    "x" * 240 + ".dcm",
    "\udcff.dcm",
    "a:b*?.dcm",
    "DICOMDIR",
)
_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def odd_names(rng: Random, folder: Path) -> None:
    for file, name in zip(_files(folder), rng.sample(_NAMES, len(_NAMES)), strict=False):
        file.rename(folder / name)


def links_out(rng: Random, folder: Path) -> None:
    """Links to a file outside, to the folder itself, to nothing, in a circle; a pipe that nobody writes to."""
    files = _files(folder)
    for number, target in enumerate(("/etc/passwd", "..", ".", "nowhere", "link-4.dcm", "/dev/zero", str(files[0]))):
        (folder / f"link-{number}.dcm").symlink_to(target)
    os.mkfifo(folder / "pipe.dcm")
    if rng.random() < 0.5:
        outside = folder.parent / "outside"
        outside.mkdir()
        shutil.move(files[0], outside / files[0].name)
        files[0].symlink_to(outside / files[0].name)


def folders_as_files(rng: Random, folder: Path) -> None:
    (folder / "level-9.dcm").mkdir()
    deep = folder
    for _ in range(rng.choice((10, 60))):
        deep = deep / "d"
        deep.mkdir()
    shutil.copyfile(_files(folder)[0], deep / "again.dcm")


def same_instance_twice(rng: Random, folder: Path) -> None:
    """Two files of one SOP instance UID with other content."""
    files = _files(folder)
    first, second = rng.sample(files, 2)
    data = pydicom.dcmread(second)
    data.SOPInstanceUID = pydicom.dcmread(first, stop_before_pixels=True).SOPInstanceUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.save_as(folder / "twin.dcm")


def two_slides(rng: Random, folder: Path) -> None:
    """Half of the files belong to another series, or to another study."""
    for file in _files(folder)[::2]:
        data = pydicom.dcmread(file)
        setattr(data, rng.choice(("SeriesInstanceUID", "StudyInstanceUID")), "2.25.4711")
        data.save_as(file)


def files_gone(rng: Random, folder: Path) -> None:
    files = _files(folder)
    for file in rng.sample(files, rng.randint(1, len(files))):
        file.unlink()


def file_set_elsewhere(rng: Random, folder: Path) -> None:
    """A DICOMDIR (PS3.3 F.3) whose records name files outside, missing ones, itself, and each other in a circle."""
    references = [
        ["..", "..", "etc", "passwd"],
        ["/etc/passwd"],
        ["MISSING"],
        ["DICOMDIR"],
        ["..", "outside", "x.dcm"],
        [""],
        ["A" * 9000],
        [_files(folder)[0].name],
    ]
    records = []
    for kind in ("PATIENT", "STUDY", "SERIES", *["IMAGE"] * rng.randint(1, 6)):
        record = Dataset()
        record.OffsetOfTheNextDirectoryRecord = rng.choice((0, 1, 132, 500, 2**32 - 1))
        record.RecordInUseFlag = rng.choice((0, 0xFFFF))
        record.OffsetOfReferencedLowerLevelDirectoryEntity = rng.choice((0, 132, 400, 2**31))
        record.DirectoryRecordType = kind
        if kind == "IMAGE":
            record.ReferencedFileID = rng.choice(references)
            record.ReferencedSOPClassUIDInFile = "1.2.840.10008.5.1.4.1.1.77.1.6"
            record.ReferencedSOPInstanceUIDInFile = rng.choice(("1.2.3", "../x", ""))
        records.append(record)
    directory = Dataset()
    directory.file_meta = FileMetaDataset()
    directory.file_meta.MediaStorageSOPClassUID = _MEDIA_DIRECTORY
    directory.file_meta.MediaStorageSOPInstanceUID = "2.25.1"
    directory.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    directory.FileSetID = "FUZZ"
    directory.OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity = rng.choice((0, 132, 350, 2**32 - 1))
    directory.OffsetOfTheLastDirectoryRecordOfTheRootDirectoryEntity = 0
    directory.FileSetConsistencyFlag = 0
    directory.DirectoryRecordSequence = records
    directory.save_as(folder / "DICOMDIR", enforce_file_format=True)


def file_set_endless(rng: Random, folder: Path) -> None:
    """A DICOMDIR of as many empty records as its size allows, or a deflated one."""
    file_set_elsewhere(rng, folder)
    file = folder / "DICOMDIR"
    if rng.random() < 0.4:
        deflate_bomb(rng, file)
        return
    items = b"\xfe\xff\x00\xe0\0\0\0\0" * rng.choice((100_000, 7_000_000))
    data = file.read_bytes()
    at = data.find(b"\x04\x00\x20\x12SQ")
    file.write_bytes(data[:at] + b"\x04\x00\x20\x12SQ\0\0\xff\xff\xff\xff" + items + b"\xfe\xff\xdd\xe0\0\0\0\0")


def other_objects_beside(rng: Random, folder: Path) -> None:
    """Noise, a cut DICOM file, and thousands of empty files beside the slide."""
    for number in range(rng.choice((3, 2000))):
        (folder / f"noise-{number}").write_bytes(rng.randbytes(rng.choice((0, 10, 200))))
    if rng.random() < 0.5:
        data = _files(folder)[0].read_bytes()
        (folder / "cut.dcm").write_bytes(bytes(128) + b"DICM" + data[132:140])


TRICKS: dict[str, Trick] = {
    function.__name__.replace("_", "-"): function
    for function in (
        odd_names,
        links_out,
        folders_as_files,
        same_instance_twice,
        two_slides,
        files_gone,
        file_set_elsewhere,
        file_set_endless,
        other_objects_beside,
    )
}


def index_anywhere(rng: Random, folder: Path) -> None:
    """The index of a partial instance points anywhere, backwards, beyond its frames."""
    file = rng.choice(sorted(folder.glob("*.index")))
    extents = list(struct.iter_unpack("<qq", file.read_bytes()))
    for place in rng.sample(range(len(extents)), rng.randint(1, len(extents))):
        begin = rng.choice((-1, -2, 0, 1, 2**40, 2**63 - 1, -(2**63)))
        extents[place] = (begin, rng.choice((-1, 0, begin, 2**62, 5)))
    file.write_bytes(b"".join(struct.pack("<qq", *extent) for extent in extents))


def index_cut(rng: Random, folder: Path) -> None:
    file = rng.choice(sorted(folder.glob("*.index")))
    data = file.read_bytes()
    file.write_bytes(rng.choice((b"", data[: rng.randrange(len(data))], data + data, data[8:])))


def frames_cut(rng: Random, folder: Path) -> None:
    file = rng.choice(sorted(folder.glob("*.frames")))
    data = file.read_bytes()
    file.write_bytes(rng.choice((b"", data[: rng.randrange(len(data))], bytes(len(data)), rng.randbytes(len(data)))))


def piece_gone(rng: Random, folder: Path) -> None:
    """Frames, index or head removed, or the head of one instance beside the frames of another."""
    if rng.random() < 0.6:
        rng.choice(sorted(folder.iterdir())).unlink()
        return
    first, second = rng.sample(sorted(folder.glob("*.header.dcm")), 2)
    shutil.copyfile(first, second)


PARTIAL_TRICKS: dict[str, Trick] = {
    function.__name__.replace("_", "-"): function for function in (index_anywhere, index_cut, frames_cut, piece_gone)
}
