"""One server as one engine reaches it: the client, and the shared memory through which large batches travel."""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from gateway.inference.client import CallFailed, Client, Endpoint, Trouble, plain_input, shared_input
from gateway.inference.contract import Array, Contract
from gateway.inference.regions import RegionPool

# Below this, gRPC carries the bytes as fast as a copy into shared memory would.
SHARED_FROM_BYTES = 1 << 18

_RECONNECT_S = 5.0


class Connection:
    """The client of one server, kept, with its pool of regions. Used in one event loop."""

    def __init__(self, endpoint: Endpoint, threads: ThreadPoolExecutor) -> None:
        self.client = Client(endpoint)
        self._threads = threads
        self._pool: RegionPool | None = None

    @property
    def endpoint(self) -> Endpoint:
        return self.client.endpoint

    def follow(self, endpoint: Endpoint) -> bool:
        """Use a server that took another's place at the same address; False where the address is another."""
        if not self.client.follow(endpoint):
            return False
        if self._pool is not None:
            self._pool.abandon()
            self._pool = None
        return True

    async def prepare(self) -> None:
        """Wait a little for the server (a connection finds a restarted one at its own pace) and open the pool."""
        deadline = time.monotonic() + _RECONNECT_S
        while not await self.client.ready() and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        if self.endpoint.shm_prefix is not None:
            self._pool = RegionPool(self.client, self.endpoint.shm_prefix, self._threads)
            with contextlib.suppress(CallFailed):
                await self._pool.sweep()

    async def close(self) -> None:
        """Unmap what can be unmapped, and end the connection."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()
        await self.client.close()

    async def ask(self, contract: Contract, batch: Mapping[str, Array], deadline_s: float) -> dict[str, Array]:
        """The outputs of one batch by name, asked for once. Raises CallFailed."""
        pool = self._pool
        outputs = [spec.name for spec in contract.outputs]
        size = sum(array.nbytes for array in batch.values())
        placed = await pool.place(batch) if pool is not None and size >= SHARED_FROM_BYTES else None
        if pool is None or placed is None:
            tensors = [(spec.name, spec.datatype, np.ascontiguousarray(batch[spec.name])) for spec in contract.inputs]
            if size < SHARED_FROM_BYTES:
                inputs = [plain_input(*tensor) for tensor in tensors]
            else:
                loop = asyncio.get_running_loop()
                inputs = [await loop.run_in_executor(self._threads, plain_input, *tensor) for tensor in tensors]
            return await self.client.infer(contract.name, inputs, outputs, deadline_s)
        region, slots = placed
        inputs = [
            shared_input(
                spec.name,
                spec.datatype,
                batch[spec.name].shape,
                region.name,
                slots[spec.name].byte_size,
                slots[spec.name].offset,
            )
            for spec in contract.inputs
        ]
        try:
            result = await self.client.infer(contract.name, inputs, outputs, deadline_s)
        except CallFailed as failure:
            if failure.trouble in (Trouble.DEADLINE, Trouble.CANCELLED, Trouble.GONE):
                pool.condemn(region)
            else:
                pool.release(region)
            raise
        except BaseException:
            pool.condemn(region)
            raise
        pool.release(region)
        return result
