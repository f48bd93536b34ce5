"""One embedded Triton per PATHSERVE_STATE, owned by whichever process starts first.

The owner holds an exclusive lock on `triton.lock` for as long as it lives and writes `triton.json` before it starts its
server; the others connect to what stands there once it answers. When the owner dies, by kill -9 too, the kernel
releases the lock and the next process that asks takes over: it ends the orphaned server, clears its shared memory, and
starts a new one.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

import psutil

from gateway.inference import metrics, runtime
from gateway.inference.client import Client, Endpoint
from gateway.inference.installation import find_installation
from gateway.inference.stubs import Stub, dead_children, living_stubs
from gateway.operations.errors import InferenceUnavailable
from gateway.operations.settings import Settings
from gateway.operations.threads import to_the_end

START_TIMEOUT_S = 60.0
# An empty server is ready within a second: one that is not after this long hangs.
START_TRY_S = 20.0
GUEST_TIMEOUT_S = 10.0

_PROGRAMS = ("tritonserver", "triton_python_backend_stub")


@dataclass(frozen=True, slots=True)
class Record:
    """`triton.json`: which server runs for this state folder. `state` tells a copied folder from the original."""

    state: str
    pid: int
    directory: str
    shm_prefix: str
    key: str

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(runtime.socket_url(Path(self.directory)), key=self.key, shm_prefix=self.shm_prefix)


class EmbeddedServer:
    """The embedded Triton as one process sees it: its owner, or a guest that may become the owner.

    A `guest` never does: it uses what the workers keep. `ensure` and `stop` run in one event loop; every wait of theirs
    is bounded.
    """

    def __init__(self, settings: Settings, *, guest: bool = False) -> None:
        self._settings = settings
        self._guest = guest
        self._state = settings.state
        self._record_file = settings.state / "triton.json"
        self._directory = runtime.runtime_directory(settings.state)
        self._lock: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._record: Record | None = None
        self._busy = asyncio.Lock()

    @property
    def owner(self) -> bool:
        """True while this process holds the lock."""
        return self._lock is not None

    def stubs(self) -> tuple[Stub, ...]:
        """The living processes of the server's models; none where no server is known."""
        record = self._record
        return living_stubs(record.pid, Path(record.directory)) if record is not None else ()

    def dead(self) -> frozenset[int]:
        """The ids of the server's dead processes."""
        return dead_children(self._record.pid) if self._record is not None else frozenset()

    def kill(self) -> None:
        """End our server at once: it hangs. `ensure` then starts another."""
        if self._process is not None and self._process.poll() is None:
            _kill_group(self._process)

    def needs_attention(self) -> bool:
        """True where `ensure` would act: our server has ended, or the owner of the one that we use is gone."""
        if self._process is not None:
            return self._process.poll() is not None
        return self._try_lock()

    async def ensure(self) -> Endpoint:
        """A server that answers: ours (started or restarted where needed), or the owner's.

        Raises InferenceUnavailable, StateError, DiskFull.
        """
        async with self._busy:
            deadline = time.monotonic() + (GUEST_TIMEOUT_S if self._guest else START_TIMEOUT_S)
            while True:
                if self.owner or self._try_lock():
                    return await self._own(deadline)
                record = read_record(self._state)
                if record is not None and await answers(record.endpoint):
                    self._record = record
                    return record.endpoint
                if time.monotonic() > deadline and self._guest:
                    raise InferenceUnavailable(
                        "No worker keeps a Triton that answers. Start one; where one is starting, try again in a "
                        "moment."
                    )
                if time.monotonic() > deadline:
                    raise InferenceUnavailable(
                        "Another process owns the embedded Triton, and it does not answer. See logs/triton.log in the "
                        "state folder; restarting pathserve starts it anew. Machines that share a state folder need "
                        "PATHSERVE_TRITON_URL."
                    )
                await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """End our server and leave nothing behind. A guest only forgets the record."""
        async with self._busy:
            if self.owner:
                await to_the_end(self._end)
                self._unlock()
            self._record = None

    async def _own(self, deadline: float) -> Endpoint:
        running = self._process is not None and self._process.poll() is None
        if running and self._record is not None:
            if await answers(self._record.endpoint):
                return self._record.endpoint
            # It would not obey SIGTERM either.
            await to_the_end(self.kill)
        try:
            await to_the_end(self._end)
            return await self._start(deadline)
        except BaseException:
            # Another process may have better luck; this one must not keep it from trying.
            await to_the_end(self._end)
            self._unlock()
            raise

    async def _start(self, deadline: float) -> Endpoint:
        while True:
            process, record = await to_the_end(self._launch)
            if await _gets_ready(process, record.endpoint, min(deadline, time.monotonic() + START_TRY_S)):
                return record.endpoint
            if time.monotonic() > deadline:
                raise InferenceUnavailable("Triton did not get ready in time. See logs/triton.log in the state folder.")
            await to_the_end(self.kill)
            await to_the_end(self._end)

    def _launch(self) -> tuple[subprocess.Popen[bytes], Record]:
        settings = self._settings
        if not settings.model_repository.is_dir():
            raise InferenceUnavailable("The model repository is not there. Correct PATHSERVE_MODEL_REPOSITORY.")
        installation = find_installation(settings.triton_venv)
        environment = runtime.build(self._directory, installation, settings.triton_backends, settings.model_repository)
        record = Record(
            state=str(self._state),
            pid=0,
            directory=str(self._directory),
            shm_prefix=f"pathserve_{secrets.token_hex(6)}_",
            key=secrets.token_urlsafe(24),
        )
        # Written before the server exists: whoever takes over from an owner killed at any moment can find it.
        self._keep(record)
        arguments = runtime.command(self._directory, installation, shm_prefix=record.shm_prefix, key=record.key)
        self._process = runtime.start(arguments, environment, self._directory, self._state / "logs" / "triton.log")
        metrics.SERVER_STARTS.inc()
        return self._process, self._keep(replace(record, pid=self._process.pid))

    def _keep(self, record: Record) -> Record:
        write_record(self._state, record)
        self._record = record
        return record

    def _end(self) -> None:
        """End the server that the record names (ours, or one that a dead owner left) and clear what it leaves."""
        process, self._process = self._process, None
        if process is not None:
            _end_child(process)
        for record in {self._record, read_record(self._state)}:
            if record is not None:
                kill_orphans(record)
                runtime.remove_shared_memory(record.shm_prefix)
                runtime.remove(Path(record.directory))
        self._record_file.unlink(missing_ok=True)
        self._record = None

    def _try_lock(self) -> bool:
        if self._guest:
            return False
        try:
            self._state.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = (self._state / "triton.lock").open("ab")
        except OSError as error:
            raise runtime.state_error(error, "The state folder cannot be written") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        self._lock = file
        return True

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def read_record(state: Path) -> Record | None:
    """The record of a state folder; None where there is none, or it is another machine's or a copy's."""
    try:
        written = json.loads((state / "triton.json").read_text())
        host = written.pop("host", None)
        record = Record(**written)
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return record if (record.state, host) == (str(state), socket.gethostname()) else None


