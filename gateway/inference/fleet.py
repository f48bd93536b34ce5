"""The models of one engine on one server: each is checked, loaded, proven, healed, and put away.

One lock a folder: while one model is loaded or healed, the others answer. Of an ensemble, the steps are folders of
their own; Triton takes an ensemble out and back with its steps.
"""

import asyncio
import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import structlog

from gateway.domain.model import ModelCard
from gateway.inference import metrics, replay
from gateway.inference.client import CallFailed, Trouble
from gateway.inference.contract import Contract
from gateway.inference.link import LOAD_TIMEOUT_S, Link
from gateway.inference.repository import ModelRepository
from gateway.inference.served import ModelStatus, Served
from gateway.inference.stubs import Stub
from gateway.operations.errors import (
    InferenceError,
    InferenceUnavailable,
    ModelChanged,
    ModelNotLoaded,
    ModelRefused,
    PathserveError,
)

Cause = Literal["dead", "hung"]
"""Why a model is healed: a process is dead or stopped, or it lives and neither answers nor computes."""

_LOAD_TRIES = 4
# How long a guest waits for the server's owner to heal a model.
_OWNER_HEALS_S = 30.0
_SETTLE_PERIOD_S = 0.25

log = structlog.get_logger(__name__)


class Proof(NamedTuple):
    """What golden inputs were replayed with: a server, by the mark that each start of it has, an engine, its files."""

    server: str | None
    engine_sha256: str
    files: frozenset[tuple[str, str]]


# The last proof of each folder, of every engine in this process.
_proofs: dict[Path, Proof] = {}


