"""Frozen experts: where they are from, what they see, and their terms in the student's loss."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.errors import RecipeInvalid, RunInvalid, TrainingError
from training.gpfm.losses import cosine, kl_divergence, patches, resize_grid
from training.gpfm.model import ImageEncoder, network_of
from training.gpfm.recipe import Distillation, ExpertSettings
from training.nn.vit import Tokens, ViT
from training.runs import Pretraining, Run, find_run
from training.ssl.heads import ProjHead, initialise
from training.ssl.method import Term
from training.ssl.model import IMAGENET, Scale, begin, new_backbone, normalise
from training.ssl.recipe import CnnNetwork
from training.ssl.views import Views


@dataclass(frozen=True, slots=True, eq=False)
class Expert:
    """An expert with its weights in place. `licences`: of its weights and of all that they were made from."""

    settings: ExpertSettings
    network: ImageEncoder
    scale: Scale
    sha256: str
    licences: tuple[str, ...]
    run: Run | None = None
    pretraining: Pretraining | None = None

    @torch.no_grad()
    def __call__(self, crops_GHWC: Tensor) -> tuple[Tensor, Tensor | None]:
        """Class vectors (G,D) and patch tokens (G,N,D) of uint8 crops: the student's own, at their own size."""
        self.network.to(crops_GHWC.device)
        cls_GD, patches_GND = self.network(normalise(crops_GHWC, self.scale))
        if self.settings.normalize == "l2":
            cls_GD = F.normalize(cls_GD.float(), dim=-1)
        return cls_GD, patches_GND if self.settings.patch else None


def open_expert(settings: ExpertSettings, crop_px: int) -> Expert:
    """An expert, ready and checked on one empty crop. Raises TrainingError where it is absent or another one."""
    if settings.run is not None:
        run = find_run(settings.run)
        network = network_of(run)
        expert = Expert(settings, network, network.backbone.scale, run.weights_sha256, licences_of(run), run=run)
    elif settings.package is not None:
        published = CnnNetwork(arch="efficientnet-lite0", start=settings.package)
        backbone = new_backbone(published, masked=False)
        (pretraining,) = begin(backbone, published, torch.Generator())
        network = ImageEncoder(backbone).eval().requires_grad_(False)
        licences = (pretraining.licence,)
        expert = Expert(settings, network, backbone.scale, pretraining.sha256, licences, pretraining=pretraining)
    else:
        expert = _registered(settings)
    _check(expert, crop_px)
    return expert


def _registered(settings: ExpertSettings) -> Expert:
    """An encoder of the bench as an expert. Raises TrainingError where its weights are not there."""
    # Imported here: the bench's encoders may themselves be runs of this system.
    from training.pathbench.encoders import build

    encoder = build(str(settings.encoder), accept_licence=settings.accept_licence)
    vit, meta = getattr(encoder.network, "network", None), encoder.meta
    if not isinstance(vit, ViT):
        raise RecipeInvalid(f"The encoder {meta.id} gives no class and patch tokens. Name a ViT, a run or a package.")
    network = ImageEncoder(vit).eval().requires_grad_(False)
    sets = ", ".join(meta.pretraining or ("not published",))
    origin = Pretraining(meta.id, "as registered", meta.title, meta.checksum, " and ".join(meta.licences), sets)
    # As published, every expert gets ImageNet's scale, whatever its own transform is.
    return Expert(settings, network, IMAGENET, meta.checksum, tuple(meta.licences), pretraining=origin)


def open_experts(kd: Distillation, crop_px: int) -> tuple[Expert, ...]:
    """All experts of a recipe. Raises RunInvalid with every one that cannot be opened and why."""
    opened, reasons = [], []
    for settings in kd.experts:
        try:
            opened.append(open_expert(settings, crop_px))
        except TrainingError as error:
            reasons.append(f"{settings.name}: {error.detail}")
    if reasons:
        raise RunInvalid(f"{len(reasons)} of {len(kd.experts)} experts cannot be opened. " + " ".join(reasons))
    return tuple(opened)


def _check(expert: Expert, crop_px: int) -> None:
    settings = expert.settings
    if settings.sha256 is not None and settings.sha256 != expert.sha256:
        raise RunInvalid(
            f"The weights of the expert {settings.name} have another digest than the recipe asks for. "
            "Restore them, or change the recipe's sha256 and say why."
        )
    cls_GD, patches_GND = expert(torch.zeros(1, crop_px, crop_px, 3, dtype=torch.uint8))
    if cls_GD.shape[1] != settings.dim:
        raise RecipeInvalid(
            f"The expert {settings.name} gives vectors of {cls_GD.shape[1]}, not {settings.dim}. Correct its dim."
        )
    if settings.grid is not None and (patches_GND is None or patches_GND.shape[1] != settings.grid**2):
        found = "no patch tokens" if patches_GND is None else f"{patches_GND.shape[1]} patch tokens"
        raise RecipeInvalid(
            f"The expert {settings.name} gives {found} at {crop_px} px, not a grid of {settings.grid}. "
            "Correct its grid, or leave grid and patch weight out."
        )


