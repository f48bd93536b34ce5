"""The server as one engine uses it: reached, asked, restarted; folders loaded into it and unloaded."""

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import structlog

from gateway.inference import metrics, stubs
from gateway.inference.client import CallFailed, Client, Trouble
from gateway.inference.connection import Connection
from gateway.inference.contract import Array, Contract
from gateway.inference.embedded import EmbeddedServer
from gateway.inference.external import ExternalServer
from gateway.inference.served import Served
from gateway.inference.stubs import Stub

LOAD_TIMEOUT_S = 120.0
UNLOAD_TIMEOUT_S = 30.0

_LOOK_AT_LOAD_S = 0.25
# A loading process that is gone for this long, or is not there after this long, will never report.
_GONE_S, _UNBORN_S = 3.0, 20.0
_STUCK = "its process ended before it had reported that it runs, and Triton waits for it for ever"

log = structlog.get_logger(__name__)


class Link:
    """One server and our connection to it. `epoch` counts connections: what was loaded on an earlier one is not now."""

    def __init__(self, server: EmbeddedServer | ExternalServer, threads: ThreadPoolExecutor) -> None:
        self.server = server
        self.foreign = isinstance(server, ExternalServer)
        self.epoch = 0
        # What this engine loaded by itself: on a foreign server, only that is unloaded or healed.
        self.loaded: set[str] = set()
        # Processes of folders that were unloaded, which should leave.
        self.leaving: dict[tuple[int, float], Stub] = {}
        self._threads = threads
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()

    @property
    def client(self) -> Client:
        """Raises CallFailed where there is no connection."""
        return self._connected().client

    async def connect(self) -> None:
        """Reach a server that answers. Raises InferenceUnavailable, StateError, DiskFull."""
        async with self._connecting:
            await self._connect()

    async def restart(self, epoch: int) -> None:
        """End the server of that epoch, which hangs, and start another; every model has to be brought again.

        Raises InferenceUnavailable, StateError, DiskFull.
        """
        async with self._connecting:
            if self.epoch == epoch:
                log.error("inference.server_killed", why="it hangs")
                await asyncio.to_thread(self.server.kill)
                await self._connect()

    async def disconnect(self) -> None:
        """End the connection, if there is one. Calls in flight end as CallFailed."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def ask(self, contract: Contract, batch: Mapping[str, Array], deadline_s: float) -> dict[str, Array]:
        """One batch, asked for once. Raises CallFailed."""
        return await self._connected().ask(contract, batch, deadline_s)

    async def stubs(self, folder: str) -> list[Stub]:
        """The living processes of a folder, those that leave after it was unloaded too."""
        return [stub for stub in await asyncio.to_thread(self.server.stubs) if stub.folder == folder]

    async def load(self, served: Served, version: str) -> None:
        """Load a folder, or find it there on a server that loads by itself. Raises CallFailed."""
        outcome = "failed"
        try:
            await self._load(served)
            self.loaded.add(served.folder)
            outcome = "loaded"
        except CallFailed as failure:
            if failure.trouble is not Trouble.REFUSED:
                raise
            if not await self.client.model_ready(served.folder, version):
                raise CallFailed(
                    Trouble.NOT_LOADED, "this server loads its models by itself, and this version is not among them"
                ) from None
            outcome = "found"
        finally:
            metrics.LOADS.labels(*served.labels, outcome).inc()

    async def unload(self, folder: str) -> None:
        """Unload a folder through Triton, which ends what it is computing first. Raises CallFailed."""
        self.leaving |= {(stub.pid, stub.started_s): stub for stub in await self.stubs(folder)}
        await self.client.unload(folder, UNLOAD_TIMEOUT_S)
        self.loaded.discard(folder)

    async def unload_broken(self, folder: str, *, hung: bool) -> None:
        """Unload a folder of which a process does not work, and end the processes that Triton would wait for.

        `load` alone does nothing while Triton calls the model ready. A server that does not unload it is restarted.
        Raises CallFailed, InferenceUnavailable, StateError, DiskFull.
        """
        epoch = self.epoch
        stubs.kill(stub for stub in await self.stubs(folder) if stub.frozen or hung)
        try:
            await self.unload(folder)
        except CallFailed as failure:
            if failure.trouble is not Trouble.DEADLINE:
                raise
            await self.restart(epoch)

    async def _load(self, served: Served) -> None:
        """A load whose process dies before it has reported never ends, and only a new server helps.

        Where the server is not ours to restart, its owner ends the waiting. Raises CallFailed.
        """
        if served.stuck_epoch == self.epoch:
            raise CallFailed(Trouble.STUCK, _STUCK)
        has_stubs = self.server.owner and served.contract is not None and not served.contract.steps
        instances = served.contract.instances if served.contract is not None else 0
        known = await self._known(served.folder) if has_stubs else frozenset()
        loading = asyncio.ensure_future(self.client.load(served.folder, LOAD_TIMEOUT_S))
        try:
            born: set[int] = set()
            well_s = time.monotonic()
            while has_stubs and not (await asyncio.wait({loading}, timeout=_LOOK_AT_LOAD_S))[0]:
                living = await asyncio.to_thread(self.server.stubs)
                # Once dead they could not be told from ours: a process without a command line has no folder.
                known |= {stub.pid for stub in living if stub.folder != served.folder}
                here = [stub for stub in living if stub.pid not in known]
                working = {stub.pid for stub in here if not stub.frozen}
                born |= {stub.pid for stub in here} | (await asyncio.to_thread(self.server.dead) - known)
                if born == working and len(working) >= instances:
                    well_s = time.monotonic()
                elif time.monotonic() - well_s > (_GONE_S if born - working else _UNBORN_S):
                    # Of too few, one ended before we looked: the load is another's, who may be gone as well.
                    served.stuck_epoch = self.epoch
                    raise CallFailed(Trouble.STUCK, _STUCK)
            await loading
        finally:
            loading.cancel()

    async def _known(self, folder: str) -> frozenset[int]:
        """The processes whose end says nothing of a load of this folder, which another engine may have begun."""
        serves = folder in await self.client.ready_models()
        dead = await asyncio.to_thread(self.server.dead)
        return dead | {
            stub.pid
            for stub in await asyncio.to_thread(self.server.stubs)
            if stub.folder != folder or serves or (stub.pid, stub.started_s) in self.leaving
        }

    async def _connect(self) -> None:
        endpoint = await self.server.ensure()
        connection = self._connection
        if connection is not None and connection.endpoint == endpoint:
            return
        if connection is None or not connection.follow(endpoint):
            await self.disconnect()
            connection = Connection(endpoint, self._threads)
        self._connection = connection
        await connection.prepare()
        self.epoch += 1
        self.loaded.clear()
        self.leaving.clear()

    def _connected(self) -> Connection:
        if self._connection is None:
            raise CallFailed(Trouble.GONE, "not connected")
        return self._connection
