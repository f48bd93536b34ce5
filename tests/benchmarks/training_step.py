"""How much a step of self-distillation costs beyond its networks.

    .venv-training/bin/python -m tests.benchmarks.training_step

The bare loop runs the same student and teacher, with their heads, on crops that lie in memory, has one number for a
loss, and plain AdamW: no views, no masks and centres, no clipping, no EMA, no log. All run on one thread, in turns,
and are measured in CPU time, so that what else the machine does weighs on all alike: a step with its views made by the
training process itself, and the training process's share where a worker makes them (`data.workers` of the recipe).
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.benchmarks.rows import Row
from training.runs import RunWriter
from training.ssl.distributed import World
from training.ssl.loop import Loop
from training.ssl.method import SelfDistillation
from training.ssl.model import normalise
from training.ssl.recipe import SelfDistillationRecipe, read_recipe
from training.ssl.views import batches

RECIPE = Path(__file__).resolve().parents[2] / "training" / "recipes" / "ssl-vit-ci.toml"
TURNS = 10


class Noise:
    """Tiles of the corpus's size."""

    def __init__(self) -> None:
        self._tiles_NHWC = np.random.default_rng(1).integers(0, 256, (64, 224, 224, 3), np.uint8)

    def __len__(self) -> int:
        return len(self._tiles_NHWC)

    def read(self, index: int) -> np.ndarray:
        return self._tiles_NHWC[index]

    def name(self, index: int) -> str:
        return str(index)


def bare(method: SelfDistillation, globals_GCHW: Tensor, locals_LCHW: Tensor) -> Callable[[], None]:
    """One step of the same networks and nothing else."""
    adam = torch.optim.AdamW(method.trained().values(), lr=1e-4)
    student, teacher = method.student, method.teacher
    mask_GN = torch.zeros(len(globals_GCHW), 64, dtype=torch.bool)
    mask_GN[::2, :20] = True

    def rows(part: torch.nn.ModuleDict, cls: list[Tensor], patches_GND: Tensor) -> Tensor:
        return part["head"](torch.cat([*cls, patches_GND[mask_GN]]))

    def step() -> None:
        seen = student["backbone"](globals_GCHW, mask_GN)
        small = student["backbone"](locals_LCHW)
        with torch.no_grad():
            whole = teacher["backbone"](globals_GCHW)
            rows(teacher, [whole.cls_BD], whole.patches_BND)
        adam.zero_grad()
        rows(student, [seen.cls_BD, small.cls_BD], seen.patches_BND).square().mean().backward()
        adam.step()

    return step


def main() -> None:
    torch.set_num_threads(1)
    recipe, text = read_recipe(SelfDistillationRecipe, RECIPE)
    with tempfile.TemporaryDirectory(prefix="pathserve-bench-") as folder:
        run = RunWriter(Path(folder) / "run", text, resume=False)
        loop = Loop(SelfDistillation(recipe), recipe, Noise(), run, World())
        steps = loop.steps()
        views, method = steps[0], SelfDistillation(recipe).train()
        crops = (normalise(part, method.scale) for part in (views.globals_GHWC, views.locals_LHWC))
        made_ahead = batches(steps, 0, TURNS + 1, workers=1)
        ways = (
            bare(method, *crops),
            lambda: loop.advance(steps[loop.done]),
            lambda: loop.advance(next(made_ahead)),
        )
        cpu_s: tuple[list[float], ...] = ([], [], [])
        for turn in range(TURNS + 1):
            for way, found in zip(ways, cpu_s, strict=True):
                start_s = time.process_time()
                way()
                if turn:  # the first turn warms up
                    found.append(time.process_time() - start_s)
    floor_s, *steps_s = map(statistics.median, cpu_s)
    name = "a step of self-distillation, ViT of 1.3 M parameters, 32 images of 10 crops, fp32"
    rows = [
        Row(
            f"{name}, {views}",
            1 / step_s,
            "steps/CPU s",
            "the same networks in a bare loop",
            floor_s / step_s,
            goal=0.87,
        )
        for views, step_s in zip(("views made by itself", "views made by a worker"), steps_s, strict=True)
    ]
    print(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    main()
