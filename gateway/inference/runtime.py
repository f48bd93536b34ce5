"""The runtime directory of an embedded Triton, its command line and its start.

The directory lies outside PATHSERVE_STATE (it holds links and a socket), belongs to this user alone, and is rebuilt at
each start. Triton's traps that decide how each entry is made are named beside it.
"""

import errno
import hashlib
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from gateway.inference.installation import Installation, check_stub
from gateway.operations.errors import DiskFull, InferenceUnavailable, StateError

EXIT_TIMEOUT_S = 5
RESTRICTED = "shared-memory,model-repository,trace,logging,statistics,model-config"
KEY_HEADER = "triton-grpc-protocol-pathserve"

_LOG_LIMIT_BYTES = 8 << 20
# sun_path holds 107 characters; `/t.sock:1` is added to the directory.
_LONGEST_DIRECTORY = 90
# Triton starts its stubs through a shell, which would split at a blank and run what it can.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._+-]+\Z")


def runtime_directory(state: Path) -> Path:
    """Where the runtime directory of a state folder lies: one name per state path and user."""
    name = f"{_name_start()}{hashlib.sha256(os.fsencode(state)).hexdigest()[:12]}"
    for base in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):  # noqa: S108 (0700, owner checked)
        if base and _PLAIN_PATH.match(base) and Path(base).is_dir() and len(base) + len(name) < _LONGEST_DIRECTORY:
            return Path(base) / name
    raise StateError("There is no folder for Triton's runtime files. Set XDG_RUNTIME_DIR to a short, plain path.")


def build(directory: Path, installation: Installation, backends: Path, repository: Path) -> dict[str, str]:
    """Make the runtime directory afresh and check that the stub starts from it; returns the server's environment.

    Raises InferenceUnavailable, StateError, DiskFull.
    """
    try:
        _make_private(directory)
        python_backend = directory / "backends" / "python"
        python_backend.mkdir(parents=True)
        (directory / "lib").mkdir()
        # A linked library is refused ("escapes backend directory"); a copied stub would not find its own libraries.
        shutil.copyfile(
            installation.triton / "backends" / "python" / "libtriton_python.so", python_backend / "libtriton_python.so"
        )
        utils = "triton_python_backend_utils.py"
        (python_backend / utils).symlink_to(installation.triton / "backends" / "python" / utils)
        (python_backend / installation.stub.name).symlink_to(installation.stub)
        # libpython alone in its folder: the interpreter's own may hold libraries that shadow the system's.
        (directory / "lib" / installation.libpython.name).symlink_to(installation.libpython)
        for backend in sorted(backends.iterdir()):
            if (backend / "model.py").is_file():
                (directory / "backends" / backend.name).symlink_to(backend)
        # Reached through a link, so that blanks in the repository's own path never meet the shell.
        (directory / "models").symlink_to(repository)
    except OSError as error:
        raise state_error(error, "Triton's runtime folder cannot be made") from None
    environment = installation.environment(directory / "lib")
    check_stub(python_backend / installation.stub.name, environment)
    return environment


def remove(directory: Path) -> None:
    """Remove a runtime directory, if it is one and ours."""
    if directory.name.startswith(_name_start()) and _is_private(directory):
        shutil.rmtree(directory, ignore_errors=True)


def command(directory: Path, installation: Installation, *, shm_prefix: str, key: str) -> list[str]:
    """The server's command line: loads nothing by itself, listens on a Unix socket only, keeps serving good models."""
    return [
        str(installation.server),
        f"--model-repository={directory / 'models'}",
        f"--backend-directory={directory / 'backends'}",
        "--model-control-mode=explicit",
        "--disable-auto-complete-config",
        "--exit-on-error=false",
        "--strict-readiness=false",
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        "--allow-http=false",
        "--allow-metrics=false",
        f"--grpc-address=unix:{directory / 't.sock'}",
        "--grpc-port=1",
        f"--grpc-restricted-protocol={RESTRICTED}:pathserve={key}",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
    ]


def socket_url(directory: Path) -> str:
    """The gRPC address of the server that runs in a runtime directory."""
    return f"unix:{directory / 't.sock'}:1"


def start(arguments: list[str], environment: Mapping[str, str], directory: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start the server as leader of its own process group.

    Where `setpriv` (util-linux) is installed, the kernel ends the server when the thread that calls this ends, however
    the process was killed: no server idles on for ever where nobody takes over.
    Raises InferenceUnavailable, StateError, DiskFull.
    """
    setpriv = shutil.which("setpriv")
    tied = [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.exists() and log.stat().st_size > _LOG_LIMIT_BYTES:
            log.replace(log.with_suffix(".log.1"))
        stream = log.open("ab")
    except OSError as error:
        raise state_error(error, "Triton's log cannot be written") from None
    with stream:
        try:
            return subprocess.Popen(
                [*tied, *arguments],
                env=dict(environment),
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=0o077,
            )
        except OSError as error:
            raise InferenceUnavailable(
                f"Triton cannot be started ({error.strerror}). Run `make setup` again."
            ) from None


def shared_memory_files(prefix: str) -> list[Path]:
    """The shared-memory files of one server and its clients, by their unique prefix."""
    return [path for path in Path("/dev/shm").iterdir() if path.name.startswith(prefix)]  # noqa: S108 (listing only)


def remove_shared_memory(prefix: str) -> None:
    """Remove the shared-memory files of one server, and nobody else's."""
    for path in shared_memory_files(prefix):
        path.unlink(missing_ok=True)


def _name_start() -> str:
    return f"pathserve-{os.getuid()}-"


def _make_private(directory: Path) -> None:
    """An empty directory of mode 0700 that is ours; a foreign one of that name is refused, not followed."""
    if os.path.lexists(directory):
        if not _is_private(directory):
            raise StateError("Triton's runtime folder belongs to another user or is open to others. Remove it.")
        shutil.rmtree(directory)
    directory.mkdir(mode=0o700)


def _is_private(directory: Path) -> bool:
    try:
        status = directory.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077


def state_error(error: OSError, what: str) -> StateError:
    """The typed error of a file operation under the state or runtime folder."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"{what}: no space is left. Free some and try again.")
    return StateError(f"{what} ({error.strerror}). Check the folder's owner and permissions.")
