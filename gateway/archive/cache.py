"""The frame cache: what was pulled of slides, in a folder of bounded size that all workers of a state share.

`folder`/archive/study/series holds the files of one series; `archive` is a digest of its address. Two kinds of
lock, both of which the kernel releases however their holder ends: whoever reads or fills a series holds its folder
(shared), and whoever makes, claims or removes one holds `folder`/.lock for that moment. So no series vanishes under
its reader, and what nobody holds can go when room is needed: the least recently used first.
"""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from gateway.archive.metrics import CACHE_BYTES, CACHE_EVICTIONS
from gateway.operations.disk import disk_errors
from gateway.operations.errors import Cancelled, DiskFull, FramesNotFetched, StateError

_LOCK = ".lock"
_PRIVATE = 0o700
_STEP_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class _Stored:
    """A series in the cache: its folder, when it was last used, and the bytes of its files."""

    folder: Path
    used_ns: int
    size: int


class FrameCache:
    """The cache in `folder`, of at most `most_bytes` and what is being written now. Thread-safe, and safe with others
    like it on the same folder. The folder is made when it is first needed."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder = folder.absolute()
        self.most_bytes = most_bytes

    def of_archive(self, address: str) -> Path:
        """The folder of all that comes from the archive at `address`; it need not exist."""
        return self._folder / hashlib.sha256(address.encode()).hexdigest()[:16]

    @contextmanager
    def hold(self, files: Iterable[Path]) -> Iterator[None]:
        """Keep the series of these files (as `FetchedSeries.files` names them) from eviction during the block.

        Files outside the cache need no hold. Raises FramesNotFetched where one is gone; StateError, DiskFull.
        """
        inside = [file for file in files if file.is_relative_to(self._folder)]
        folders = sorted({file.parent for file in inside})
        with ExitStack() as held:
            if folders:
                with disk_errors(), self._locked():
                    if not all(file.is_file() for file in inside):
                        raise FramesNotFetched("A slide has left the frame cache: it is fetched again.")
                    for folder in folders:
                        held.enter_context(_held(folder))
            yield
            for folder in folders:
                with suppress(OSError):  # the time of the last use is worth no error
                    os.utime(folder)

    @contextmanager
    def filling(self, address: str, study: str, series: str, cancelled: Callable[[], bool]) -> Iterator[Path]:
        """The folder of a series, made where it is not there, held, and for one writer only during the block.

        What a killed writer left half-written is removed. UIDs are the caller's to check: they name folders. Raises
        Cancelled; OSError.
        """
        folder = self.of_archive(address) / study / series
        with ExitStack() as held:
            with self._locked():
                for made in (folder.parent.parent, folder.parent, folder):
                    made.mkdir(mode=_PRIVATE, exist_ok=True)
                held.enter_context(_held(folder))
            held.enter_context(_only_one(folder, cancelled))
            for part in folder.glob(".*.part"):
                part.unlink()
            yield folder
            os.utime(folder)

    def drop(self, unwanted: Callable[[Path], bool]) -> tuple[int, int]:
        """Remove the series whose folder (…/study/series) is `unwanted`: how many went, and how many are in use.

        Raises StateError, DiskFull.
        """
        gone = held = 0
        with disk_errors(), self._locked():
            for folder in sorted(self._folder.glob("*/*/*/")):
                if not unwanted(folder):
                    continue
                if _evicted(folder):
                    gone += 1
                else:
                    held += 1
        return gone, held

    def make_room(self, folder: Path, need: int) -> None:
        """Evict what nobody holds until `need` more bytes fit; `folder` is the series that they are for.

        Raises StateError where the series can never fit, DiskFull where the room is taken by slides in use; OSError.
        """
        with self._locked():
            stored = sorted(self._stored(), key=lambda series: series.used_ns)
            total = sum(series.size for series in stored)
            if need + sum(series.size for series in stored if series.folder == folder) > self.most_bytes:
                raise StateError("A slide needs more room than the frame cache may take: raise PATHSERVE_CACHE_BYTES.")
            for series in stored:
                if total + need <= self.most_bytes:
                    break
                if _evicted(series.folder):
                    total -= series.size
                    CACHE_EVICTIONS.inc()
            CACHE_BYTES.set(total)
            if total + need > self.most_bytes:
                raise DiskFull(
                    "The frame cache is full of slides in use: wait for them, or raise PATHSERVE_CACHE_BYTES."
                )

    def room(self, folder: Path, expected: int = 0) -> "Room":
        """Room for what is written to the series in `folder`; `expected` bytes of it, where that is known."""
        return Room(self, folder, expected)

    def _stored(self) -> Iterator[_Stored]:
        for folder in self._folder.glob("*/*/*/"):
            size = 0
            with os.scandir(folder) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):  # its writer has just renamed it
                        size += entry.stat().st_size
            yield _Stored(folder, folder.stat().st_mtime_ns, size)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
        handle = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # held by others for milliseconds
            yield
        finally:
            os.close(handle)


class Room:
    """Room that grows with what is written, in steps: a look at the whole cache for every piece would be slow."""

    def __init__(self, cache: FrameCache, folder: Path, expected: int) -> None:
        self._cache = cache
        self._folder = folder
        self._ahead = expected
        self._step = min(_STEP_BYTES, cache.most_bytes // 64)
        self._left = 0

    def take(self, size: int) -> None:
        """Before `size` bytes are written. Raises as `FrameCache.make_room`."""
        if size > self._left:
            self._left = max(size, self._step, self._ahead)
            self._cache.make_room(self._folder, self._left)
        self._left -= size
        self._ahead -= size


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


@contextmanager
def _only_one(folder: Path, cancelled: Callable[[], bool]) -> Iterator[None]:
    """Be the only writer of a held folder. Raises Cancelled."""
    handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if cancelled():
                    raise Cancelled("The analysis was cancelled.") from None
                time.sleep(0.1)
        yield
    finally:
        os.close(handle)


def _evicted(folder: Path) -> bool:
    """Whether the series is gone; a series that somebody holds stays. The caller has the cache's lock."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    with suppress(OSError):
        folder.parent.rmdir()  # the study, where it has no other series
    return True
