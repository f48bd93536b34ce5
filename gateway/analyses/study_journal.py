"""The journal of a study: what was done, a line each, only ever added to, each chained to the one before.

A line is on the disk before anything is said of it; then the audit trail is told its hash. So a line that was changed,
removed or put there breaks the chain, and a journal that was written anew, or cut off at its end, contradicts the
trail.
"""

import errno
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from gateway.operations import disk
from gateway.operations.audit.canonical import GENESIS, canonical
from gateway.operations.errors import StateError

FORMAT = "pathserve-study-journal-1"
"""Goes into every hash."""
_MOST_BYTES = 256 * 2**20
"""Of one file: a reference standard of 100,000 accessions has 10 MB."""


class StudyDamaged(StateError):
    """Files of a study that are damaged, or were changed by hand."""

    reason, title = "study-damaged", "The study's files are not what was written"


class Kind(StrEnum):
    """What a line tells."""

    CREATED = "created"
    ENROLLED = "enrolled"
    EXCLUDED = "excluded"
    JOINED = "joined"
    REPORTED = "reported"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line. `seq` counts from 1; `time` is UTC; `user`: the account; `previous`: the hash of the line before."""

    seq: int
    time: datetime
    kind: Kind
    user: str
    data: Mapping[str, Any]
    previous: str

    @property
    def hash(self) -> str:
        """sha256 over all of it."""
        return hashlib.sha256(canonical([FORMAT, *self._values()]).encode()).hexdigest()

    def line(self) -> bytes:
        names = ("seq", "time", "kind", "user", "data", "previous")
        return canonical(dict(zip(names, self._values(), strict=True)) | {"hash": self.hash}).encode() + b"\n"

    def _values(self) -> tuple[Any, ...]:
        time = self.time.astimezone(UTC).isoformat(timespec="microseconds")
        return (self.seq, time, self.kind.value, self.user, self.data, self.previous)


class Journal:
    """One file. Whoever appends holds the study's lock."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> tuple[Entry, ...]:
        """All lines, oldest first; none where there is no journal. Half a line at the end is one that a kill left: it
        was never told of, and is no line. Raises StudyDamaged, OSError."""
        entries: list[Entry] = []
        for line in self._whole().splitlines(keepends=True):
            entries.append(_entry(line, len(entries) + 1, entries[-1].hash if entries else GENESIS))
        return tuple(entries)

    def append(self, entries: Sequence[Entry], kind: Kind, user: str, data: Mapping[str, Any]) -> Entry:
        """One more line behind `entries`, which are those that were read; on disk when this returns. Raises OSError."""
        entry = Entry(
            seq=len(entries) + 1,
            time=datetime.now(UTC),
            kind=kind,
            user=user,
            data=data,
            previous=entries[-1].hash if entries else GENESIS,
        )
        end, line = len(self._whole()), entry.line()
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(handle, end)
            if os.pwrite(handle, line, end) != len(line):
                os.ftruncate(handle, end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(handle)
        finally:
            os.close(handle)
        disk.sync_folder(self._path.parent)  # its name, too, with every line: who made the file may have been killed
        return entry

    def _whole(self) -> bytes:
        """The bytes of all whole lines."""
        data = regular_bytes(self._path) or b""
        return data[: data.rfind(b"\n") + 1]


def regular_bytes(path: Path) -> bytes | None:
    """A regular file's bytes; None where there is none. Raises StudyDamaged where it is a link or something else."""
    try:
        return disk.regular_bytes(path, _MOST_BYTES)
    except disk.NotRegular as error:
        raise damaged(f"{path.name} {error}") from None


def damaged(what: str) -> StudyDamaged:
    return StudyDamaged(f"The study's files are not what was written: {what}. Restore them from a copy.")


def _entry(line: bytes, seq: int, previous: str) -> Entry:
    try:
        said = json.loads(line)
        entry = Entry(
            seq=said["seq"],
            time=datetime.fromisoformat(said["time"]),
            kind=Kind(said["kind"]),
            user=said["user"],
            data=said["data"],
            previous=said["previous"],
        )
        if (entry.seq, entry.previous) == (seq, previous) and entry.line() == line:
            return entry
    except (KeyError, TypeError, ValueError, AttributeError):
        pass
    raise damaged(f"line {seq} of its journal was changed, or one before it was changed or removed")
