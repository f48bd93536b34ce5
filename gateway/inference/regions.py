"""A pool of shared-memory regions: tiles reach the embedded Triton without travelling through gRPC.

A region goes back to the pool only when its request is known to be over. Of a cancelled one that is not known: its
region is condemned, and freed once the server agrees to unmap it, which it refuses while a request still reads it.
"""

import asyncio
import contextlib
import itertools
import mmap
import os
import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gateway.inference.client import CallFailed, Client, Trouble
from gateway.inference.contract import Array

LIMIT = 8

_ALIGN_BYTES = 64
_STEP_BYTES = 1 << 20
_RECLAIM_PERIOD_S = 0.25
_CLIENT_MARK = "client"
# The pools of this process that are open: a region of none of them was left by a closed one.
_open_pools: set[str] = set()


@dataclass(frozen=True, slots=True)
class Region:
    """One mapped region, registered with the server under `name`."""

    name: str
    byte_size: int
    memory: mmap.mmap


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one tensor lies in a region."""

    offset: int
    byte_size: int


class RegionPool:
    """The regions of one connection. Used in one event loop; the copying happens in threads."""

    def __init__(self, client: Client, prefix: str, threads: ThreadPoolExecutor) -> None:
        self._client = client
        self._token = secrets.token_hex(4)
        self._prefix = f"{prefix}{_CLIENT_MARK}_{os.getpid()}_{self._token}_"
        _open_pools.add(self._token)
        self._threads = threads
        self._numbers = itertools.count()
        self._free: list[Region] = []
        self._condemned: list[Region] = []
        self._count = 0
        self._reclaimer: asyncio.Task[None] | None = None
        self._closed = False

    async def place(self, batch: Mapping[str, Array]) -> tuple[Region, dict[str, Slot]] | None:
        """Copy a batch into a region; None where there is none to be had (limit, or shared memory full).

        Raises CallFailed where the server does not answer.
        """
        slots, size = _layout(batch)
        region = await self._take(size)
        if region is None:
            return None
        loop = asyncio.get_running_loop()
        copying = loop.run_in_executor(self._threads, _copy, batch, slots, region.memory)
        try:
            await asyncio.shield(copying)
        except asyncio.CancelledError:
            copying.add_done_callback(lambda _: self.release(region))
            raise
        return region, slots

    def release(self, region: Region) -> None:
        """Give a region back: its request is over."""
        self._free.append(region)

    def condemn(self, region: Region) -> None:
        """Give a region up whose request may still read it."""
        self._condemned.append(region)
        if not self._closed and (self._reclaimer is None or self._reclaimer.done()):
            self._reclaimer = asyncio.create_task(self._reclaim())

    def abandon(self) -> None:
        """The server is gone, and with it every use of the regions."""
        self._closed = True
        _open_pools.discard(self._token)
        if self._reclaimer is not None:
            self._reclaimer.cancel()

    async def close(self) -> None:
        """Unmap what is free in a server that lives on; what is condemned is left to the next `sweep`."""
        self.abandon()
        for region in self._free:
            with contextlib.suppress(CallFailed):
                await self._client.unregister(region.name)
        self._free.clear()

    async def sweep(self) -> None:
        """Unmap in the server what dead processes and closed pools have left there. Raises CallFailed."""
        for name in await self._client.regions():
            parts = name.partition(f"_{_CLIENT_MARK}_")[2].split("_")
            if len(parts) != 3:
                continue
            owner, token = int(parts[0]), parts[1]
            if (token not in _open_pools) if owner == os.getpid() else not _alive(owner):
                await self._client.unregister(name)

    async def _take(self, size: int) -> Region | None:
        fitting = [region for region in self._free if region.byte_size >= size]
        if fitting:
            smallest = min(fitting, key=lambda region: region.byte_size)
            self._free.remove(smallest)
            return smallest
        if self._count >= LIMIT:
            if not self._free:
                return None
            small = self._free.pop()
            self._count -= 1
            await self._client.unregister(small.name)
        self._count += 1
        try:
            region = await self._make(-(-size // _STEP_BYTES) * _STEP_BYTES)
        except BaseException:
            self._count -= 1
            raise
        if region is None:
            self._count -= 1
        return region

    async def _make(self, size: int) -> Region | None:
        name = f"{self._prefix}{next(self._numbers)}"
        path = Path("/dev/shm") / name  # noqa: S108 (0600, exclusive)
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError:
            return None
        try:
            # Reserved now: writing to a mapping that tmpfs cannot back would end this process with SIGBUS.
            os.posix_fallocate(file, 0, size)
            memory = mmap.mmap(file, size)
            await self._client.register(name, size)
        except OSError:
            return None
        except CallFailed as failure:
            if failure.trouble is Trouble.GONE:
                raise
            return None
        finally:
            os.close(file)
            # Both sides have mapped it: without a name nothing is left behind, whoever dies first.
            # The owner of a server that is being restarted clears what bears its prefix.
            path.unlink(missing_ok=True)
        return Region(name, size, memory)

    async def _reclaim(self) -> None:
        while self._condemned:
            await asyncio.sleep(_RECLAIM_PERIOD_S)
            for region in tuple(self._condemned):
                with contextlib.suppress(CallFailed):
                    if await self._client.unregister(region.name):
                        self._condemned.remove(region)
                        self._count -= 1


def _layout(batch: Mapping[str, Array]) -> tuple[dict[str, Slot], int]:
    slots, end = {}, 0
    for name, array in batch.items():
        slots[name] = Slot(end, array.nbytes)
        end += -(-array.nbytes // _ALIGN_BYTES) * _ALIGN_BYTES
    return slots, end


def _copy(batch: Mapping[str, Array], slots: Mapping[str, Slot], memory: mmap.mmap) -> None:
    for name, array in batch.items():
        view = np.frombuffer(memory, dtype=array.dtype, count=array.size, offset=slots[name].offset)
        np.copyto(view.reshape(array.shape), array)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