class Fleet:
    """The folders that one engine was asked for, their steps, and those that its supervisor found loaded."""

    def __init__(self, repository: ModelRepository, link: Link) -> None:
        self.repository = repository
        self.link = link
        # A keeper takes a folder's new engine up: it decides what serves, and has no analysis whose answers could mix.
        self.keeps = False
        self.asked: tuple[str, ...] = ()
        self._folders: dict[str, Served] = {}

    def ask_for(self, folders: Sequence[str]) -> None:
        """The folders that `bring_all` loads and `status` shows, in that order."""
        self.asked = tuple(dict.fromkeys(folders))
        for folder in self.asked:
            self.get(folder)

    def get(self, folder: str) -> Served:
        """The state of a folder, new where it was never looked at."""
        return self._folders.setdefault(folder, Served(folder))

    def status(self) -> tuple[ModelStatus, ...]:
        """Every folder asked for, in that order."""
        return tuple(
            served.status(self.problem_of(served), proven=all(map(self.is_proven, (served, *self._steps(served)))))
            for served in map(self.get, self.asked)
        )

    def problem_of(self, served: Served) -> PathserveError | None:
        """What keeps a folder from serving: its own problem, or that of a step."""
        return next((part.problem for part in (served, *self._steps(served)) if part.problem is not None), None)

    def is_proven(self, served: Served) -> bool:
        """True where it was loaded and proven on the server that we are connected to."""
        return served.epoch == self.link.epoch

    def seen(self, served: Served) -> dict[str, int]:
        """The generation of a folder and of its steps: `reload` and `heal` do nothing where it has passed."""
        return {part.folder: part.generation for part in (*self._steps(served), served)}

    def lacks_any(self) -> bool:
        """True where a folder that was asked for was not tried on the server that we are connected to."""
        return any(not self.is_proven(served) and served.problem is None for served in map(self.get, self.asked))

    async def bring_all(self) -> None:
        """Bring every folder that was asked for; one that is refused keeps none of the others from serving."""
        for folder in self.asked:
            await self.bring(self.get(folder))

    async def bring(self, served: Served) -> None:
        """Check, load and prove a folder after its steps; nothing where that is done and its files are the same.

        What is wrong becomes its `problem`. An engine other than the one that was brought first is a ModelChanged, but
        for a keeper: answers of two engines are never mixed.
        """
        async with served.lock:
            with self._judge(served):
                await self._prove(served)

    async def reload(self, served: Served, seen: Mapping[str, int]) -> None:
        """Load a folder again that Triton does not have, after its steps, once for all the calls that missed it."""
        for part in (*self._steps(served), served):
            async with part.lock:
                if part.generation != seen.get(part.folder, part.generation):
                    continue
                with self._judge(part):
                    part.admit_reload()
                    part.epoch = -1
                    await self._prove(part)
                if part.problem is not None:
                    part.count_reload()
                part.generation += 1

    async def heal(self, served: Served, generation: int, cause: Cause) -> None:
        """End what is left of a folder's processes where it does not work, and load it anew; the owner's work alone.

        What goes wrong becomes the folder's `problem`.
        """
        async with served.lock:
            if served.generation != generation:
                return
            with self._judge(served):
                served.admit_reload()
                served.count_reload()
                log.warning("inference.heal", model=served.folder, cause=cause)
                metrics.STUB_DEATHS.labels(*served.labels, cause).inc()
                with metrics.HEAL_DURATION.labels(*served.labels).time():
                    await self._end(served, hung=cause == "hung")
                    await self._prove(served)
            served.generation += 1

    async def recover(self, served: Served, seen: Mapping[str, int]) -> None:
        """After an answer that a process is dead: heal it as the owner, or wait for the owner to have healed it."""
        parts = self._steps(served) or (served,)
        if not all(map(self.tends, parts)):
            await self._await_owner((*self._steps(served), served))
            return
        for part in [part for part in parts if await self.dead(part)] or parts:
            await self.heal(part, seen[part.folder], "dead")
            if part.problem is not None:
                raise part.problem

    @property
    def tends_any(self) -> bool:
        """True where healing models is this engine's work: the server's owner's; a keeper's on a foreign server."""
        return self.link.server.owner or (self.link.foreign and self.keeps)

    def tends(self, served: Served) -> bool:
        """True where healing this folder is; on a foreign server, only what the engine was let load itself."""
        return self.link.server.owner or (self.tends_any and served.folder in self.link.loaded)

    async def dead(self, served: Served) -> bool:
        """True where a folder has fewer working processes than instances (it may be loading, too)."""
        return not self.link.foreign and await self.lacks_process(served, await self.link.stubs(served.folder))

    async def lacks_process(self, served: Served, living: Collection[Stub]) -> bool:
        """`dead`, by the processes that live. An ensemble, or a folder that cannot be read, should have none."""
        await self.read(served)
        contract = served.contract
        instances = 0 if contract is None or contract.steps else contract.instances
        return sum(stub.folder == served.folder and not stub.frozen for stub in living) < instances

    async def read(self, served: Served) -> None:
        """Contract and golden answers of a folder that another engine loaded, where they can be read."""
        if served.contract is None:
            with contextlib.suppress(PathserveError):
                served.golden = await asyncio.to_thread(self.repository.golden, served.folder)
                served.contract = await asyncio.to_thread(self.repository.contract, served.folder)

    async def put_away(self) -> None:
        """Unload, through Triton alone, what is loaded and neither asked for nor a step of that.

        Only the owner of an embedded server does so; on a foreign one, a keeper unloads what it loaded itself.
        """
        link = self.link
        keep = {part.folder for folder in self.asked for part in (*self._steps(self.get(folder)), self.get(folder))}
        try:
            ready = await link.client.ready_models()
        except CallFailed:
            return
        gone = [served for served in map(self.get, sorted(ready - keep)) if self.tends(served)]
        # Ensembles first: Triton would take them out with their steps.
        for served in sorted(gone, key=lambda each: not self._steps(each)):
            async with served.lock:
                try:
                    await link.unload(served.folder)
                except CallFailed as failure:
                    log.warning("inference.unload_failed", model=served.folder, detail=failure.text)
                    continue
            metrics.UNLOADS.labels(*served.labels).inc()
            log.info("inference.unloaded", model=served.folder)
        for folder in [folder for folder in self._folders if folder not in keep]:
            if not self._folders[folder].lock.locked():
                del self._folders[folder]

    def _steps(self, served: Served) -> tuple[Served, ...]:
        return tuple(self.get(step) for step in served.contract.steps) if served.contract else ()

    async def _await_owner(self, parts: Sequence[Served]) -> None:
        """Wait for the server's owner, which looks at every process each second, to have healed a model."""
        with contextlib.suppress(TimeoutError, CallFailed):
            async with asyncio.timeout(_OWNER_HEALS_S):
                await asyncio.sleep(_SETTLE_PERIOD_S)
                while not await self._sound(parts):
                    await asyncio.sleep(_SETTLE_PERIOD_S)

    async def _sound(self, parts: Sequence[Served]) -> bool:
        ready = await self.link.client.ready_models()
        return ready.issuperset(part.folder for part in parts) and not any([await self.dead(part) for part in parts])

    @contextmanager
    def _judge(self, served: Served) -> Iterator[None]:
        """What goes wrong with a folder inside becomes its problem."""
        before = served.problem
        try:
            yield
            served.problem = None
            return
        except PathserveError as error:
            served.problem = error
        except CallFailed as failure:
            if failure.trouble is Trouble.GONE:
                # Says nothing of the model: it is brought once there is a server again.
                served.epoch = -1
                return
            served.problem = _not_loaded(served.folder, failure)
        if before is None or before.detail != served.problem.detail:
            log.warning("inference.model_refused", model=served.folder, detail=served.problem.detail)

    async def _prove(self, served: Served) -> None:
        """`bring`, the folder's lock being held. Raises PathserveError, CallFailed."""
        contract, card, digest = await asyncio.to_thread(self._read, served.folder)
        if served.engine_sha256 not in (None, digest) and not self.keeps:
            raise changed(served.folder)
        known = (served.contract, served.engine_sha256)
        if served.contract is None or served.contract != contract:
            served.permits = asyncio.Semaphore(1 + self._width(contract))
        served.contract, served.card = contract, card
        if self.is_proven(served) and served.problem is None and known == (contract, digest):
            return
        for step in self._steps(served):
            await self.bring(step)
            if step.problem is not None:
                raise step.problem
        epoch = self.link.epoch
        proof = await asyncio.to_thread(self._proof, served.folder, digest)
        await self._load(served, contract, replayed=self._replayed(served, proof))
        if await asyncio.to_thread(self.repository.engine_digest, served.folder) != digest:
            raise changed(served.folder)
        served.engine_sha256, served.epoch = digest, epoch
        _proofs[self.repository.path / served.folder] = proof

    def _proof(self, folder: str, engine_sha256: str) -> Proof:
        server = self.link.client.endpoint.shm_prefix
        return Proof(server, engine_sha256, frozenset(self.repository.provenance(folder).files.items()))

    def _replayed(self, served: Served, proof: Proof) -> bool:
        """True for a guest where another engine of this process has replayed the same on this very server.

        Whoever looks after a model replays after every load: it has to know that each process answers.
        """
        looked_after = self.keeps or self.link.server.owner or proof.server is None
        return not looked_after and _proofs.get(self.repository.path / served.folder) == proof

    def _read(self, folder: str) -> tuple[Contract, ModelCard, str]:
        contract = self.repository.check(folder)
        return contract, self.repository.card(folder), self.repository.engine_digest(folder)

    def _width(self, contract: Contract) -> int:
        steps = [self.repository.contract(step).instances for step in contract.steps]
        return max([contract.instances, *steps])

    async def _load(self, served: Served, contract: Contract, *, replayed: bool) -> None:
        """Load a folder, and replay its golden inputs where they were not. Raises ModelRefused, CallFailed."""
        if not replayed:
            served.golden = await asyncio.to_thread(self.repository.golden, served.folder)
        version = await asyncio.to_thread(self.repository.served_version, served.folder)
        for tries_left in reversed(range(_LOAD_TRIES)):
            epoch = self.link.epoch
            try:
                await self.link.load(served, version)
                if served.golden is not None and not replayed:
                    await replay.replay(contract, served.golden, self.link.ask, LOAD_TIMEOUT_S)
                return
            except CallFailed as failure:
                if not tries_left:
                    raise
                if failure.trouble is Trouble.STUCK and (served.engine_sha256 is not None or not served.restarted):
                    # An accident, where it was sound before, and once where it never was: what always dies as it is
                    # loaded would disturb the others for ever.
                    served.restarted = True
                    await self.link.restart(epoch)
                    continue
                if failure.trouble is Trouble.NOT_LOADED and not self.link.foreign:
                    # Its owner took it out between our load and the replay, to heal it.
                    continue
                if failure.trouble is not Trouble.DEAD_STUB:
                    raise
            except ModelRefused:
                # A wrong engine does not stay where others could take it for a proven one.
                _proofs.pop(self.repository.path / served.folder, None)
                if self.tends(served):
                    await self.link.unload(served.folder)
                raise
            if not self.tends(served):
                await self._await_owner((*self._steps(served), served))
            elif contract.steps:
                for step in self._steps(served):
                    if await self.dead(step):
                        await self.heal(step, step.generation, "dead")
            else:
                await self._end(served)

    async def _end(self, served: Served, *, hung: bool = False) -> None:
        served.epoch = -1
        await self.link.unload_broken(served.folder, hung=hung)


def _not_loaded(folder: str, failure: CallFailed) -> InferenceError:
    says = f"The model {folder} is not loaded: Triton says “{failure.text}”."
    if failure.trouble in (Trouble.DEADLINE, Trouble.DEAD_STUB, Trouble.STUCK):
        return InferenceUnavailable(f"{says} It is tried again; see logs/triton.log in the state folder.")
    return ModelNotLoaded(f"{says} Export it again, or see logs/triton.log in the state folder.")


def changed(folder: str) -> ModelChanged:
    """The error of a folder whose engine is another one than this engine brought first."""
    return ModelChanged(f"The files of the model {folder} were replaced while it was in use. Start the analysis anew.")
