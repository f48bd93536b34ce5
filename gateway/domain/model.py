"""A model as its `card.json` describes it, and the exact version that answered."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gateway.domain.codes import Code

Target = Literal["onnx", "cpu", "tensorrt"]
"""What an engine was built for; the reference first."""
Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
"""From the most precise to the least."""
Pool = Literal["mean", "max", "attention"]
"""How a cytology slide's head comes from cells to the slide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """One output class. `exploratory` replaces `code` where the slide lies outside the intended use: no diagnosis word.

    `color` is the map's colour as #RRGGBB.
    """

    index: int
    code: Code
    exploratory: Code
    supported: bool
    color: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IntendedUse:
    """What the model was made and measured for. A slide whose organ or stain is unknown lies outside."""

    statement: str
    organs: tuple[Code, ...]
    specimen_types: tuple[Code, ...]
    stains: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingPoint:
    """A threshold with its origin. `min_probability` is the least top-class probability that counts as an answer.

    A tile whose reference probability lies within `band` of it may change sides where the precision changes.
    """

    name: str
    min_probability: float
    origin: str
    band: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """The exact model behind a figure: name, version and the digests (sha256, hex) of the chain of DESIGN.md law 5.

    `target` is the runtime the engine was built for, `precision` that of its least precise step.
    """

    name: str
    version: str
    kind: str
    target: Target
    precision: Precision
    engine_sha256: str
    weights_sha256: str
    recipe: str
    recipe_sha256: str
    manifest_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherModel:
    """Another model, by the weights that this one was trained on."""

    model: str
    weights_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StainReference:
    """The stains' directions in optical density (red, green, blue; length 1) in the images of a model's training."""

    haematoxylin: tuple[float, float, float]
    eosin: tuple[float, float, float]
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptEntry:
    """One prompt that a model of masks was trained on: `text` as its grammar writes it.

    `dice` is the mean on validation images (None: none had it), `supported` whether that was enough.
    """

    text: str
    category: Code
    code: Code
    supported: bool
    dice: float | None
    train_images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """The prompts of a model of masks; `table_sha256` is the digest of the prompts.csv that they were read from."""

    table_sha256: str
    entries: tuple[PromptEntry, ...]

    def entry(self, text: str) -> PromptEntry | None:
        """The entry of a prompt's text; None for one that the model was not trained on."""
        return next((entry for entry in self.entries if entry.text == text), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class PresenceRule:
    """When a model of masks says that an object is there: where sigmoid(presence_logit / `temperature`) is at least
    `threshold`."""

    threshold: float
    temperature: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorRule:
    """What becomes of a detector's boxes, outside its engine.

    Neighbouring tiles overlap by `overlap_px`; boxes of at least `score_threshold` are kept; of boxes that overlap by
    more than `nms_iou` (intersection over union) the best stays. How many of them a slide is read from, its model says
    (`ScreeningRule.top_k`).
    """

    overlap_px: int
    score_threshold: float
    nms_iou: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CropRule:
    """How an encoder of cells sees one: see `gateway.slides.cell_crops.CellCrops`, whose digest is `transform_sha256`.

    `mean` and `deviation` (of 0..1) are those by which the encoder's graph itself normalises.
    """

    side_px: int
    context: float
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    transform_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScreeningRule:
    """What a cytology slide model's answers need besides its engine.

    Probabilities are softmax(logits / `temperature` + `biases`), a bias for each class. Its cells are the `top_k` best
    of each class that the `detector` found (None: it was trained on annotated cells), as the transform of digest
    `transform_sha256` crops them. `pool`: how their logits become the slide's. `source`: what a site is held against,
    `gateway.slides.site_state.Source.record`.
    """

    temperature: float
    biases: tuple[float, ...]
    transform_sha256: str
    top_k: int
    pool: Pool
    detector: OtherModel | None
    source: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """The part of `card.json` that the gateway acts on; the whole document stays beside the model.

    `embedding_size` is an encoder's; `encoder` that of a head or a bag model, `feature_size` and `tiles` (least and
    greatest number of rows) a bag model's, which is `composed` where it was trained and measured on slides put together
    from tiles or cells.
    `detector` is a detector's, `crop` that of an encoder of cells, whose `mpp` is that of the pixels that cells are cut
    from, and `screening` that of a bag model of cytology.
    Of a model of masks from words: `mpp_by_level` (micrometres per pixel at which each level of a prompt is read; `mpp`
    is that of nuclei), its `prompts`, the engines that it takes features and text from, and `presence_by_level`: when
    an object of each level is there. Its text's tokens are the numbers of words in the table of the digest
    `tokenizer_sha256`, `max_tokens` of them at most.
    """

    name: str
    title: str
    kind: str
    mpp: float
    tile_px: int
    labels: tuple[Label, ...]
    intended_use: IntendedUse
    operating_points: tuple[OperatingPoint, ...]
    version: ModelVersion
    limits: tuple[str, ...]
    embedding_size: int | None = None
    encoder: OtherModel | None = None
    feature_size: int | None = None
    tiles: tuple[int, int] | None = None
    composed: bool = False
    stain_reference: StainReference | None = None
    detector: DetectorRule | None = None
    crop: CropRule | None = None
    screening: ScreeningRule | None = None
    mpp_by_level: Mapping[str, float] = field(default_factory=dict)
    prompts: Prompts | None = None
    presence_by_level: Mapping[str, PresenceRule] = field(default_factory=dict)
    image_encoder: OtherModel | None = None
    text_encoder: OtherModel | None = None
    tokenizer_sha256: str | None = None
    max_tokens: int | None = None
    vocabulary_size: int | None = None
