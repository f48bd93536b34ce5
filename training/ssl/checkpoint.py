"""Where a training stands, on disk: weights, optimiser, centres and the iteration, for any number of processes.

Written with torch's distributed checkpoint format: each process writes what it holds, and another number of processes
reads it. Random streams need no state: they follow from seed and iteration.
"""

import fcntl
import shutil
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import torch
from torch import distributed
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from gateway.operations.errors import PathserveError
from training.errors import RunInvalid, WeightsInvalid
from training.runs import RunWriter
from training.ssl.distributed import World


class Checkpoints:
    """The checkpoints of one run: folders named after the number of iterations that are done."""

    def __init__(self, folder: Path, keep: int, world: World) -> None:
        self._folder, self._keep, self._world = folder, keep, world

    def save(self, done: int, state: dict[str, Any]) -> None:
        """Write a checkpoint, whole or not at all, and remove the oldest beyond those to keep. Raises RunInvalid where
        it cannot be written."""
        final = self._folder / f"{done:08d}"
        partial = final.with_suffix(".new")
        if self._world.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self._wait()
        try:
            with _alone():
                dcp.save(state, checkpoint_id=partial)
        except (OSError, RuntimeError, dcp.CheckpointException) as error:
            raise RunInvalid(
                f"The checkpoint {final.name} cannot be written: the disk may be full. "
                "Make room and go on with --resume from the one before."
            ) from error
        self._wait()
        if self._world.rank == 0:
            shutil.rmtree(final, ignore_errors=True)
            partial.replace(final)
            for old in self._finished()[: -self._keep]:
                shutil.rmtree(old)
        self._wait()

    def load(self, state: dict[str, Any]) -> int:
        """Fill the tensors of `state` from the newest checkpoint; the iterations that were done, 0 without one.

        Raises WeightsInvalid naming the first tensor that is absent or of another shape: another architecture's.
        """
        finished = self._finished()
        if not finished:
            return 0
        newest = finished[-1]
        try:
            held = dcp.FileSystemReader(newest).read_metadata().state_dict_metadata
            _demand_same(newest.name, held, state)
            with _alone():
                dcp.load(state, checkpoint_id=newest)
        except (OSError, EOFError, UnpicklingError, dcp.CheckpointException) as error:
            raise WeightsInvalid(
                f"The checkpoint {newest.name} cannot be read whole. Remove its folder and resume from the one before."
            ) from error
        return int(newest.name)

    def _finished(self) -> list[Path]:
        return sorted(path for path in self._folder.glob("*") if path.name.isdigit())

    def _wait(self) -> None:
        if self._world.size > 1:
            distributed.barrier()


def occupy(work: Path) -> IO[bytes]:
    """Keep a run's folder of work to this process for as long as what is returned is open. Raises RunInvalid where
    another process trains in it: both would write the same checkpoints."""
    file = (work / "lock").open("ab")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise RunInvalid(
            f"The run folder {work.parent.name} is in use by another process. Wait for its end, or choose another "
            "folder with --out."
        ) from None
    return file


@contextmanager
def writing(folder: Path, text: bytes, world: World, *, resume: bool) -> Iterator[RunWriter | None]:
    """The run's writer in the first process, whose folder is there before any other process looks for a checkpoint in
    it, and is its own meanwhile; None in the others, which fail with it. Raises RunInvalid, TrainingError."""
    with ExitStack() as held:
        writer, failure = None, None
        if world.rank == 0:
            try:
                writer = RunWriter(folder, text, resume=resume)
                held.enter_context(occupy(writer.work))
            except PathserveError as error:
                failure = error
        failure = world.gather(failure)[0]
        if failure is not None:
            raise failure
        yield writer


@contextmanager
def _alone() -> Iterator[None]:
    """torch warns whenever one process saves or loads on its own, which is what we mean."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
        yield


def _demand_same(name: str, held: dict[str, Any], state: dict[str, Any]) -> None:
    for key, value in state.items():
        if key not in held:
            raise WeightsInvalid(f"The checkpoint {name} lacks {key}: it belongs to another architecture.")
        entry = held[key]
        if isinstance(entry, TensorStorageMetadata) and isinstance(value, torch.Tensor) and entry.size != value.shape:
            raise WeightsInvalid(
                f"The checkpoint {name} differs from the network at {key}: shape {tuple(entry.size)} "
                f"in place of {tuple(value.shape)}. It belongs to another architecture."
            )
    for key in held:
        if key not in state:
            raise WeightsInvalid(f"The checkpoint {name} holds {key}, which the network does not have.")
