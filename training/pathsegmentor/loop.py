"""The training loop of both kinds of network: steps, averaged weights, validation, checkpoints.

What an iteration draws follows from the seed and its number, so that no random stream needs to be kept: a run that was
killed goes on with the same bits from its last checkpoint.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gateway.domain.prompts import Triple
from training.errors import WeightsInvalid
from training.pathsegmentor.data import Batch
from training.pathsegmentor.recipe import Training
from training.runs import RunWriter
from training.ssl.distributed import World
from training.ssl.schedules import Schedule

_TABLES = ("words.weight", "embeddings.weight", "positions", "levels", "queries")
_VALIDATION_BATCH = 16


class Learner(Protocol):
    """A network `model` with its losses; see SegmentorLearner."""

    model: nn.Module

    def __call__(self, batch: Batch) -> dict[str, Tensor]: ...
    def answer(self, model: nn.Module, image_NHWC: np.ndarray, triples: Sequence[Triple]) -> Tensor: ...


class Draws(Protocol):
    """Where batches come from; see training.pathsegmentor.data.Sampler."""

    def batch(self, rng: np.random.Generator, size: int) -> Batch: ...


@dataclass(frozen=True, slots=True, eq=False)
class Crops:
    """N fixed crops with a prompt each, whose object is there."""

    image_NHWC: np.ndarray
    mask_NHW: np.ndarray
    valid_NHW: np.ndarray
    triples: tuple[Triple, ...]


class Loop:
    """One training, in this process or in several."""

    def __init__(
        self,
        learner: nn.Module,
        training: Training,
        seed: int,
        draws: Draws,
        validation: Crops,
        folder: Path,
        world: World,
        run: RunWriter | None,
    ) -> None:
        """`folder` holds the checkpoint; `run` is None in all processes but the first."""
        self._learner, self._training, self._seed = learner.to(world.device), training, seed
        # Images come as they lie in memory, channels last: with weights laid out alike a step is a fifth faster.
        learner.to(memory_format=torch.channels_last)
        self._draws, self._validation, self._world, self._run = draws, validation, world, run
        self._checkpoint = folder / "checkpoint.pt"
        self.average = copy.deepcopy(learner.model).requires_grad_(False)
        self.best = copy.deepcopy(self.average)
        self.best_dice, self.done = -1.0, 0
        groups = parameter_groups(learner, training)
        self._optimiser = torch.optim.AdamW(groups, lr=training.rate, fused=True)
        self._bases = [group["lr"] for group in groups]
        self._restore()
        self._step = DistributedDataParallel(learner) if world.size > 1 else learner

    def train(self, last: int) -> None:
        """Up to iteration `last`; the weights of the best validation are `best`."""
        training = self._training
        for iteration in range(self.done, last):
            parts, rate = self._iterate(iteration), relative_rate(training, iteration) * training.rate
            self.done, end = iteration + 1, iteration + 1 in (last, training.iterations)
            if self._run is None:
                continue
            if iteration % training.log_every == 0 or end:
                values = {name: round(float(value.detach()), 5) for name, value in parts.items()}
                self._run.log("step", iteration=iteration, losses=values, rate=rate)
            if self.done % training.validate_every == 0 or self.done == training.iterations:
                self._validate(iteration)
            if self.done % training.checkpoint_every == 0 or end:
                self._save()

    def _iterate(self, iteration: int) -> dict[str, Tensor]:
        training = self._training
        rng = np.random.default_rng((self._seed, iteration, self._world.rank))
        torch.manual_seed(int(rng.integers(1 << 62)))  # drop-path and sampled points draw from it
        batch = self._draws.batch(rng, training.batch // self._world.size)
        for group, base in zip(self._optimiser.param_groups, self._bases, strict=True):
            group["lr"] = base * relative_rate(training, iteration)
        self._learner.train()
        parts = self._step(batch)
        self._optimiser.zero_grad()
        parts["total"].backward()
        nn.utils.clip_grad_norm_(self._learner.parameters(), training.clip)
        self._optimiser.step()
        # An average over a thousand steps would be of the fresh weights for the first thousand.
        self._follow(min(training.ema, (1 + iteration) / (10 + iteration)))
        return parts

    @torch.no_grad()
    def _follow(self, momentum: float) -> None:
        """average ← momentum · average + (1 - momentum) · weights, of what is trained."""
        pairs = zip(self.average.parameters(), self._learner.model.parameters(), strict=True)
        followers, leaders = zip(*((mine, theirs) for mine, theirs in pairs if theirs.requires_grad), strict=True)
        torch._foreach_mul_(followers, momentum)
        torch._foreach_add_(followers, leaders, alpha=1 - momentum)

    def _validate(self, iteration: int) -> None:
        found = dice_by_triple(self._learner, self.average, self._validation)
        mean = float(np.mean(list(found.values())))
        self._run.log(
            "validation",
            iteration=iteration,
            dice=round(mean, 4),
            triples={triple.text: round(dice, 4) for triple, dice in found.items()},
        )
        if mean > self.best_dice:
            self.best_dice = mean
            self.best.load_state_dict(self.average.state_dict())

    def _save(self) -> None:
        partial = self._checkpoint.with_suffix(".new")
        torch.save(self._state() | {"done": self.done, "best_dice": self.best_dice}, partial)
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
            self.done, self.best_dice = int(saved["done"]), float(saved["best_dice"])
        except (OSError, RuntimeError, ValueError, KeyError, EOFError, UnpicklingError) as error:
            raise WeightsInvalid(
                "The run's checkpoint cannot be read whole, or is of another network. "
                "Begin the run anew in another folder."
            ) from error


def parameter_groups(learner: nn.Module, training: Training) -> list[dict[str, Any]]:
    """Parameters by rate and decay: encoders have rates of their own; vectors and tables do not decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in learner.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = training.rate
        rate *= training.image_rate if name.startswith("model.encoder.") else 1.0
        rate *= training.text_rate if name.startswith("model.text.") else 1.0
        decay = 0.0 if parameter.ndim <= 1 or name.endswith(_TABLES) else training.decay
        groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in groups.items()]


def relative_rate(training: Training, iteration: int) -> float:
    """The learning rate at an iteration as a share of the base rate."""
    if not training.drops:
        return Schedule(1.0, 0.0, training.iterations, training.warmup)(iteration)
    passed = sum(iteration >= share * training.iterations for share in training.drops)
    return min(1.0, (iteration + 1) / max(training.warmup, 1)) * 0.1**passed


@torch.inference_mode()
def dice_by_triple(learner: Learner, model: nn.Module, crops: Crops) -> Mapping[Triple, float]:
    """Mean Dice over the crops of each triple, over valid pixels, at the crop's own resolution."""
    model.eval()
    found: dict[Triple, list[float]] = {}
    for start in range(0, len(crops.triples), _VALIDATION_BATCH):
        part = slice(start, start + _VALIDATION_BATCH)
        logits_NHW = learner.answer(model, crops.image_NHWC[part], crops.triples[part]).cpu().numpy()
        said_NHW, valid_NHW = (logits_NHW > 0) & crops.valid_NHW[part], crops.valid_NHW[part]
        true_NHW = crops.mask_NHW[part] & valid_NHW
        shared_N = (said_NHW & true_NHW).sum((1, 2))
        dice_N = 2 * shared_N / np.maximum(said_NHW.sum((1, 2)) + true_NHW.sum((1, 2)), 1)
        for triple, dice in zip(crops.triples[part], dice_N, strict=True):
            found.setdefault(triple, []).append(float(dice))
    return {triple: float(np.mean(values)) for triple, values in sorted(found.items())}
