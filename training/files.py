"""Files written whole or not at all, and their digests."""

import ctypes
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_atomic(path: Path, data: bytes) -> None:
    """Write beside the target, flush to disk, rename: a reader sees the old file or the new one, never a part."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def exchange(one: Path, other: Path) -> None:
    """Swap two files or folders of one file system in one step (Linux, renameat2(2)). Raises OSError."""
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if ctypes.CDLL(None, use_errno=True).renameat2(here, os.fsencode(one), here, os.fsencode(other), swap) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def json_bytes(value: Any) -> bytes:
    """JSON text with a final newline; keys keep their order, so equal values built alike give equal bytes."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