def write_record(state: Path, record: Record) -> None:
    """Write the record atomically, readable by this user alone: it holds the key. Raises StateError, DiskFull."""
    temporary = state / f"triton.json.{os.getpid()}"
    try:
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            # Machines that share the folder do not share sockets and process ids.
            json.dump(asdict(record) | {"host": socket.gethostname()}, file)
        temporary.replace(state / "triton.json")
    except OSError as error:
        raise runtime.state_error(error, "The state folder cannot be written") from None


async def answers(endpoint: Endpoint) -> bool:
    """True if a server is ready at an address now."""
    async with Client(endpoint) as client:
        return await client.ready()


async def _gets_ready(process: subprocess.Popen[bytes], endpoint: Endpoint, deadline: float) -> bool:
    """Wait for a new server; False where it lives and does not answer. Raises InferenceUnavailable where it ends."""
    async with Client(endpoint) as client:
        while not await client.ready():
            if process.poll() is not None:
                raise InferenceUnavailable(
                    f"Triton ended while starting (exit status {process.returncode}). See logs/triton.log in the "
                    "state folder."
                )
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.05)
    return True


def kill_orphans(record: Record) -> None:
    """End the processes of a server whose owner died, and no other.

    A process id may have been given to somebody else since, and a stub that was executing outlives its server. So they
    are known by program, user, and the server's unique shared-memory prefix, which stands on each one's command line.
    """
    victims = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, IndexError, ProcessLookupError):
            arguments = process.cmdline()
            program = Path(arguments[0]).name
            if program in _PROGRAMS and process.uids().real == os.getuid() and record.shm_prefix in " ".join(arguments):
                victims.append(process)
                if program == "tritonserver" and os.getpgid(process.pid) == process.pid:
                    os.killpg(process.pid, signal.SIGKILL)
    for process in victims:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(victims, timeout=10)


def _end_child(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the server (requests in flight finish), then SIGKILL to its whole group, which is not reaped yet."""
    process.terminate()
    try:
        process.wait(runtime.EXIT_TIMEOUT_S + 2)
    except subprocess.TimeoutExpired:
        _kill_group(process)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