def licences_of(run: Run) -> tuple[str, ...]:
    """The licences of all data and weights that a run was made from, through the runs that it starts from."""
    return tuple(sorted({entry["licence"] for key in ("data", "pretraining") for entry in origins(run, key)}))


def origins(run: Run, key: str) -> list[dict[str, Any]]:
    """The manifest's `data` or `pretraining`, with those of every run that the weights come from, each once.

    Raises RunInvalid for a run of before manifests said what they inherit, where one of those is gone or was trained
    again.
    """
    if "inherited" in run.manifest:
        entries = [*run.manifest[key], *run.manifest["inherited"][key]]
    else:
        entries = [entry for made in _ancestry(run) for entry in made.manifest[key]]
    return list({tuple(entry.items()): entry for entry in entries}.values())


def _ancestry(run: Run) -> Iterator[Run]:
    yield run
    for role, origin in run.manifest["starts_from"].items():
        parent = find_run(origin["recipe"])
        if parent.weights_sha256 != origin["weights_sha256"]:
            raise RunInvalid(
                f"The run {run.name} was made with {role} from another run of {origin['recipe']} than the one that is "
                "here. Restore that run, or train again what was made from it."
            )
        yield from _ancestry(parent)


def heads(kd: Distillation, width: int) -> nn.ModuleDict:
    """A student's head for each expert, by the expert's name."""
    shape = {"layers": kd.head.layers, "bottleneck": kd.head.bottleneck}
    return nn.ModuleDict({expert.name: ProjHead(width, expert.dim, **shape) for expert in kd.experts})


class Regression(Term):
    """The experts' losses: one head each on the student's tokens, against what the expert sees in the same crops,
    unmasked (GPFM, Methods). A head serves class token and patch tokens, and has no average.

    The experts are no submodules: they are neither trained nor saved with the student. Their digests are saved: going
    on from a checkpoint made with other experts is refused (RunInvalid).
    """

    def __init__(self, kd: Distillation, experts: Sequence[Expert], width: int, seed: int) -> None:
        super().__init__()
        self.heads, generator = heads(kd, width), torch.Generator().manual_seed(seed)
        for head in self.heads.values():
            initialise(head, generator)
        digests = torch.tensor([list(bytes.fromhex(expert.sha256)) for expert in experts], dtype=torch.uint8)
        self.register_buffer("expert_sha256", digests)
        self.experts = tuple(experts)
        self._kd, self._checked = kd, False

    def losses(
        self, views: Views, student: Tokens, unmasked: Callable[[], Tokens], iteration: int
    ) -> dict[str, Tensor]:
        """Weighted `cls_<name>` of every expert and `patch_<name>` of those with a grid."""
        self._require_same_experts()
        kd, losses = self._kd, {}
        tokens = student if kd.student_view == "masked" else unmasked()
        for expert in self.experts:
            settings, head = expert.settings, self.heads[expert.settings.name]
            cls_GD, patches_GND = expert(views.globals_GHWC)
            own_GD = head(tokens.cls_BD)
            gap = cosine(own_GD, cls_GD) if kd.loss == "cosine" else kl_divergence(own_GD, cls_GD, kd.temperature)
            losses[f"cls_{settings.name}"] = settings.cls * gap
            if patches_GND is not None:
                own_GND = head(tokens.patches_BND)
                target_GND = resize_grid(patches_GND, round(own_GND.shape[1] ** 0.5))
                gap = patches(own_GND, target_GND, kd.patch.cos, kd.patch.smooth_l1)
                losses[f"patch_{settings.name}"] = settings.patch * gap
        return losses

    def _require_same_experts(self) -> None:
        """Once: are the experts those of the checkpoint that may have been loaded since?"""
        if self._checked:
            return
        for expert, digest in zip(self.experts, self.expert_sha256.tolist(), strict=True):
            if bytes(digest).hex() != expert.sha256:
                raise RunInvalid(
                    f"The expert {expert.settings.name} is not the one that this run began with: its weights changed. "
                    "Restore it, or begin the run anew."
                )
        self._checked = True
