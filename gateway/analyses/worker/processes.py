"""How workers are named, and which of them are surely gone."""

import os
import secrets
import socket
from hashlib import sha256
from pathlib import Path

import psutil


def new_worker_id() -> str:
    """A name for this start of a worker, never used again."""
    return f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(4)}"


def this_host() -> str:
    """Names what process ids are unique in: a machine since its start, or a container."""
    parts = [Path("/proc/sys/kernel/random/boot_id").read_text(), str(Path("/proc/self/ns/pid").readlink())]
    return f"{socket.gethostname()}-{sha256(''.join(parts).encode()).hexdigest()[:8]}"


def is_gone(host: str, pid: int) -> bool:
    """True where a process is surely gone: it was on this host, and no such process runs here."""
    if host != this_host():
        return False
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False
