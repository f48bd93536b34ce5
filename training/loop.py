"""A training loop: steps, averaged weights, validation, checkpoints; what is trained and measured is given to it.

What an iteration draws follows from the seed and its number, so that no random stream needs to be kept: a run that was
killed goes on with the same bits from its last checkpoint.
"""

import copy
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from statistics import mean
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.errors import TrainingError, WeightsInvalid
from training.runs import Part, RunWriter
from training.ssl.distributed import World
from training.ssl.schedules import Schedule

B = TypeVar("B")
_LAST = 10
"""Logged steps whose mean loss is told."""


class Steps(Part):
    """AdamW with a linear warm-up, then half a cosine to zero, or, with `drops`, a tenth after each of these shares of
    all iterations. `ema`: of the weights that are evaluated; it forgets faster in the first steps; 0 = the weights as
    they are.
    """

    iterations: int = Field(gt=0)
    batch: int = Field(gt=0)
    rate: float = Field(gt=0)
    warmup: int = Field(ge=0)
    decay: float = Field(default=0.05, ge=0)
    clip: float = Field(default=5.0, gt=0)
    drops: tuple[float, ...] = ()
    ema: float = Field(default=0.999, ge=0, lt=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    log_every: int = Field(default=10, gt=0)
    checkpoint_every: int = Field(default=100, gt=0)
    validate_every: int = Field(gt=0)


@dataclass(frozen=True, slots=True)
class Measured:
    """What a validation found: `score`, the higher the better, and what the log says of it."""

    score: float
    told: Mapping[str, Any]


class Loop(Generic[B]):
    """One training, in this process or in several."""

    def __init__(
        self,
        learner: nn.Module,
        groups: list[dict[str, Any]],
        steps: Steps,
        seed: int,
        draw: Callable[[int, np.random.Generator], B],
        measure: Callable[[nn.Module], Measured],
        folder: Path,
        world: World,
        run: RunWriter | None,
    ) -> None:
        """`learner` makes of a batch its losses, their sum under "total"; its `model` is what is averaged, and measured
        by `measure`. `groups`: the parameters that are trained, each group with its base rate. `draw`: this process's
        batch of an iteration. `folder` holds the checkpoint; `run` is None in all processes but the first."""
        self._learner, self._steps, self._seed = learner.to(world.device), steps, seed
        self._draw, self._measure, self._world, self._run = draw, measure, world, run
        self._checkpoint = folder / "checkpoint.pt"
        self.average = copy.deepcopy(learner.model).requires_grad_(False)
        self.best = copy.deepcopy(self.average)
        self.best_score, self.done = -math.inf, 0
        self._optimiser = torch.optim.AdamW(groups, lr=steps.rate, fused=True)
        self._bases = [group["lr"] for group in groups]
        self._restore()
        self._step = DistributedDataParallel(learner) if world.size > 1 else learner

    def train(self, last: int) -> None:
        """Up to iteration `last`; the weights of the best validation are `best`. Raises TrainingError where a
        validation's score is not finite."""
        steps = self._steps
        for iteration in range(self.done, last):
            parts, rate = self._iterate(iteration), relative_rate(steps, iteration) * steps.rate
            self.done, end = iteration + 1, iteration + 1 in (last, steps.iterations)
            if self._run is None:
                continue
            if iteration % steps.log_every == 0 or end:
                values = {name: round(float(value.detach()), 5) for name, value in parts.items()}
                self._run.log("step", iteration=iteration, losses=values, rate=rate)
            if self.done % steps.validate_every == 0 or self.done == steps.iterations:
                self._validate(iteration)
            if self.done % steps.checkpoint_every == 0 or end:
                self._save()

    def _iterate(self, iteration: int) -> dict[str, Tensor]:
        steps = self._steps
        rng = np.random.default_rng((self._seed, iteration, self._world.rank))
        torch.manual_seed(int(rng.integers(1 << 62)))  # drop-out, drop-path and sampled points draw from it
        batch = self._draw(iteration, rng)
        for group, base in zip(self._optimiser.param_groups, self._bases, strict=True):
            group["lr"] = base * relative_rate(steps, iteration)
        self._learner.train()
        parts = self._step(batch)
        self._optimiser.zero_grad()
        parts["total"].backward()
        nn.utils.clip_grad_norm_(self._learner.parameters(), steps.clip)
        self._optimiser.step()
        # An average over a thousand steps would be of the fresh weights for the first thousand.
        self._follow(min(steps.ema, (1 + iteration) / (10 + iteration)))
        return parts

    @torch.no_grad()
    def _follow(self, momentum: float) -> None:
        """average ← momentum · average + (1 - momentum) · weights, of what is trained; buffers (batch norms) are
        copied."""
        pairs = zip(self.average.parameters(), self._learner.model.parameters(), strict=True)
        followers, leaders = zip(*((mine, theirs) for mine, theirs in pairs if theirs.requires_grad), strict=True)
        torch._foreach_mul_(followers, momentum)
        torch._foreach_add_(followers, leaders, alpha=1 - momentum)
        for mine, theirs in zip(self.average.buffers(), self._learner.model.buffers(), strict=True):
            mine.copy_(theirs)

    def _validate(self, iteration: int) -> None:
        found = self._measure(self.average.eval())
        if not math.isfinite(found.score):
            raise TrainingError(f"The validation after iteration {iteration} has no finite score. Lower the rate.")
        kept = bool(found.score > self.best_score)
        self._run.log("validation", iteration=iteration, kept=kept, **found.told)
        if kept:
            self.best_score = found.score
            self.best.load_state_dict(self.average.state_dict())

    def _save(self) -> None:
        partial = self._checkpoint.with_suffix(".new")
        torch.save(self._state() | {"done": self.done, "best_score": self.best_score}, partial)
        partial.replace(self._checkpoint)

    def _state(self) -> dict[str, Any]:
        parts = {"learner": self._learner, "average": self.average, "best": self.best, "optimiser": self._optimiser}
        return {name: part.state_dict() for name, part in parts.items()}

    def _restore(self) -> None:
        if not self._checkpoint.is_file():
            return
        try:
            saved = torch.load(self._checkpoint, weights_only=True, map_location=self._world.device)
            for name, part in (("learner", self._learner), ("average", self.average), ("best", self.best)):
                part.load_state_dict(saved[name])
            self._optimiser.load_state_dict(saved["optimiser"])
            self.done, self.best_score = int(saved["done"]), float(saved["best_score"])
        except (OSError, RuntimeError, ValueError, KeyError, EOFError, UnpicklingError) as error:
            raise WeightsInvalid(
                "The run's checkpoint cannot be read whole, or is of another network. "
                "Begin the run anew in another folder."
            ) from error


def relative_rate(steps: Steps, iteration: int) -> float:
    """The learning rate at an iteration as a share of the base rate."""
    if not steps.drops:
        return Schedule(1.0, 0.0, steps.iterations, steps.warmup)(iteration)
    passed = sum(iteration >= share * steps.iterations for share in steps.drops)
    return min(1.0, (iteration + 1) / max(steps.warmup, 1)) * 0.1**passed


def figures(log: Path, score: str) -> dict[str, Any]:
    """What a log tells of the training: each loss in the first step and as the mean of the last logged ones, the
    validation whose weights were kept (in a log that does not say which: the highest in `score`), and the CPU seconds
    that it took (what measures the network comes after)."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    # A run that was killed logs again what came after its last checkpoint.
    steps = {line["iteration"]: line["losses"] for line in lines if line["event"] == "step"}
    validations = {line["iteration"]: line for line in lines if line["event"] == "validation"}
    kept = [line for line in validations.values() if line.get("kept")]
    best = kept[-1] if kept else max(validations.values(), key=lambda line: line[score])
    ordered = [steps[iteration] for iteration in sorted(steps)]
    return {
        "iterations": max(steps) + 1,
        "losses": {
            name: {"first": first, "last": round(mean(row[name] for row in ordered[-_LAST:]), 5)}
            for name, first in ordered[0].items()
        },
        "validation": {key: value for key, value in best.items() if key not in ("event", "cpu_s", "kept")},
        "cpu_s": lines[-1]["cpu_s"],
    }
