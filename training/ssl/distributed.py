"""Several processes on one training, started by torchrun: who they are, and how they share gradients or weights.

`ddp` keeps the whole network in each process; `fsdp` (arXiv 2304.11277) shares out weights, gradients and optimiser
state. Processes talk by gloo on CPUs and by NCCL on GPUs.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from training.ssl.heads import ProjHead
from training.ssl.method import SelfDistillation
from training.ssl.recipe import Launch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CPU = torch.device("cpu")
Forward = Callable[..., dict[str, Tensor]]


@dataclass(frozen=True, slots=True)
class World:
    """This process among `size` processes."""

    rank: int = 0
    size: int = 1
    device: torch.device = _CPU

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        if self.size > 1:
            distributed.all_reduce(values)
            values = values / self.size
        return values

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in all of them."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values


def whole(value: Tensor) -> Tensor:
    """A tensor out of its shards, without its gradient's history; itself where it is not shared out."""
    full_tensor = getattr(value, "full_tensor", None)
    return (full_tensor() if full_tensor else value).detach()


@contextmanager
def joined() -> Iterator[World]:
    """The world that torchrun's environment describes; without it one process alone. A GPU is taken if there."""
    size, cuda = int(os.environ.get("WORLD_SIZE", "1")), torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if size == 1:
        yield World(device=device)
        return
    distributed.init_process_group("nccl" if cuda else "gloo", device_id=device if cuda else None)
    try:
        yield World(distributed.get_rank(), size, device)
    finally:
        distributed.destroy_process_group()


def share(method: SelfDistillation, launch: Launch, world: World) -> Forward:
    """Make the processes train one network; what gives a step's losses from now on. To be done before there is an
    optimiser."""
    if world.size == 1:
        return method
    if launch.strategy == "ddp":
        return DistributedDataParallel(method, broadcast_buffers=False)
    # Tokens are views of one tensor, which nothing changes in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(world.device.type, (world.size,))
    dtype = DTYPES[launch.precision]
    policy = MixedPrecisionPolicy(param_dtype=None if dtype == torch.float32 else dtype, reduce_dtype=torch.float32)
    for unit in shards(method, launch.chunks):
        # The teacher has no backward pass that would give up what its forward pass gathered.
        fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    return method


def shards(method: SelfDistillation, chunks: int) -> list[list[nn.Module]]:
    """The modules that FSDP gathers together, inner ones first: chunks of blocks, then what is left of the backbone,
    then each head."""
    units: list[list[nn.Module]] = []
    for part in (method.student, method.teacher):
        blocks = list(getattr(part["backbone"], "blocks", ()))
        size = max(-(-len(blocks) // chunks), 1)
        units += [blocks[first : first + size] for first in range(0, len(blocks), size)]
        units += [[module] for module in part.values()]
    return units + [[module] for module in method.terms.modules() if isinstance(module, ProjHead)]
