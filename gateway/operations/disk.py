"""Writing to the state folder: whole or not at all, and every trouble of the disk a typed error."""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gateway.operations.errors import DiskFull, StateError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def is_full(error: OSError) -> bool:
    """True where the operating system says that there is no room."""
    return error.errno in _NO_ROOM


@contextmanager
def disk_errors() -> Iterator[None]:
    """Translate what the operating system says of the disk: DiskFull where there is no room, else StateError."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise DiskFull("No space is left in the state folder: make room there.") from None
        raise StateError(
            f"A file in the state folder cannot be read or written ({os.strerror(error.errno or 0)}): "
            "check the folder and its permissions."
        ) from None


class NotRegular(Exception):
    """What lies there is no file that we wrote; the text says why, without the name."""


def regular_bytes(path: Path, most_bytes: int) -> bytes | None:
    """A regular file's bytes; None where there is none. A link is not followed.

    Raises NotRegular where it is a link or something else, or has more than `most_bytes`; OSError.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            raise NotRegular("is not a regular file") from None
        raise
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_size > most_bytes:
            raise NotRegular("is not a file that we wrote")
        return file.read()


@contextmanager
def written_whole(target: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """A file that appears under its name when the block ends well, flushed to the disk, and not at all otherwise.

    `private`: for its owner alone.
    """
    part = target.with_name(f".{target.name}.part")
    try:
        with part.open("wb") as out:
            if private:
                os.fchmod(out.fileno(), 0o600)
            yield out
            out.flush()
            os.fsync(out.fileno())
        part.replace(target)
        sync_folder(target.parent)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def locked_folder(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """An exclusive lock on a folder, which the kernel releases however its holder ends.

    Raises BlockingIOError where another has it and it is not waited for; OSError.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk, so that a file renamed into it survives a power cut."""
    _sync(folder)


def sync_files(folder: Path) -> None:
    """Bring the files of a folder and their names to the disk, before it gets its own."""
    for path in folder.iterdir():
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
