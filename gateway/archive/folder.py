"""A folder as an archive: slides are found anywhere below it, results are stored under `results/`."""

import contextlib
import errno
import os
import shutil
import stat
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_partial

from gateway.archive.cache import FrameCache
from gateway.archive.protocol import FetchedSeries, FetchProgress, SeriesEntry, SlideQuery, Wanted, no_progress
from gateway.domain.uids import is_uid
from gateway.operations.errors import (
    ArchiveRefused,
    ArchiveUnavailable,
    Cancelled,
    DiskFull,
    IdentityMismatch,
    NotDicom,
    NoVolumeImage,
    SlideNotInArchive,
    TruncatedFile,
)

_RESULTS = "results"
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
_DICOMDIR = "1.2.840.10008.1.3.10"
_AFTER_IDENTITY = 0x00400513
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True, slots=True)
class _Identity:
    """What the index keeps of one file: `problem` is "not-dicom", "truncated", "unreadable" (its permissions, its disk)
    or "directory" (a DICOMDIR) where it has no identity."""

    study: str = ""
    series: str = ""
    sop: str = ""
    modality: str = ""
    accession: str = ""
    container: str = ""
    patient: tuple[str, str] = ("", "")
    problem: str | None = None


class FolderArchive:
    """Slides in a folder. Headers are read once and kept by path, size and time of change. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.expanduser().absolute()
        self._index: dict[Path, tuple[tuple[int, int], _Identity]] = {}
        self._lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"folder:{self._folder}"

    def probe(self) -> None:
        """Raise ArchiveUnavailable unless the folder can be listed."""
        try:
            with os.scandir(self._folder) as entries:
                next(entries, None)
        except OSError as error:
            raise _unavailable(error) from error

    def entries(self) -> tuple[SeriesEntry, ...]:
        """All slide series in the folder. Raises ArchiveUnavailable, and where there is no slide the reason:
        NotDicom, TruncatedFile, NoVolumeImage (DICOM, but no slide), SlideNotInArchive (no files)."""
        index = self._refresh()
        found = _series_of(index)
        if found:
            return found
        problems = {identity.problem for identity in index.values()}
        if not index:
            raise SlideNotInArchive("The folder is empty. Give a folder with the DICOM files of a slide.")
        if "unreadable" in problems:
            raise ArchiveUnavailable("A file in the folder cannot be read. Check its owner, its mode and its disk.")
        if "truncated" in problems:
            raise TruncatedFile("A DICOM file in the folder is incomplete. Copy the slide again.")
        if problems == {"not-dicom"}:
            raise NotDicom("No file in the folder is DICOM. Give a folder with the DICOM files of a slide.")
        raise NoVolumeImage("The folder holds DICOM files but no slide (modality SM). Give the slide's series.")

    def find_series(self, study: str, series: Sequence[str] = ()) -> tuple[SeriesEntry, ...]:
        found = {entry.series: entry for entry in _series_of(self._refresh()) if entry.study == study}
        if not found:
            raise SlideNotInArchive(f"The archive holds no slide of study {study}. Check the UID, or send the slide.")
        missing = [uid for uid in series if uid not in found]
        if missing:
            raise SlideNotInArchive(
                f"The archive holds no slide series {', '.join(missing)} in study {study}. Check the UID, or send it."
            )
        return tuple(found[uid] for uid in series) if series else tuple(found.values())

    def search(self, query: SlideQuery) -> tuple[SeriesEntry, ...]:
        index = self._refresh()
        fitting = [identity for identity in index.values() if identity.modality == "SM" and _fits(identity, query)]
        series = {(identity.study, identity.series) for identity in fitting}
        found = tuple(entry for entry in _series_of(index) if (entry.study, entry.series) in series)
        if not found:
            raise SlideNotInArchive(
                "The archive holds no slide (modality SM) of that study, series, accession number and container: send "
                "it there, or correct what is looked for."
            )
        if len({identity.patient for identity in fitting}) > 1:
            raise IdentityMismatch("The slides found are those of several patients: name the study as well.")
        return found

    def fetch(
        self,
        entry: SeriesEntry,
        cache: FrameCache,
        *,
        wanted: Wanted | None = None,
        progress: FetchProgress = no_progress,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> FetchedSeries:
        """The series' files as they lie in the folder: nothing is copied, `cache` is not used."""
        if cancelled():
            raise Cancelled("The analysis was cancelled before the slide was fetched.")
        index = self._refresh()
        files = {
            identity.sop: path
            for path, identity in sorted(index.items(), reverse=True)
            if identity.problem is None and (identity.study, identity.series) == (entry.study, entry.series)
        }
        folders = {path.parent for path in files.values()}
        for path, identity in index.items():
            # It may be a part of the slide, so the slide is not read without it.
            if path.parent in folders and identity.problem == "truncated":
                raise TruncatedFile(f"{path.name}, beside the slide's files, is incomplete. Copy the slide again.")
            if path.parent in folders and identity.problem == "unreadable":
                raise ArchiveUnavailable(
                    f"{path.name}, beside the slide's files, cannot be read. Check its owner, its mode and its disk."
                )
        if not files:
            raise SlideNotInArchive(f"The slide series {entry.series} is no longer in the archive. Send it again.")
        paths = tuple(sorted(files.values()))
        try:
            size = sum(path.stat().st_size for path in paths)
        except OSError as error:
            raise _unavailable(error) from error
        progress(size, size)
        return FetchedSeries(study=entry.study, series=entry.series, files=paths)

    def store(self, files: Sequence[Path]) -> None:
        """Store result objects as `results/STUDY/SOP.dcm`, each whole or not at all; what is there is never replaced.

        Raises ArchiveRefused (not a DICOM object with valid UIDs), ArchiveUnavailable, DiskFull.
        """
        for file in files:
            identity = _identify(file)
            if identity.problem or not is_uid(identity.study) or not is_uid(identity.sop):
                raise ArchiveRefused(f"{file.name} is not a DICOM object with valid UIDs; it was not stored.")
            try:
                self._store_one(file, self._folder / _RESULTS / identity.study, f"{identity.sop}.dcm")
            except OSError as error:
                if error.errno in _NO_SPACE:
                    raise DiskFull("The archive's disk is full. Make room; the delivery is then repeated.") from error
                raise _unavailable(error) from error

    @staticmethod
    def _store_one(file: Path, folder: Path, name: str) -> None:
        if (folder / name).exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        # The name tells writers apart: two processes may deliver the same object at once.
        temporary = folder / f".{name}.{os.getpid()}-{threading.get_ident()}.part"
        try:
            with file.open("rb") as source, temporary.open("wb") as target:
                shutil.copyfileobj(source, target, 1024 * 1024)
                target.flush()
                os.fsync(target.fileno())
            _publish(temporary, folder / name)
        finally:
            temporary.unlink(missing_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _refresh(self) -> dict[Path, _Identity]:
        """The identity of every file below the folder, reading only what is new or changed."""
        with self._lock:
            fresh: dict[Path, tuple[tuple[int, int], _Identity]] = {}
            try:
                for path, status in _files_below(self._folder):
                    key = (status.st_mtime_ns, status.st_size)
                    known = self._index.get(path)
                    with contextlib.suppress(FileNotFoundError):  # it may vanish while we look
                        fresh[path] = known if known and known[0] == key else (key, _identify(path))
            except OSError as error:
                raise _unavailable(error) from error
            self._index = fresh
            return {path: identity for path, (_, identity) in fresh.items()}


def _publish(temporary: Path, final: Path) -> None:
    """Give a whole file its name. A link, unlike a rename, never replaces what another writer put there first; where
    the file system has no links (SMB, FAT), only writers in the same instant could meet, with the same object."""
    try:
        os.link(temporary, final)
    except FileExistsError:
        return
    except OSError as error:
        if error.errno not in _NO_LINKS or final.exists():
            raise
        temporary.rename(final)


def _files_below(top: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Regular files below `top`, without `results/` and hidden ones. Links are followed only to files inside."""
    root = top.resolve(strict=True)
    pending = [top]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except PermissionError:
            if folder == top:
                raise
            continue  # lost+found of a mounted disk, or somebody's own: not for us, and no harm to the rest
        for entry in entries:
            if entry.name.startswith(".") or (folder == top and entry.name == _RESULTS):
                continue
            path = Path(entry.path)
            if entry.is_symlink() and not _stays_inside(path, root):
                continue
            if entry.is_dir(follow_symlinks=False):
                pending.append(path)
            elif entry.is_file():
                with contextlib.suppress(FileNotFoundError):
                    yield path, path.stat()


def _stays_inside(link: Path, root: Path) -> bool:
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):
        return False
    return (
        target.is_relative_to(root)
        and not target.is_relative_to(root / _RESULTS)
        and stat.S_ISREG(target.stat().st_mode)
    )


def _identify(path: Path) -> _Identity:
    try:
        with path.open("rb") as stream:
            header = read_partial(stream, stop_when=lambda tag, _vr, _length: tag >= _AFTER_IDENTITY)
            # Values are decoded only here, by a parser that has no closed set of errors for damaged ones.
            kind = header.file_meta.get("MediaStorageSOPClassUID")
            study, series, sop, modality, accession, container, *patient = (
                str(header.get(keyword) or "").strip() for keyword in _IDENTITY
            )
    except InvalidDicomError:
        return _Identity(problem="not-dicom")
    except FileNotFoundError:
        raise
    except OSError as error:  # the system's own have a number; pydicom raises it without one for a damaged header
        return _Identity(problem="truncated" if error.errno is None else "unreadable")
    except Exception:
        return _Identity(problem="truncated")
    if kind == _DICOMDIR:
        return _Identity(problem="directory")
    if not (study and series and sop):
        return _Identity(problem="truncated")
    return _Identity(study, series, sop, modality, accession, container, (patient[0], patient[1]))


def _series_of(index: dict[Path, _Identity]) -> tuple[SeriesEntry, ...]:
    instances: dict[tuple[str, str], set[str]] = defaultdict(set)
    for identity in index.values():
        if identity.problem is None and identity.modality == "SM":
            instances[identity.study, identity.series].add(identity.sop)
    return tuple(SeriesEntry(study, series, len(sops)) for (study, series), sops in sorted(instances.items()))


def _fits(identity: _Identity, query: SlideQuery) -> bool:
    """Whether the file is one that is looked for. Instances that name no container belong to no container."""
    pairs = (
        (query.study, identity.study),
        (query.series, identity.series),
        (query.accession, identity.accession),
        (query.container, identity.container),
    )
    return identity.problem is None and all(wanted in (None, there) for wanted, there in pairs)


def _unavailable(error: OSError) -> ArchiveUnavailable:
    return ArchiveUnavailable(
        f"The archive's folder cannot be used ({error.strerror or type(error).__name__}). Check that it exists, is "
        "mounted and may be read and written."
    )
