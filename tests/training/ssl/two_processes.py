"""What one of several processes does: trains a few steps as `ddp` and as `fsdp`, and leaves in a folder what came out.

torchrun --nproc-per-node 2 two_processes.py FOLDER
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

from tests.training.ssl.small import SmallCorpus, small_recipe
from training.runs import RunWriter
from training.ssl.distributed import World, joined, whole
from training.ssl.loop import Loop
from training.ssl.method import SelfDistillation

EQUAL = ("dino.koleo=0", "optim.clip=1e9", "launch.chunks=2")
"""What makes a step the same for any number of processes: KoLeo looks for neighbours inside a process."""


def trained(folder: Path, world: World, strategy: str, steps: int) -> tuple[Loop, dict[str, Tensor]]:
    """A training after so many more steps, and its gradients, centres and weights, whole."""
    recipe, text = small_recipe(folder, *EQUAL, f"launch.strategy={strategy}")
    run = RunWriter(folder / strategy, text, resume=True) if world.rank == 0 else None
    method = SelfDistillation(recipe)
    loop = Loop(method, recipe, SmallCorpus(), run, world)
    loop.train(loop.done + steps)
    found = {f"gradient.{name}": whole(value.grad).clone() for name, value in method.trained().items()}
    return loop, found | {name: whole(value).clone() for name, value in method.state_dict().items()}


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    with joined() as world:
        for strategy in ("ddp", "fsdp"):
            _, found = trained(folder, world, strategy, 2)
            if world.rank == 0:
                torch.save(found, folder / f"{strategy}.pt")


if __name__ == "__main__":
    main()
