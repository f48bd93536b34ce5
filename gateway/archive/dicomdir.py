"""DICOMDIR (PS3.3 Annex F, PS3.10 8): which files of a medium make up its File-set, and whose they are."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.uid import ExplicitVRLittleEndian

from gateway.archive.bounded import BoundedReads, is_systems, read_meta

_NAME = "dicomdir"
_MOST_BYTES = 64 * 2**20
_DEPTH = 16
_MOST_READS = 400_000
"""Far above what the files of a medium take, below ten seconds."""


@dataclass(frozen=True, slots=True)
class Referenced:
    """One file that a DICOMDIR names: its path below the DICOMDIR's folder, and what the directory says it is."""

    components: tuple[str, ...]
    study: str = ""
    series: str = ""
    sop: str = ""


class DamagedDirectory(ValueError):
    """Not a DICOMDIR that can be followed. Never leaves this room."""


def is_directory_name(name: str) -> bool:
    """True for the name that a DICOMDIR has, in small letters too, and with the version number of an ISO 9660 disk."""
    return _plain(name) == _NAME


def read_directory(path: Path) -> tuple[Referenced, ...]:
    """The files that the DICOMDIR names, from its records in use. Raises OSError, DamagedDirectory.

    The records are followed by their offsets (PS3.3 F.2.2); their order in the sequence says nothing.
    """
    if path.stat().st_size > _MOST_BYTES:
        raise DamagedDirectory("larger than any directory")
    try:
        if read_meta(path).get("TransferSyntaxUID") != ExplicitVRLittleEndian:
            raise DamagedDirectory  # PS3.10 8.6 allows no other; a deflated one might inflate to anything
        with path.open("rb") as stream:
            dataset = pydicom.dcmread(BoundedReads(stream, _MOST_READS))
        records = {record.seq_item_tell: record for record in dataset.DirectoryRecordSequence}
        first = int(dataset.OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity)
        return tuple(_below(records, first, Referenced(()), set(), 0))
    except DamagedDirectory:
        raise
    except Exception as error:
        if is_systems(error):
            raise
        # A hostile or broken directory makes pydicom raise nearly anything; none of it may cross this room's wall.
        raise DamagedDirectory("not a directory") from None


def _below(
    records: dict[int, pydicom.Dataset], offset: int, parent: Referenced, seen: set[int], depth: int
) -> Iterator[Referenced]:
    while offset:
        if offset in seen or offset not in records or depth > _DEPTH:
            raise DamagedDirectory("its records lead nowhere")
        seen.add(offset)
        record = records[offset]
        found = Referenced(
            _components(record),
            str(record.get("StudyInstanceUID") or parent.study),
            str(record.get("SeriesInstanceUID") or parent.series),
            str(record.get("ReferencedSOPInstanceUIDInFile") or ""),
        )
        if int(record.get("RecordInUseFlag", 0xFFFF)):
            if found.components:
                yield found
            lower = int(record.get("OffsetOfReferencedLowerLevelDirectoryEntity") or 0)
            yield from _below(records, lower, found, seen, depth + 1)
        offset = int(record.get("OffsetOfTheNextDirectoryRecord") or 0)


def _components(record: pydicom.Dataset) -> tuple[str, ...]:
    value = record.get("ReferencedFileID")
    components = tuple(str(part) for part in ([value] if isinstance(value, str) else value or []) if str(part))
    for part in components:
        # Each is a name in a folder (PS3.10 8.2): nothing that leads elsewhere.
        if part in (".", "..") or "/" in part or "\\" in part or not part.isprintable():
            raise DamagedDirectory("a name that is none")
    return components


class Names:
    """The names in the folders of one medium as they are now: each folder is listed once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._root = folder.resolve()
        self._listed: dict[Path, dict[str, str]] = {}

    def locate(self, referenced: Referenced) -> Path | None:
        """The file's path; None where it is not there, or not to be read by us.

        Names are compared without case, since systems show media differently; links are followed only to what lies
        inside the folder.
        """
        path = self._folder
        for part in referenced.components:
            there = self._names_in(path).get(_plain(part))
            if there is None:
                return None
            path /= there
        try:
            inside = path.resolve(strict=True).is_relative_to(self._root)
        except (OSError, RuntimeError):  # what pathlib raises for a link that leads to itself
            return None
        return path if inside and path.is_file() else None

    def _names_in(self, folder: Path) -> dict[str, str]:
        if folder not in self._listed:
            try:
                self._listed[folder] = {_plain(name): name for name in sorted(os.listdir(folder))}  # noqa: PTH208
            except OSError:
                self._listed[folder] = {}
        return self._listed[folder]


def _plain(name: str) -> str:
    return name.casefold().partition(";")[0].removesuffix(".")
