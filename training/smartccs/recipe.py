"""The typed recipes of Smart-CCS (arXiv 2502.09662): its cell detector, an encoder that is taken as it was
published, and how the slide head is served.

Settings and their published values are Deformable DETR's (arXiv 2010.04159), where Smart-CCS inherits them.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from training.loop import Steps
from training.publish import Published
from training.runs import Part, Recipe
from training.ssl.recipe import CnnNetwork


class ConvBackbone(Part):
    """Residual stages of two 3×3 convolutions with group norm, each of stride 2; the `levels` coarsest are used, and
    one more of stride 2 beyond them."""

    arch: Literal["conv"]
    widths: tuple[int, ...] = (32, 64, 128, 192, 256)
    levels: int = Field(default=2, gt=0)

    @model_validator(mode="after")
    def _enough_stages(self) -> Self:
        if self.levels > len(self.widths):
            raise ValueError("levels cannot be more than the stages that widths names")
        return self


class ResNetBackbone(Part):
    """ResNet-50's last three stages, and one map of stride 2 beyond them. `weights_file`: ImageNet weights by
    torchvision's names, a .safetensors file in the runs folder; batch norms then stay as they are. Without it the
    network begins afresh, and its batch norms are trained."""

    arch: Literal["resnet50"]
    weights_file: str | None = None


class LiteBackbone(Part):
    """EfficientNet-Lite0's stages of strides 16 and 32, without its last ones, which widen, and one map of stride 2
    beyond; its package's ImageNet weights. Batch norms, and the stem with the first `frozen_blocks`, stay as they are.
    """

    arch: Literal["efficientnet-lite0"]
    frozen_blocks: int = Field(default=5, ge=0, le=15)


Backbone = Annotated[ConvBackbone | ResNetBackbone | LiteBackbone, Field(discriminator="arch")]


class DetectorNetwork(Part):
    """The transformer, of `width`, over the backbone's maps: `layers` of encoder and as many of decoder."""

    backbone: Backbone
    width: int = Field(gt=0)
    heads: int = Field(gt=0)
    layers: int = Field(gt=0)
    ffn: int = Field(gt=0)
    points: int = Field(default=4, gt=0)
    queries: int = Field(gt=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _whole_heads(self) -> Self:
        if self.width % self.heads or self.width % 4:
            raise ValueError("width must be a multiple of heads, and of 4")
        return self


class DetectorData(Part):
    """Crops of `side_px` from fields scaled by `scales`, whose channels' optical density varies by the factors
    1 ± `jitter`. Fields are validated, and slides are served, at `mpp` in tiles of the same side that overlap by
    `overlap_px`."""

    side_px: int = Field(gt=0)
    scales: tuple[float, float] = (0.5, 1.0)
    jitter: float = Field(default=0.0, ge=0, lt=1)
    mpp: float = Field(gt=0)
    overlap_px: int = Field(gt=0)

    @model_validator(mode="after")
    def _room_for_tiles(self) -> Self:
        if not 0 < self.scales[0] <= self.scales[1]:
            raise ValueError("scales must be two rising numbers above 0")
        if self.overlap_px >= self.side_px:
            raise ValueError("overlap_px must be less than side_px")
        return self


class DetectorLoss(Part):
    """Weights of the loss, and of the matching's costs. `ignored_above`: in a field where something is abnormal, what
    is said more surely than this, farther than one box from any annotation, carries no loss: it may be a cell that
    nobody annotated."""

    classes: float = Field(default=2.0, ge=0)
    l1: float = Field(default=5.0, ge=0)
    giou: float = Field(default=2.0, ge=0)
    ignored_above: float = Field(default=0.3, ge=0, le=1)


class DetectorTraining(Steps):
    """`backbone_rate` multiplies the rate of the backbone, `places_rate` that of what says where to look: sampling
    offsets and reference points. Weights are not averaged unless `ema` says so."""

    backbone_rate: float = Field(default=0.1, gt=0)
    places_rate: float = Field(default=0.1, gt=0)
    decay: float = Field(default=1e-4, ge=0)
    clip: float = Field(default=0.5, gt=0)
    ema: float = Field(default=0.0, ge=0, lt=1)


class Merging(Part):
    """What becomes of a tile's answers; the card names it, and the gateway does it.

    `top_k` stands in recipes of earlier releases, whose runs are read by their digest; nothing reads it. How many cells
    of each class a slide is read from is `SlideRecipe.top_k`, which the slide model's card names.
    """

    score_threshold: float = Field(default=0.2, ge=0, le=1)
    nms_iou: float = Field(default=0.75, gt=0, le=1)
    top_k: int | None = Field(default=None, gt=0)


class DetectorRecipe(Recipe):
    """The cell detector. Without `publish` its runs are experiments, which nothing serves."""

    system: Literal["smartccs"]
    stage: Literal["detect"]
    network: DetectorNetwork
    data: DetectorData
    loss: DetectorLoss = DetectorLoss()
    training: DetectorTraining
    merging: Merging = Merging()
    publish: Published | None = None


class PublishedSlide(Published):
    """The served slide head, with the models of the repository that it was trained on."""

    encoder_model: str
    detector_model: str


class EncoderRecipe(Recipe):
    """An encoder of cells with the weights of its package, on crops of `side_px`. Nothing is learned: its run is what a
    slide head's starts from. Without `publish` nothing serves it."""

    system: Literal["smartccs"]
    stage: Literal["encoder"]
    network: CnnNetwork
    side_px: int = Field(gt=0)
    publish: Published | None = None

    @model_validator(mode="after")
    def _has_weights(self) -> Self:
        if self.network.start == "random":
            raise ValueError("network.start must name published weights: nothing is learned here")
        return self
