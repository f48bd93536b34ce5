"""Who looks after the models of an embedded Triton: its owner, without waiting for a request to fail.

Triton calls a model ready whose process died, and never starts it again. So the owner looks at the processes each
second; asks models that have been quiet for one golden row, since a process can live and hang; and gives the server
itself a deadline. Guests report: they wait, and repeat what failed.
"""

import asyncio
import time

import structlog

from gateway.inference import replay, stubs
from gateway.inference.client import CallFailed, Trouble
from gateway.inference.fleet import Cause, Fleet
from gateway.inference.served import Served

LOOK_PERIOD_S = 1.0
# A server that answers neither of two questions within this time hangs.
SERVER_DEADLINE_S = 4.0
# A model that answered nothing for this long is asked for a golden row. One that has not answered after this long is
# looked at each second: it hangs once none of its processes wants to compute.
QUIET_S = 4.0
CANARY_DEADLINE_S = 3.0
# A model that computes, or waits for a core, for this long is asked again later, so that the others are asked as well.
PATIENCE_S = 30.0
# A process whose model was unloaded, and that computes nothing, may take this long to leave.
LEAVE_S = 3.0
# Processes that live, owe an answer and have wanted less CPU time than this meanwhile, hang; busy ones want more.
_IDLE_CPU_S = 0.05

log = structlog.get_logger(__name__)


class Supervisor:
    """Looks after every model that is loaded, whoever loaded it, while this process owns the server."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        # Folders that lacked a process at the last look, with their generation: twice is no reload on its way.
        self._suspects: dict[str, int] = {}
        self._healing: dict[str, asyncio.Task[None]] = {}
        # Since when processes that should leave have computed nothing.
        self._idle_since: dict[tuple[int, float], float] = {}
        self._answered: dict[str, tuple[int, float]] = {}

    async def look(self) -> None:
        """Heal what has fewer working processes than instances. Raises PathserveError where no server comes back."""
        ready = await self._ready()
        await self._dismiss()
        suspects, self._suspects = self._suspects, {}
        # Once for all folders: finding a server's children reads every process of the machine.
        living = await asyncio.to_thread(self._fleet.link.server.stubs)
        for folder in sorted(ready):
            served = self._fleet.get(folder)
            generation = served.generation
            if served.lock.locked() or folder in self._healing:
                continue
            if not await self._fleet.lacks_process(served, living):
                continue
            if suspects.get(folder) == generation:
                self._heal(served, generation, "dead")
            else:
                self._suspects[folder] = generation

    async def listen(self) -> None:
        """Ask the models that have been quiet. Raises CallFailed."""
        if not self._fleet.tends_any:
            return
        now = time.monotonic()
        try:
            answered = await self._fleet.link.client.answered(SERVER_DEADLINE_S)
        except CallFailed as failure:
            if failure.trouble is Trouble.REFUSED:
                return
            raise
        for folder, count in answered.items():
            before = self._answered.get(folder)
            if before is None or before[0] != count:
                self._answered[folder] = (count, now)
            elif now - before[1] >= QUIET_S:
                self._answered[folder] = (count, now)
                await self._ask(self._fleet.get(folder))

    async def close(self) -> None:
        """Give up what is being healed."""
        for task in self._healing.values():
            task.cancel()
        await asyncio.gather(*self._healing.values(), return_exceptions=True)

    async def _ready(self) -> frozenset[str]:
        link = self._fleet.link
        epoch = link.epoch
        for _ in range(2):
            if link.server.needs_attention():
                return frozenset()
            try:
                return await link.client.ready_models(SERVER_DEADLINE_S)
            except CallFailed as failure:
                if failure.trouble not in (Trouble.DEADLINE, Trouble.GONE):
                    raise
        if not link.server.needs_attention():
            await link.restart(epoch)
        return frozenset()

    async def _ask(self, served: Served) -> None:
        """One golden row an instance; a wrong answer is not looked for here, but silence is."""
        await self._fleet.read(served)
        contract, golden = served.contract, served.golden
        if contract is None or contract.steps or golden is None:
            return
        if served.lock.locked() or not self._fleet.tends(served):
            return
        generation = served.generation
        canary = asyncio.create_task(replay.canary(contract, golden, self._fleet.link.ask, PATIENCE_S))
        try:
            if await self._hangs(served, canary):
                log.warning("inference.canary_failed", model=served.folder, trouble=Trouble.DEADLINE.value)
                self._heal(served, generation, "hung")
            else:
                await canary
        except CallFailed as failure:
            log.warning("inference.canary_failed", model=served.folder, trouble=failure.trouble.value)
            if failure.trouble is Trouble.DEAD_STUB:
                self._heal(served, generation, "dead")
        finally:
            canary.cancel()
            await asyncio.wait({canary})

    async def _hangs(self, served: Served, canary: asyncio.Task[None]) -> bool:
        """Wait until a canary has ended (False), or until it owes an answer and no process of the model wants to
        compute (True): however slow a model is, and however busy the machine, it works as long as one does.
        """
        patience_s = CANARY_DEADLINE_S
        while True:
            before = await self._demands(served)
            await asyncio.wait({canary}, timeout=patience_s)
            if canary.done():
                return False
            after = await self._demands(served)
            if after and all(demand - before.get(key, 0.0) < _IDLE_CPU_S for key, demand in after.items()):
                return True
            patience_s = LOOK_PERIOD_S

    async def _demands(self, served: Served) -> dict[tuple[int, float], float]:
        """What each process of a model has wanted of the CPU so far, those that leave aside; s."""
        link = self._fleet.link
        here = [(stub.pid, stub.started_s) for stub in await link.stubs(served.folder)]
        return {
            (pid, started_s): stubs.wanted_s(pid) for pid, started_s in here if (pid, started_s) not in link.leaving
        }

    async def _dismiss(self) -> None:
        """End processes of unloaded models that have nothing to do and do not leave.

        Triton waits for ever for a dead process that was asked for something, and with it for its healthy siblings.
        """
        leaving = self._fleet.link.leaving
        if not leaving:
            return
        now = time.monotonic()
        living = {(stub.pid, stub.started_s): stub for stub in await asyncio.to_thread(self._fleet.link.server.stubs)}
        for key, before in tuple(leaving.items()):
            stub = living.get(key)
            if stub is None:
                del leaving[key]
                self._idle_since.pop(key, None)
            elif stub.cpu_s != before.cpu_s:
                leaving[key] = stub
                self._idle_since[key] = now
            elif now - self._idle_since.setdefault(key, now) >= LEAVE_S:
                stubs.kill([stub])

    def _heal(self, served: Served, generation: int, cause: Cause) -> None:
        """`generation` is that of the evidence: what was loaded anew since then is not what was seen."""
        if served.folder in self._healing:
            return
        task = asyncio.create_task(self._fleet.heal(served, generation, cause))
        self._healing[served.folder] = task
        task.add_done_callback(lambda _: self._healing.pop(served.folder, None))
