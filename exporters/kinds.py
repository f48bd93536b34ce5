"""The kinds of model that can be built: what each takes and gives, how it is judged, and what its card must say."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from exporters.errors import ExportError
from exporters.operators import CHOICE, CONVOLUTION, CORE, SAMPLING, SEQUENCE
from training.graphs import Dim, Graph, TensorSpec

Compared = Literal["cosine", "logits", "labels"]
"""How G3 compares an output of two engines: per row by cosine; as logits, whose last axis are the card's labels (label
flips, operating point) and by cosine; or as integers that must be equal."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor of a kind. `name` is a regular expression for the whole name, so that one slot may stand for several.

    `ranks` count every axis, the batch (or a bag's fixed leading 1) too: at least 2, as Triton takes no tensor that has
    a batch axis alone. `masked` is the axis, from the end, that the
    kind's mask covers.
    """

    name: str
    datatypes: tuple[str, ...]
    ranks: tuple[int, ...]
    needed: bool = True
    masked: int | None = None
    mask: bool = False
    compared: Compared = "cosine"

    def takes(self, spec: TensorSpec, rank: int) -> bool:
        return bool(re.fullmatch(self.name, spec.name)) and spec.datatype in self.datatypes and rank in self.ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind's contract.

    `parity` bounds the greatest absolute difference from the training network, in units of max(1, greatest absolute
    reference value): fp32 sums round in proportion to what they sum. `rounding` bounds, in the same units, what an
    answer alone may differ from the same in a batch; 0 = bit for bit: ONNX Runtime sums some reductions and small
    products in another sequence for another number of rows. What the neighbours hold never counts. `ranked` is the
    output by which rows may be sorted: where they are, those whose scores are nearly equal may change places.
    `undecided` is the greatest share of rows (entries of the batch, and along sizes that are apart) that may differ by
    more than `parity`: those of a network that decides inside, where a number within its last bits of the cut falls on
    the other side. `card` says the fields of the kind's card block.
    """

    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    operators: frozenset[str]
    parity: float = 1e-4
    rounding: float = 1e-5
    ranked: str | None = None
    undecided: float = 0.0
    card: Mapping[str, str] = field(default_factory=dict)

    def slot(self, spec: TensorSpec, graph: Graph) -> Slot:
        """The slot of one of the graph's tensors. Raises ExportError."""
        role, slots = ("input", self.inputs) if spec in graph.inputs else ("output", self.outputs)
        rank = len(spec.dims) + (graph.batch is not None)
        for slot in slots:
            if slot.takes(spec, rank):
                return slot
        raise ExportError(
            f"{graph.model} declares the {role} {spec.name} ({spec.datatype}, {rank} axes with the batch), but a model "
            f"of kind {graph.kind} has {_text(slots)}."
        )


def _image() -> Slot:
    return Slot("image", ("UINT8",), (4,))


_LABELS = "label list with codes and `supported`, in the order of the logits"
_POINTS = "operating points, each with origin and band"
_TOKENS = {"tokenizer_sha256": "digest of the tokenizer", "max_tokens": "longest text", "vocabulary_size": "tokens"}
_ENCODER = "model and weights digest of the encoder whose output it was trained on"

KINDS: Mapping[str, Kind] = {
    "encoder": Kind(
        inputs=(_image(),),
        outputs=(Slot("embedding", ("FP32",), (2,)),),
        operators=CORE | CONVOLUTION | SAMPLING,
        rounding=0.0,
        card={"embedding_size": "length of the embedding"},
    ),
    "head": Kind(
        inputs=(Slot("embedding", ("FP32",), (2,)),),
        outputs=(Slot("logits", ("FP32",), (2,), compared="logits"),),
        operators=CORE,
        rounding=0.0,
        card={"encoder": _ENCODER, "labels": _LABELS, "operating_points": _POINTS},
    ),
    # Gated attention, TransMIL; with a mask and per-slide constants also the cervical slide head.
    "bag": Kind(
        inputs=(
            Slot("features", ("FP32",), (3,), masked=-2),
            Slot("xy_um", ("FP32",), (3,), needed=False, masked=-2),
            Slot("mask", ("BOOL", "INT64"), (2,), needed=False, mask=True, masked=-1),
            Slot("gamma|beta", ("FP32",), (2,), needed=False),
        ),
        outputs=(
            Slot("logits", ("FP32",), (2,), compared="logits"),
            Slot("attention", ("FP32",), (2,), needed=False, masked=-1),
            Slot("cell_logits", ("FP32",), (3,), needed=False, masked=-2),
        ),
        operators=CORE | CONVOLUTION | CHOICE | SEQUENCE,
        card={
            "encoder": _ENCODER,
            "labels": _LABELS,
            "operating_points": _POINTS,
            "feature_size": "length of one row of features",
            "tiles": "least and greatest number of rows that it takes",
        },
    ),
    # Ends before suppression: `scores` are sigmoid values, one a box or one a class, `boxes` cxcywh in 0..1; a fixed
    # number of rows.
    "detector": Kind(
        inputs=(_image(),),
        outputs=(
            Slot("boxes", ("FP32",), (3,)),
            Slot("scores", ("FP32",), (2, 3)),
            Slot("labels", ("INT64",), (2,), needed=False, compared="labels"),
        ),
        operators=CORE | CONVOLUTION | SAMPLING | CHOICE | SEQUENCE,
        ranked="scores",
        card={
            "labels": _LABELS,
            "operating_points": _POINTS,
            "overlap_px": "overlap of neighbouring tiles",
            "score_threshold": "least score of a box that is kept",
            "nms_iou": "IoU from which suppression, outside the engine, joins boxes",
        },
    ),
    # Pixels to maps or tokens that another engine takes.
    "image_encoder": Kind(
        inputs=(_image(),),
        outputs=(Slot("features_[a-z0-9]+|mask_features|visual_tokens", ("FP32",), (3, 4)),),
        operators=CORE | CONVOLUTION | SAMPLING,
        card={"stride_px": "pixels of the image per cell of the finest map"},
    ),
    "mask_decoder": Kind(
        inputs=(
            Slot("mask_features", ("FP32",), (4,)),
            Slot("features_[a-z0-9]+", ("FP32",), (3, 4), needed=False),
            Slot("text_tokens", ("FP32",), (3, 4), masked=-2),
            Slot("text_global", ("FP32",), (2, 3), needed=False),
            Slot("text_mask", ("BOOL", "INT64"), (2, 3), mask=True, masked=-1),
        ),
        outputs=(
            Slot("mask_logits", ("FP32",), (4,)),
            Slot("presence_logit|match_similarity", ("FP32",), (2,), needed=False),
            Slot("query_index", ("INT64",), (2,), needed=False, compared="labels"),
        ),
        operators=CORE | CONVOLUTION | SAMPLING | CHOICE | SEQUENCE,
        undecided=0.005,  # a query attends a place or not (arXiv 2112.01527, 3.2), and one query of all answers
        card={
            "image_encoder": "model and weights digest of the engine that gives the features",
            "text_encoder": "model and weights digest of the engine that gives the text tokens",
            "prompts": "prompts with codes, Dice, `supported`, and the digest of their table",
            "mpp_by_level": "micrometres per pixel at which each level of a prompt is read",
            **_TOKENS,
            "presence_by_level": "least presence probability of a mask that is shown, and temperature, of each level",
        },
    ),
    "text_encoder": Kind(
        inputs=(
            Slot("token_ids", ("INT64",), (2,), masked=-1),
            Slot("token_mask", ("BOOL", "INT64"), (2,), mask=True, masked=-1),
        ),
        outputs=(
            Slot("text_tokens", ("FP32",), (3,), masked=-2),
            Slot("text_global", ("FP32",), (2,), needed=False),
        ),
        operators=CORE | CHOICE | SEQUENCE,
        card=_TOKENS,
    ),
    # The whole prompt at once; gives the first cache of `step`.
    "prefill": Kind(
        inputs=(
            Slot("token_ids", ("INT64",), (2,), needed=False, masked=-1),
            Slot("embeds", ("FP32",), (3,), needed=False, masked=-2),
            Slot("mask", ("BOOL", "INT64"), (2,), needed=False, mask=True, masked=-1),
            Slot("gates", ("FP32",), (2,), needed=False),
        ),
        outputs=(
            Slot("logits", ("FP32",), (2, 3)),
            Slot("(present|cache)_[a-z0-9_]+", ("FP32",), (4, 5), masked=-2),
        ),
        operators=CORE | CHOICE | SEQUENCE,
        card=_TOKENS,
    ),
    # One more token. Caches are (…, heads, length, size of a head), of dynamic length or of a fixed one with `length`.
    "step": Kind(
        inputs=(
            Slot("token_ids?", ("INT64",), (2,)),
            Slot("length", ("INT64",), (2,), needed=False),
            Slot("gates", ("FP32",), (2,), needed=False),
            Slot("(past|cache)_[a-z0-9_]+", ("FP32",), (4, 5)),
        ),
        outputs=(
            Slot("logits", ("FP32",), (2, 3)),
            Slot("(present|new|cache)_[a-z0-9_]+", ("FP32",), (4, 5)),
        ),
        operators=CORE | CHOICE | SEQUENCE,
        card={
            "prefill": "model and weights digest of the engine that gives the first cache",
            "tokenizer_sha256": "digest of the tokenizer",
            "max_tokens": "longest text, prompt and answer together",
            "vocabulary_size": "tokens",
        },
    ),
}
"""Besides these there is `ensemble`: models of the repository, joined by their tensors' names, without a network."""


def kind_of(graph: Graph) -> Kind:
    """A graph's kind. Raises ExportError where there is none, or where the graph's tensors are not the kind's."""
    kind = KINDS.get(graph.kind)
    if kind is None:
        raise ExportError(f"{graph.model} is of the kind {graph.kind}; known kinds are {', '.join(KINDS)}.")
    for role, slots, specs in (("input", kind.inputs, graph.inputs), ("output", kind.outputs, graph.outputs)):
        found = [kind.slot(spec, graph) for spec in specs]
        if missing := [slot for slot in slots if slot.needed and slot not in found]:
            raise ExportError(f"{graph.model} is of the kind {graph.kind} and lacks the {role} {_text(missing)}.")
        names = [spec.name for spec in specs]
        if len(set(names)) != len(names):
            raise ExportError(f"{graph.model} declares an {role} twice: {', '.join(sorted(names))}.")
    _check_dims(graph)
    return kind


def _check_dims(graph: Graph) -> None:
    """Raises ExportError for a Dim that is none, one name with two meanings, or a size that no input fixes."""
    known: dict[str, Dim] = {}
    batch = [graph.batch] if graph.batch else []
    for dim in [*batch, *(dim for spec in graph.inputs for dim in spec.dims)]:
        if not isinstance(dim, Dim):
            if dim < 1:
                raise ExportError(f"{graph.model} declares an input with the size {dim}; only outputs may say -1.")
            continue
        sizes = (dim.min, dim.opt, dim.max)
        if not dim.name.isidentifier() or not 1 <= dim.min <= dim.opt <= dim.max or dim.min == dim.max:
            raise ExportError(f"{graph.model} declares {dim}; a size needs a name and 1 ≤ min ≤ opt ≤ max, min < max.")
        if dim.multiple < 1 or any(size % dim.multiple for size in sizes):
            raise ExportError(f"{graph.model} declares {dim}, whose bounds are not multiples of {dim.multiple}.")
        if known.setdefault(dim.name, dim) != dim:
            raise ExportError(f"{graph.model} declares the size {dim.name} twice, with different bounds.")
    if graph.batch is not None and graph.batch.name != "batch":
        raise ExportError(f"{graph.model} calls its batch {graph.batch.name}; its name is batch.")
    for dim in (dim for spec in graph.outputs for dim in spec.dims):
        if isinstance(dim, Dim) and known.get(dim.name) != dim:
            raise ExportError(f"{graph.model} declares an output of the size {dim.name}, which no input has.")
    if strange := sorted(set(graph.unordered) - known.keys()):
        raise ExportError(f"{graph.model} says that order along {', '.join(strange)} means nothing; no input has it.")
    if strange := sorted(name for name in graph.apart if any(known.get(name) not in out.dims for out in graph.outputs)):
        raise ExportError(
            f"{graph.model} says that entries along {', '.join(strange)} are apart; not every output has it."
        )


def _text(slots: tuple[Slot, ...] | list[Slot]) -> str:
    return ", ".join(
        f"{slot.name} ({'/'.join(slot.datatypes)}, {'/'.join(map(str, slot.ranks))} axes)" for slot in slots
    )
