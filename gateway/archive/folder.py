"""A folder as an archive: slides are found anywhere below it, results are stored under `results/`."""

import errno
import os
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gateway.archive.cache import FrameCache
from gateway.archive.compare import check_same
from gateway.archive.dicomdir import is_directory_name
from gateway.archive.folder_index import RESULTS, FolderIndex, Identity, identify
from gateway.archive.protocol import FetchedSeries, FetchProgress, SeriesEntry, SlideQuery, Wanted, no_progress
from gateway.domain.uids import is_uid
from gateway.operations.disk import sync_folder
from gateway.operations.errors import (
    ArchiveRefused,
    ArchiveUnavailable,
    Cancelled,
    DiskFull,
    IdentityMismatch,
    InvalidSlide,
    NotDicom,
    NoVolumeImage,
    SlideNotInArchive,
    TruncatedFile,
    UnsupportedTransferSyntax,
)

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}
_DEFLATED = "{} is stored deflated, which is not read. Store it as it was before, or uncompressed."
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


class FolderArchive:
    """Slides in a folder. Headers are read once and kept by path, size and time of change. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.expanduser().absolute()
        self._index = FolderIndex(self._folder)

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
        NotDicom, TruncatedFile, UnsupportedTransferSyntax (deflated), NoVolumeImage (DICOM, but no slide),
        SlideNotInArchive (no files, or not those that a DICOMDIR names)."""
        index = self._refreshed()
        found = _series_of(index)
        if found:
            return found
        _check_complete(index)
        problems = {identity.problem for identity in index.values()}
        if not index:
            raise SlideNotInArchive("The folder is empty. Give a folder with the DICOM files of a slide.")
        if "unreadable" in problems:
            raise ArchiveUnavailable("A file in the folder cannot be read. Check its owner, its mode and its disk.")
        if "truncated" in problems:
            raise TruncatedFile("A DICOM file in the folder is incomplete. Copy the slide again.")
        if "deflated" in problems:
            raise UnsupportedTransferSyntax(_DEFLATED.format("A slide in the folder"))
        if problems == {"not-dicom"}:
            raise NotDicom("No file in the folder is DICOM. Give a folder with the DICOM files of a slide.")
        raise NoVolumeImage("The folder holds DICOM files but no slide (modality SM). Give the slide's series.")

    def find_series(
        self, study: str, series: Sequence[str] = (), *, cancelled: Callable[[], bool] = lambda: False
    ) -> tuple[SeriesEntry, ...]:
        index = self._refreshed()
        found = {entry.series: entry for entry in _series_of(index) if entry.study == study}
        if not found:
            _check_complete({path: identity for path, identity in index.items() if identity.study == study})
            raise SlideNotInArchive(f"The archive holds no slide of study {study}. Check the UID, or send the slide.")
        missing = [uid for uid in series if uid not in found]
        if missing:
            raise SlideNotInArchive(
                f"The archive holds no slide series {', '.join(missing)} in study {study}. Check the UID, or send it."
            )
        return tuple(found[uid] for uid in series) if series else tuple(found.values())

    def search(self, query: SlideQuery) -> tuple[SeriesEntry, ...]:
        index = self._refreshed()
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
        index = self._refreshed()
        mine = {path: one for path, one in index.items() if (one.study, one.series) == (entry.study, entry.series)}
        _check_complete(mine)
        files: dict[str, Path] = {}
        for path, identity in sorted(mine.items()):
            first = files.setdefault(identity.sop, path)
            if identity != mine[first]:
                raise InvalidSlide(
                    f"{first.name} and {path.name} are copies of one image that differ in whose it is. Remove the "
                    "wrong one."
                )
        folders = {path.parent for path in files.values()}
        for path, identity in index.items():
            beside = path.parent in folders
            if is_directory_name(path.name):
                beside = any(folder.is_relative_to(path.parent) for folder in folders)
            # It may be a part of the slide, so the slide is not read without it.
            if beside and identity.problem == "truncated":
                raise TruncatedFile(f"{path.name}, beside the slide's files, is incomplete. Copy the slide again.")
            if beside and identity.problem == "deflated":
                raise UnsupportedTransferSyntax(_DEFLATED.format(f"{path.name}, beside the slide's files,"))
            if beside and identity.problem == "unreadable":
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

        Raises ArchiveRefused (not a DICOM object with valid UIDs; another object is there under its UID),
        ArchiveUnavailable, DiskFull.
        """
        for file in files:
            identity = identify(file)
            if identity.problem or not is_uid(identity.study) or not is_uid(identity.sop):
                raise ArchiveRefused(f"{file.name} is not a DICOM object with valid UIDs; it was not stored.")
            try:
                self._store_one(file, self._folder / RESULTS / identity.study, f"{identity.sop}.dcm")
            except OSError as error:
                if error.errno in _NO_SPACE:
                    raise DiskFull("The archive's disk is full. Make room; the delivery is then repeated.") from error
                raise _unavailable(error) from error

    @staticmethod
    def _store_one(file: Path, folder: Path, name: str) -> None:
        if (folder / name).exists():
            check_same(file, folder / name, "the archive")
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
        sync_folder(folder)

    def _refreshed(self) -> dict[Path, Identity]:
        try:
            return self._index.refresh()
        except OSError as error:
            raise _unavailable(error) from error


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


def _series_of(index: dict[Path, Identity]) -> tuple[SeriesEntry, ...]:
    instances: dict[tuple[str, str], set[str]] = defaultdict(set)
    for identity in index.values():
        if identity.problem is None and identity.modality == "SM":
            instances[identity.study, identity.series].add(identity.sop)
    return tuple(SeriesEntry(study, series, len(sops)) for (study, series), sops in sorted(instances.items()))


def _check_complete(index: Mapping[Path, Identity]) -> None:
    """Raise SlideNotInArchive where a DICOMDIR names a file that is not there."""
    for path, identity in index.items():
        if identity.problem == "missing":
            raise SlideNotInArchive(f"{path.name}, which the DICOMDIR names, is missing. Copy the whole medium again.")


def _fits(identity: Identity, query: SlideQuery) -> bool:
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
