"""The training loop, in the order of GPFM's step: settings, forward, backward, clip, AdamW, EMA."""

import sys
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.errors import DataMissing, RunInvalid
from training.nn.checkpoints import load_state, round_to_fp16, save_weights
from training.runs import RunWriter
from training.ssl import ema, optimiser
from training.ssl.checkpoint import Checkpoints
from training.ssl.distributed import DTYPES, World, share, whole
from training.ssl.method import SelfDistillation
from training.ssl.model import Backbone, new_backbone
from training.ssl.recipe import SelfDistillationRecipe
from training.ssl.views import Corpus, Steps, Views, batches

_MOST_UNREADABLE = 1 / 1000
_HALVED = ("koleo", "ibot")
"""The official logs show these at half of what is propagated; ours show both (GPFM's released code)."""


class Loop:
    """One training, from where it stands. Every process of it makes one."""

    def __init__(
        self,
        method: SelfDistillation,
        recipe: SelfDistillationRecipe,
        corpus: Corpus,
        run: RunWriter | None,
        world: World,
    ) -> None:
        """`run` is the writing process's own: None in all but the first. Raises WeightsInvalid where a checkpoint does
        not fit."""
        method.to(world.device).train()
        self._method, self._recipe, self._corpus, self._run, self._world = method, recipe, corpus, run, world
        self._forward = share(method, recipe.launch, world)
        self._trained = method.trained()
        self._optimiser = optimiser.make_optimiser(method, recipe.optim)
        self._plan = optimiser.Plan(recipe)
        self._scaler = torch.amp.GradScaler(world.device.type, enabled=recipe.launch.precision == "fp16")
        self._unreadable: set[str] = set()
        work = world.gather(run.work if run else None)[0]
        self._checkpoints = Checkpoints(work / "checkpoints", recipe.checkpoints.keep, world)
        state = self._state()
        self.done = self._checkpoints.load(state)
        self._restore_scaler(state)

    def steps(self) -> Steps:
        """The views of this process's steps. Raises RunInvalid where the processes cannot share the batch."""
        grid = self._method.student["backbone"].grid(self._recipe.crops.global_px)
        try:
            return Steps(self._corpus, self._recipe, grid, rank=self._world.rank, processes=self._world.size)
        except ValueError as error:
            raise RunInvalid(f"The processes do not fit the recipe: {error}.") from None

    def train(self, last: int) -> None:
        """On to `last` iterations done in all. Raises RunInvalid where the loss is no longer finite, DataMissing where
        too many tiles cannot be read."""
        for views in batches(self.steps(), self.done, last, self._recipe.data.workers):
            self.advance(views)
            if self.done % self._recipe.checkpoints.every == 0 or self.done == last:
                self._checkpoints.save(self.done, self._state())
            self._export()

    def advance(self, views: Views) -> None:
        """One iteration, logged where the recipe says so."""
        iteration, start_s = self.done, time.monotonic()
        figures = self._step(views.to(self._world.device), iteration)
        self.done += 1
        if iteration % self._recipe.log_every == 0 or self.done == self._recipe.iterations:
            self._log("step", iteration=iteration, **figures, seconds=round(time.monotonic() - start_s, 3))
            self._watch(iteration)

    def _step(self, views: Views, iteration: int) -> dict[str, dict[str, float]]:
        """One iteration; its losses, its settings, and its gradients' norms before clipping."""
        method, launch, world = self._method, self._recipe.launch, self._world
        seed = np.random.SeedSequence((self._recipe.seed, iteration, world.rank)).generate_state(1, np.uint64)[0]
        torch.manual_seed(int(seed))  # drop-path is all that draws from it
        settings = self._plan(iteration)
        optimiser.apply(settings, self._optimiser)
        with torch.autocast(world.device.type, DTYPES[launch.precision], enabled=launch.precision != "fp32"):
            terms = self._forward(views, iteration)
        total = torch.stack([value.float() for value in terms.values()]).sum()
        losses = self._agreed(terms, total, views, iteration)
        self._optimiser.zero_grad()
        self._scaler.scale(total).backward()
        self._scaler.unscale_(self._optimiser)
        norms = {name: float(norm) for name, norm in optimiser.clip(method, self._recipe.optim).items()}
        if not self._scaler.is_enabled():  # a scaler leaves such a step out by itself
            self._demand_finite({f"gradient of {name}": norm for name, norm in norms.items()}, iteration)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        ema.follow(method.teacher, method.student, settings.momentum)
        return {
            "losses": losses,
            "settings": asdict(settings) | {"temp": method.temperature(iteration)},
            "norms": norms,
        }

    def _agreed(self, terms: dict[str, Tensor], total: Tensor, views: Views, iteration: int) -> dict[str, float]:
        """The losses as the mean over the processes, which all stop together where one is not finite."""
        row = torch.stack([*(value.detach().float() for value in terms.values()), total.detach(), total.new_zeros(())])
        row[-1] = len(views.skipped)
        *values, skipped = self._world.mean(row).tolist()
        if skipped:
            self._note_unreadable(views.skipped, iteration)
        found = dict(zip([*terms, "loss"], values, strict=True))
        self._demand_finite({f"loss {name}": value for name, value in found.items()}, iteration)
        return found | {f"{name}_display": found[name] / 2 for name in _HALVED if name in found}

    def _demand_finite(self, values: dict[str, float], iteration: int) -> None:
        broken = [name for name, value in values.items() if not np.isfinite(value)]
        if broken:
            self._log("not finite", iteration=iteration, names=broken)
            raise RunInvalid(
                f"The {broken[0]} is no longer finite at iteration {iteration}. The last checkpoint is whole: "
                "lower optim.base_lr, or take launch.precision = fp32, and begin another run."
            )

    def _note_unreadable(self, mine: tuple[str, ...], iteration: int) -> None:
        new = {name for names in self._world.gather(mine) for name in names} - self._unreadable
        self._unreadable |= new
        if new:
            self._log("unreadable tiles", iteration=iteration, names=sorted(new), count=len(self._unreadable))
        if len(self._unreadable) > _MOST_UNREADABLE * len(self._corpus):
            raise DataMissing(
                f"{len(self._unreadable)} of {len(self._corpus)} tiles cannot be read, {min(self._unreadable)} among "
                "them; more than one in a thousand are too many. Fetch the data again."
            )

    def _watch(self, iteration: int) -> None:
        """Log what the teacher's answers tell; say so where they have collapsed after the warm-up."""
        signs = self._method.signs()
        if signs is None:
            return
        self._log("teacher", iteration=iteration, signs=signs.record())
        alarm = signs.alarm()
        optim = self._recipe.optim
        if alarm and iteration >= optim.warmup_epochs * optim.epoch_iterations:
            self._log("collapse", iteration=iteration, alarm=alarm)
            if self._run is not None:
                print(f"Iteration {iteration}: {alarm}.", file=sys.stderr)

    def _export(self) -> None:
        """The teacher's weights on the way, in a file of their own."""
        every = self._recipe.checkpoints.export_every
        if every is None or self.done % every:
            return
        teacher = self.teacher()
        if self._run is not None:
            folder = self._run.path / "teachers"
            folder.mkdir(exist_ok=True)
            save_weights(folder / f"{self.done:08d}.safetensors", teacher)

    def teacher(self) -> Backbone:
        """The EMA teacher's backbone as a module of its own, whole, in every process; its kernels rounded to fp16 as
        they are kept."""
        state = self._method.teacher["backbone"].state_dict()
        backbone = new_backbone(self._recipe.network, masked=self._recipe.ibot is not None)
        load_state(backbone, {name: whole(value).cpu() for name, value in state.items()}, "this run")
        round_to_fp16(backbone)
        return backbone.eval()

    def _state(self) -> dict[str, Any]:
        """All that a checkpoint holds, by flat names; the tensors are the live ones."""
        state: dict[str, Any] = {f"method.{name}": value for name, value in self._method.state_dict().items()}
        own = optimiser.state(self._optimiser, self._trained)
        state |= {f"optimiser.{name}": value for name, value in own.items()}
        scaler = self._scaler.state_dict()
        return state | {f"scaler.{name}": torch.tensor(float(value)) for name, value in scaler.items()}

    def _restore_scaler(self, state: dict[str, Any]) -> None:
        kinds = self._scaler.state_dict()
        values = {name: type(value)(float(state[f"scaler.{name}"])) for name, value in kinds.items()}
        self._scaler.load_state_dict(values)

    def _log(self, event: str, **values: Any) -> None:
        if self._run is not None:
            self._run.log(event, **values)
