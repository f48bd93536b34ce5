"""Signed notes of the trail's end, kept outside the database: whoever rewrites table and head with SQL is found out.

The key and the notes lie in the state folder of each server (`audit-key`, `audit-anchors.jsonl`); servers that share a
database have a key and notes each, and any of them shows a rewriting. Who may write the state folder can forge both:
against that helps only a head that was noted elsewhere (`pathserve audit verify --expect`).
"""

import errno
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gateway.operations.audit.canonical import now
from gateway.operations.disk import disk_errors, sync_folder
from gateway.operations.errors import StateError

KEY_FILE = "audit-key"
ANCHORS_FILE = "audit-anchors.jsonl"


@dataclass(frozen=True, slots=True)
class Anchor:
    """That the trail's record `seq` had this hash. `genuine`: signed by this server's key."""

    seq: int
    hash: str
    time: str
    genuine: bool


class Anchors:
    """The anchors of one state folder."""

    def __init__(self, state: Path) -> None:
        self._key_file = state / KEY_FILE
        self._file = state / ANCHORS_FILE

    def add(self, seq: int, digest: str) -> None:
        """Note the trail's end; on disk when this returns. Raises StateError, DiskFull."""
        with disk_errors():
            time = now().isoformat(timespec="seconds")
            line = {"seq": seq, "hash": digest, "time": time, "mac": _mac(self._made_key(), seq, digest, time)}
            handle = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                end = os.fstat(handle).st_size
                text = json.dumps(line).encode() + b"\n"
                if os.write(handle, text) != len(text):
                    # Half a line would read as a forged one, and spoil the next.
                    os.ftruncate(handle, end)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(handle)
            finally:
                os.close(handle)

    def read(self) -> Iterator[Anchor]:
        """All anchors, oldest first; one that is not signed rightly is not genuine. Raises StateError."""
        with disk_errors():
            key = self._key() if self._key_file.exists() else b""
            if not self._file.exists():
                if key:
                    raise StateError(
                        "The anchors of the audit trail (audit-anchors.jsonl in the state folder) are gone, but their "
                        "key is there: somebody removed them."
                    )
                return
            with self._file.open("rb") as lines:
                for line in lines:
                    yield _anchor(line, key)

    def _key(self) -> bytes:
        try:
            key = bytes.fromhex(self._key_file.read_text())
        except ValueError:
            key = b""
        if len(key) != 32:
            raise StateError("The key of the audit trail's anchors (audit-key in the state folder) is damaged.")
        return key

    def _made_key(self) -> bytes:
        if not self._key_file.exists():
            handle, name = tempfile.mkstemp(prefix=f".{KEY_FILE}.", dir=self._key_file.parent)  # mode 0600
            try:
                with os.fdopen(handle, "w") as out:
                    out.write(secrets.token_hex(32))
                    out.flush()
                    os.fsync(out.fileno())
                with suppress(FileExistsError):  # of several processes that begin at once one makes it
                    os.link(name, self._key_file)
                    sync_folder(self._key_file.parent)
            finally:
                Path(name).unlink()
        return self._key()


def _mac(key: bytes, seq: int, digest: str, time: str) -> str:
    return hmac.new(key, f"pathserve-audit-anchor-1 {seq} {digest} {time}".encode(), hashlib.sha256).hexdigest()


def _anchor(line: bytes, key: bytes) -> Anchor:
    try:
        data = json.loads(line)
        seq, digest, time, mac = int(data["seq"]), str(data["hash"]), str(data["time"]), str(data["mac"])
    except (ValueError, TypeError, KeyError):
        return Anchor(0, "", "", genuine=False)
    return Anchor(seq, digest, time, genuine=bool(key) and hmac.compare_digest(mac, _mac(key, seq, digest, time)))
