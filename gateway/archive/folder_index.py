"""What lies in a folder: every file's identity, read once and kept until the file changes; DICOMDIRs are followed."""

import contextlib
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_partial
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    VLWholeSlideMicroscopyImageStorage,
)

from gateway.archive.bounded import BoundedReads, is_systems, read_meta
from gateway.archive.dicomdir import DamagedDirectory, Names, Referenced, is_directory_name, read_directory

RESULTS = "results"
"""The folder's own subfolder for what is stored: results are no slides."""

_IDENTITY = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "Modality",
    "AccessionNumber",
    "ContainerIdentifier",
    "PatientID",
    "IssuerOfPatientID",
)
_AFTER_IDENTITY = 0x00400513

_State = tuple[int, int]  # time of change, size
_Directories = dict[Path, tuple[_State, tuple[Referenced, ...] | None]]
"""DICOMDIRs and what they name; None where that cannot be followed."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What the index keeps of one file. `problem` is "not-dicom", "truncated", "unreadable" (permissions, disk),
    "directory" (a DICOMDIR), "deflated" (a slide) or "other" (a deflated object that is none) where it has no identity,
    and "missing" where only a DICOMDIR says that there is one."""

    study: str = ""
    series: str = ""
    sop: str = ""
    modality: str = ""
    accession: str = ""
    container: str = ""
    patient: tuple[str, str] = ("", "")
    problem: str | None = None


class FolderIndex:
    """The identities of the files below a folder. Thread-safe."""

    def __init__(self, top: Path) -> None:
        self._top = top
        self._lock = threading.Lock()
        self._known: dict[Path, tuple[_State, Identity]] = {}
        self._directories: _Directories = {}

    def refresh(self) -> dict[Path, Identity]:
        """The identity of every file as it is now, reading only what is new or changed. Raises OSError.

        Where a folder has a DICOMDIR, its files are those that the DICOMDIR names (PS3.10 8.1), and no others.
        """
        with self._lock:
            fresh: dict[Path, tuple[_State, Identity]] = {}
            directories: _Directories = {}
            missing: dict[Path, Identity] = {}
            for path, state in self._files(directories, missing):
                known = self._known.get(path)
                with contextlib.suppress(FileNotFoundError):  # it may vanish while we look
                    fresh[path] = known if known and known[0] == state else (state, identify(path))
            for path, (state, named) in directories.items():
                fresh[path] = state, Identity(problem="truncated" if named is None else "directory")
            self._known, self._directories = fresh, directories
            return {path: identity for path, (_, identity) in fresh.items()} | missing

    def _files(self, directories: _Directories, missing: dict[Path, Identity]) -> Iterator[tuple[Path, _State]]:
        """Regular files below the folder, without `results/` and hidden ones. Links are followed only to files inside.

        DICOMDIRs go into `directories`, and what they name and is not there into `missing`.
        """
        root = self._top.resolve(strict=True)
        pending = [self._top]
        while pending:
            folder = pending.pop()
            try:
                with os.scandir(folder) as listing:
                    entries = sorted(listing, key=lambda entry: entry.name)
            except PermissionError:
                if folder == self._top:
                    raise
                continue  # lost+found of a mounted disk, or somebody's own: not for us, and no harm to the rest
            directory = next((Path(entry.path) for entry in entries if is_directory_name(entry.name)), None)
            if directory is not None and (named := self._directory(directory, root, directories)) is not None:
                yield from _file_set(folder, named, missing)
                continue
            for entry in entries:
                if entry.name.startswith(".") or (folder == self._top and entry.name == RESULTS):
                    continue
                path = Path(entry.path)
                if path in directories or (entry.is_symlink() and not _stays_inside(path, root)):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)
                elif entry.is_file():
                    with contextlib.suppress(FileNotFoundError):
                        yield path, _state(path)

    def _directory(self, path: Path, root: Path, directories: _Directories) -> tuple[Referenced, ...] | None:
        """What the DICOMDIR names; None where it is none (another file of that name) or damaged."""
        if not path.is_file() or (path.is_symlink() and not _stays_inside(path, root)):
            return None
        state = _state(path)
        known = self._directories.get(path)
        if known is not None and known[0] == state:
            directories[path] = known
        elif identify(path).problem == "directory":
            named = None
            with contextlib.suppress(DamagedDirectory):
                named = read_directory(path)
            directories[path] = state, named
        return directories[path][1] if path in directories else None


def _file_set(
    folder: Path, named: tuple[Referenced, ...], missing: dict[Path, Identity]
) -> Iterator[tuple[Path, _State]]:
    names = Names(folder)
    for referenced in named:
        path = names.locate(referenced)
        try:
            if path is not None:
                yield path, _state(path)
                continue
        except FileNotFoundError:
            pass
        lost = Identity(referenced.study, referenced.series, referenced.sop, problem="missing")
        missing[folder.joinpath(*referenced.components)] = lost


def _state(path: Path) -> _State:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def _stays_inside(link: Path, root: Path) -> bool:
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):
        return False
    return (
        target.is_relative_to(root)
        and not target.is_relative_to(root / RESULTS)
        and stat.S_ISREG(target.stat().st_mode)
    )


def identify(path: Path) -> Identity:
    """A file's identity from its header, or its problem. Raises FileNotFoundError."""
    try:
        meta = read_meta(path)
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            # How large the data set is would show only when it is inflated: a few megabytes may be many gigabytes.
            slide = meta.get("MediaStorageSOPClassUID") in (None, VLWholeSlideMicroscopyImageStorage)
            return Identity(problem="deflated" if slide else "other")
        with path.open("rb") as stream:
            header = read_partial(BoundedReads(stream), stop_when=lambda tag, _vr, _length: tag >= _AFTER_IDENTITY)
            # Values are decoded only here, by a parser that has no closed set of errors for damaged ones.
            kind = header.file_meta.get("MediaStorageSOPClassUID")
            study, series, sop, modality, accession, container, patient, issuer = (
                str(header.get(keyword) or "").strip() for keyword in _IDENTITY
            )
    except InvalidDicomError:
        return Identity(problem="not-dicom")
    except FileNotFoundError:
        raise
    except Exception as error:
        return Identity(problem="unreadable" if is_systems(error) else "truncated")
    if kind == MediaStorageDirectoryStorage:
        return Identity(problem="directory")
    if not (study and series and sop):
        return Identity(problem="truncated")
    return Identity(study, series, sop, modality, accession, container, (patient, issuer))
