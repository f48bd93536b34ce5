"""Runs a program that reads foreign files: bounded in time and memory, without a network, and never longer than we."""

import ctypes
import os
import resource
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


def run_confined(
    command: Sequence[str | Path], *, timeout_s: float, memory_bytes: int, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run `command` with nothing but `environment` set, and give its exit status, stdout and stderr.

    It dies with us. `memory_bytes` bounds what it allocates, not the files that it maps. Where the system lets us make
    network namespaces (as root, or as anybody where user namespaces are allowed) it has no network; elsewhere it keeps
    ours. Raises OSError where it cannot be started, subprocess.TimeoutExpired after `timeout_s`.
    """

    def confine() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        bound_to_parent()
        _leave_network()

    return subprocess.run(  # the child is a new interpreter: what is unsafe after a fork with threads ends with exec
        command,
        preexec_fn=confine,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout_s,
        check=False,
    )


def bound_to_parent() -> None:
    """In a child, before its program begins: it ends with the thread that started it."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _leave_network() -> None:
    if _LIBC.unshare(_CLONE_NEWNET) == 0:
        return
    user, group = os.geteuid(), os.getegid()
    if _LIBC.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0:
        with suppress(OSError):  # who we are outside, or no file could be made (user_namespaces(7))
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
            Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
