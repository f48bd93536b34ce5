"""The typed recipes of pathsegmentor: the text-prompted network, and the fixed-class nets that it is held against.

Settings and their published values: PathSegmentor (arXiv 2506.20988), and where it inherits them BiomedParse (arXiv
2405.12971), SEEM (arXiv 2304.06718) and Mask2Former (arXiv 2112.01527).
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from training.loop import Steps
from training.publish import Published
from training.runs import Part, Recipe

Stages = tuple[int, int, int, int]


class ConvEncoder(Part):
    """Four stages of 3×3 convolutions with group norm and GELU; each begins by striding: by `stem` first, then by 2."""

    arch: Literal["conv"]
    widths: Stages
    convs: Stages = (2, 2, 2, 2)
    stem: Literal[2, 4] = 2


class FocalNetEncoder(Part):
    """FocalNet (arXiv 2203.11926) with convolutional patch embedding, post-norm, LayerScale and scaled modulator."""

    arch: Literal["focalnet"]
    embed: int = Field(default=192, gt=0)
    depths: Stages = (2, 2, 18, 2)
    levels: int = Field(default=4, gt=0)
    window: int = Field(default=3, gt=0)
    drop_path: float = Field(default=0.3, ge=0, lt=1)


Encoder = Annotated[ConvEncoder | FocalNetEncoder, Field(discriminator="arch")]


class TransformerSettings(Part):
    """A transformer on the coarsest map, before the pyramid."""

    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    ffn: int = Field(gt=0)


class WordsText(Part):
    """A table of the grammar's words, learned positions, and a pre-norm transformer, all from fresh weights."""

    tower: Literal["words"]
    layers: int = Field(default=2, gt=0)
    heads: int = Field(default=4, gt=0)
    ffn: int = Field(gt=0)


class BertText(Part):
    """A BERT and a linear map of its states to the network's width. `minilm`: all-MiniLM-L6-v2, frozen, from its
    package; `pubmedbert`: PubMedBERT's shape (arXiv 2007.15779), trained, its word pieces from `vocabulary_file`."""

    tower: Literal["minilm", "pubmedbert"]
    vocabulary_file: str | None = None

    @model_validator(mode="after")
    def _file_where_used(self) -> Self:
        if (self.tower == "pubmedbert") != (self.vocabulary_file is not None):
            raise ValueError("vocabulary_file is named for the tower pubmedbert, and for no other")
        return self


Text = Annotated[WordsText | BertText, Field(discriminator="tower")]


class DecoderSettings(Part):
    """`queries` that attend the image's scales and the text, in `layers`.

    `norm`: before or after each block's branch. `sine`: sine positions on the keys. `query_per_prompt`: the text's
    vector is the only query and nothing is selected (SAT, arXiv 2312.17183).
    """

    queries: int = Field(default=16, gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    ffn: int = Field(gt=0)
    norm: Literal["pre", "post"] = "pre"
    sine: bool = False
    query_per_prompt: bool = False

    @model_validator(mode="after")
    def _one_query(self) -> Self:
        if self.query_per_prompt and self.queries != 1:
            raise ValueError("query_per_prompt has one query: queries must be 1")
        return self


class Network(Part):
    """The network. `width` is that of scales, mask features, text tokens and queries.

    The pyramid has bilinear steps and one smoothing convolution; with `transformer` it is Mask2Former's, after that
    transformer: nearest steps, group norm, ReLU. `text_pool`: how text tokens become one vector. `full_resolution`:
    masks have the image's size, else the mask features'.
    """

    width: int = Field(gt=0)
    encoder: Encoder
    transformer: TransformerSettings | None = None
    text: Text
    text_pool: Literal["mean", "cls", "last"] = "mean"
    decoder: DecoderSettings
    full_resolution: bool = True


class Data(Part):
    """`sets` by their names; a crop is `side_px` wide at its level's scale.

    `absent`: share of prompts for what is not in the crop. `naive_absent` takes what a set does not annotate for
    absent: the mistake whose cost one arm measures. `without`: words of the prompt that the network is not shown.
    """

    sets: tuple[str, ...] = Field(min_length=1)
    side_px: int = Field(gt=0)
    absent: float = Field(default=0.22, ge=0, lt=1)
    naive_absent: bool = False
    without: tuple[Literal["level", "region", "constant"], ...] = ()


class Loss(Part):
    """Weights. `points`: how many places of a mask are compared, the uncertain ones first; None = all of them."""

    bce: float = Field(default=1.0, ge=0)
    dice: float = Field(default=1.0, ge=0)
    match: float = Field(default=0.8, ge=0)
    absent: float = Field(default=0.5, ge=0)
    presence: float = Field(default=1.0, ge=0)
    points: int | None = Field(default=None, gt=0)


class Training(Steps):
    """No decay of norms, biases and tables. `image_rate` and `text_rate` multiply the rate of the two encoders."""

    image_rate: float = Field(default=1.0, gt=0)
    text_rate: float = Field(default=1.0, gt=0)
    validation_crops: int = Field(default=8, gt=0)


class _SegmentationRecipe(Recipe):
    """What both kinds of network share. `mpp_by_level`: µm per pixel at which each level is seen."""

    system: Literal["pathsegmentor"]
    data: Data
    training: Training
    loss: Loss = Loss()
    mpp_by_level: dict[Literal["tissue", "cell", "nuclei"], float]


class SegmentorRecipe(_SegmentationRecipe):
    """The text-prompted network. Without `publish` its runs are experiments, which nothing serves."""

    stage: Literal["segmentor"]
    network: Network
    publish: Published | None = None


class SpecialistNetwork(Part):
    """The same convolutional encoder and pyramid, and one mask and one presence score a fixed class."""

    width: int = Field(gt=0)
    encoder: ConvEncoder


class SpecialistRecipe(_SegmentationRecipe):
    """A fixed-class network of one set: no words."""

    stage: Literal["specialist"]
    network: SpecialistNetwork

    @model_validator(mode="after")
    def _one_set(self) -> Self:
        if len(self.data.sets) != 1:
            raise ValueError("a specialist learns from exactly one set")
        if self.data.without or self.loss.points is not None:
            raise ValueError("a specialist reads no words and compares whole masks: leave out without and points")
        return self


AnyRecipe = SegmentorRecipe | SpecialistRecipe
