"""One step of self-distillation: a student that sees masked and small crops learns what its teacher says of whole ones.

DINOv2 (arXiv 2304.07193, section 4). The student's global crops are masked for every loss; the teacher's are not.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.nn.vit import Tokens
from training.runs import Pretraining
from training.ssl import collapse, losses
from training.ssl.heads import ProjHead, initialise
from training.ssl.model import begin, new_backbone, normalise
from training.ssl.recipe import SelfDistillationRecipe
from training.ssl.schedules import Schedule
from training.ssl.views import Views


class Term(nn.Module):
    """A further loss on the student's tokens. Its parameters are trained; they have no EMA copy."""

    def losses(
        self, views: Views, student: Tokens, unmasked: Callable[[], Tokens], iteration: int
    ) -> dict[str, Tensor]:
        """Named scalars, weighted already. `student`: the backbone's tokens of the masked global crops; `unmasked()`
        gives those of the same crops without masks, by one more pass."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Targets:
    """What the teacher says: probabilities of the G global crops and of the M masked patches, and its class tokens."""

    q_GK: Tensor
    q_MK: Tensor | None
    cls_GD: Tensor


class SelfDistillation(nn.Module):
    """Student, teacher, heads and centres; `forward` gives the weighted losses of one step. `terms` holds further ones
    by name, to be put there before the first step.

    Raises DataMissing, WeightsInvalid where a network's published weights are not there.
    """

    def __init__(self, recipe: SelfDistillationRecipe) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(recipe.seed)
        self._dino, self._ibot, self._crops = recipe.dino, recipe.ibot, recipe.crops
        backbone = new_backbone(recipe.network, masked=recipe.ibot is not None)
        self.pretraining: tuple[Pretraining, ...] = begin(backbone, recipe.network, generator)
        self.scale, self.depth = backbone.scale, backbone.depth
        self.student = nn.ModuleDict({"backbone": backbone})
        self.centres = nn.ModuleDict()
        dino, ibot = recipe.dino, recipe.ibot
        if dino is not None:
            shape = {"layers": dino.layers, "hidden": dino.hidden, "bottleneck": dino.bottleneck}
            prototypes = {"head": dino.prototypes}
            if ibot is not None and ibot.separate_prototypes is not None:
                prototypes["ibot_head"] = ibot.separate_prototypes
            for name, outputs in prototypes.items():
                head = ProjHead(backbone.width, outputs, **shape)
                initialise(head, generator)
                self.student[name] = head
            self.centres["dino"] = losses.Centre(dino.prototypes, dino.centre_momentum)
            if ibot is not None:
                outputs = ibot.separate_prototypes or dino.prototypes
                self.centres["ibot"] = losses.Centre(outputs, dino.centre_momentum)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.terms = nn.ModuleDict()
        warmup = recipe.teacher.temp_warmup_epochs * recipe.optim.epoch_iterations
        first, last = recipe.teacher.temp
        self.temperature = Schedule(last, last, recipe.optim.plan, warmup, first)
        self.targets: Targets | None = None
        """Of the last step, for the collapse monitor."""

    def train(self, mode: bool = True) -> "SelfDistillation":
        """The teacher stays as it is in use: no drop-path, batch norms by their averages."""
        super().train(mode)
        self.teacher.eval()
        return self

    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters that the optimiser changes, by name."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def forward(self, views: Views, iteration: int) -> dict[str, Tensor]:
        """Scalars by name, weighted; their sum is what is minimised."""
        globals_GCHW = normalise(views.globals_GHWC, self.scale)
        backbone = self.student["backbone"]
        student = backbone(globals_GCHW, views.mask_GN)
        found: dict[str, Tensor] = {}
        if self._dino is not None:
            found |= self._self_supervised(globals_GCHW, views, student, iteration)
        for term in self.terms.values():
            found |= term.losses(views, student, lambda: backbone(globals_GCHW), iteration)
        return found

    def _self_supervised(
        self, globals_GCHW: Tensor, views: Views, student: Tokens, iteration: int
    ) -> dict[str, Tensor]:
        dino, ibot, count = self._dino, self._ibot, self._crops.local_count
        assert dino is not None  # the caller asked
        targets = self.targets = self._targets(globals_GCHW, views.mask_GN, self.temperature(iteration))
        small_LD = masked_MD = student.cls_BD[:0]
        if count:
            small_LD = self.student["backbone"](normalise(views.locals_LHWC, self.scale)).cls_BD
        if ibot is not None:
            masked_MD = student.patches_BND[views.mask_GN]
        z_GK, z_LK, z_MK = self._heads(self.student, student.cls_BD, small_LD, masked_MD)
        weight = dino.weight
        found = {"dino_global": weight * losses.dino_global(targets.q_GK, z_GK, count, dino.student_temp)}
        if count:
            found["dino_local"] = weight * losses.dino_local(targets.q_GK, z_LK, count, dino.student_temp)
        if dino.koleo:
            found["koleo"] = dino.koleo * sum(losses.koleo(half) for half in student.cls_BD.chunk(2))
        if ibot is not None:
            found["ibot"] = ibot.weight * losses.ibot(targets.q_MK, z_MK, views.mask_GN, dino.student_temp)
        return found

    @torch.no_grad()
    def _targets(self, globals_GCHW: Tensor, mask_GN: Tensor | None, temp: float) -> Targets:
        dino = self._dino
        assert dino is not None  # the caller asked
        tokens = self.teacher["backbone"](globals_GCHW)
        masked_MD = tokens.cls_BD[:0] if mask_GN is None else tokens.patches_BND[mask_GN]
        z_GK, _, z_MK = self._heads(self.teacher, tokens.cls_BD, tokens.cls_BD[:0], masked_MD)
        q_GK = self._probabilities("dino", z_GK, temp)
        return Targets(q_GK, None if mask_GN is None else self._probabilities("ibot", z_MK, temp), tokens.cls_BD)

    def _probabilities(self, centre: str, z_BK: Tensor, temp: float) -> Tensor:
        if self._dino is not None and self._dino.centering == "sinkhorn":
            return losses.sinkhorn(z_BK, temp)
        module = self.centres[centre]
        q_BK = module.targets(z_BK, temp)
        module.update(z_BK)
        return q_BK

    def _heads(
        self, part: nn.ModuleDict, cls_GD: Tensor, cls_LD: Tensor, patches_MD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of class tokens of global and local crops and of masked patches, each head run once."""
        rows = [len(cls_GD), len(cls_LD), len(patches_MD)]
        if "ibot_head" in part:
            z_GK, z_LK = part["head"](torch.cat([cls_GD, cls_LD])).split(rows[:2])
            return z_GK, z_LK, part["ibot_head"](patches_MD)
        z_GK, z_LK, z_MK = part["head"](torch.cat([cls_GD, cls_LD, patches_MD])).split(rows)
        return z_GK, z_LK, z_MK

    def signs(self) -> collapse.Signs | None:
        """What the last step's teacher tells of a collapse."""
        return None if self.targets is None else collapse.signs(self.targets.cls_GD, self.targets.q_GK)
