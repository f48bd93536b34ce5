"""What is known of each encoder, as data: `registry.toml` names the cards, one file an encoder."""

from functools import cache
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from training.nn.vit import ViTConfig
from training.pathbench.encoders.errors import EncoderInvalid, EncoderMissing
from training.pathbench.encoders.transforms import Transform
from training.runs import parse_card, read_toml

FOLDER = Path(__file__).parent
Toolkit = Literal["native", "pb", "tr"]
Profile = Literal["fixed-fov", "native"]
FIXED_FIELD_UM = 128.0
"""PathBench's field: every encoder is shown the same tissue, whatever it was trained on."""
Triple = tuple[float, float, float]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Vit(_Part):
    """A vision transformer, by `ViTConfig`'s fields."""

    kind: Literal["vit"]
    image_px: int
    patch_px: int
    width: int
    depth: int
    heads: int
    mlp: int
    ffn: Literal["mlp", "swiglu"] = "mlp"
    layerscale: float | None = None
    registers: int = 0
    positions: Literal["all", "class", "patches"] = "class"
    norm_eps: float = 1e-6

    def config(self) -> ViTConfig:
        return ViTConfig(**self.model_dump(exclude={"kind"}))


class Other(_Part):
    """A network that has one shape only, or a function without weights."""

    kind: Literal["swin-convstem", "resnet50-stage3", "efficientnet-lite0", "efficientnet-lite1", "function"]


class Weights(_Part):
    """Where they come from: a hub (a person fetches them), a package, a run of ours, a seed (fresh), or there are none.

    `layout` says how the file names its tensors. `sha256` or `md5` is the published digest, where there is one.
    """

    source: Literal["hub", "package", "run", "fresh", "none"]
    hub: str = ""
    file: str = ""
    layout: Literal["plain", "dinov2-teacher", "mstar", "hf-vit", "hf-dinov2", "swin-convstem", "resnet50"] = "plain"
    sha256: str | None = None
    md5: str | None = None
    run: str | None = None


class Resize(_Part):
    """One toolkit's way to the network's side; `resize_px` where it differs from that."""

    fit: Literal["squash", "crop"]
    interpolation: Literal["bilinear", "bicubic"]
    resize_px: int | None = None


class Checks(_Part):
    """What the architecture must come to, without weights: parameters, state tensors, shapes by tensor name."""

    parameters: int | None = None
    tensors: int | None = None
    shapes: dict[str, tuple[int, ...]] = {}


class Card(_Part):
    """One encoder. `unverified`: only its dimension and its approximate size are known, so it cannot be built.

    `pretraining`: the sets that it was trained on ("undisclosed" where they are not public). `dtype`: what a toolkit
    runs it in; here it is always float32. `inferred`: the fields that no publisher states. `field_um`: side of the
    tissue that its publisher shows it. An encoder of ours takes dimension, side and field from its run.
    """

    title: str
    licence: str
    gated: bool
    commercial_ok: bool
    derivatives_ok: bool
    inferred: tuple[str, ...] = ()
    inherits_from: tuple[str, ...] = ()
    pretraining: tuple[str, ...]
    unverified: bool = False
    dim: int | None = Field(default=None, gt=0)
    parameters: str
    embedding: Literal[
        "class token", "class token, mean of patch tokens", "pooled", "pooled at three depths", "its own"
    ]
    field_um: float | None = Field(default=None, gt=0)
    side_px: int | None = Field(default=None, gt=0)
    mean: Triple | None = None
    std: Triple | None = None
    weights: Weights
    architecture: Vit | Other | None = None
    transforms: dict[Toolkit, Resize] = {}
    dtype: dict[Literal["pb", "tr"], Literal["fp32", "fp16", "bf16"]] = {}
    checks: Checks = Checks()
    note: str = ""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        said = (self.dim, self.side_px, self.field_um, self.architecture, self.transforms.get("native"))
        if self.weights.source == "run":
            if self.weights.run is None or any(said):
                raise ValueError("an encoder of ours names its recipe in weights.run, and the run says the rest")
        elif not all(said[:3]) or not (self.unverified or all(said)):
            raise ValueError("dim, side_px, field_um, architecture and the transform `native` are needed")
        return self

    def transform(self, toolkit: Toolkit) -> Transform:
        """A toolkit's transform; the publisher's own where the card says none for it."""
        assert self.side_px is not None
        resize = self.transforms.get(toolkit) or self.transforms["native"]
        return Transform(
            side_px=self.side_px,
            fit=resize.fit,
            interpolation=resize.interpolation,
            resize_px=resize.resize_px or self.side_px,
            mean=self.mean,
            std=self.std,
        )


def registered() -> tuple[str, ...]:
    """The ids, in the registry's order."""
    return tuple(_registry(FOLDER))


def read_card(encoder_id: str) -> Card:
    """The card of a registered encoder. Raises EncoderMissing, EncoderInvalid."""
    registry = _registry(FOLDER)
    if encoder_id not in registry:
        raise EncoderMissing(
            f"There is no encoder {encoder_id} in the registry; its ids are {', '.join(registry)}. A card and a "
            "line in registry.toml add another."
        )
    return _card(FOLDER / "cards" / registry[encoder_id])


def licences_of(card: Card) -> tuple[str, ...]:
    """Its own licence and, through all generations, those of what it inherits from."""
    inherited = (licence for parent in card.inherits_from for licence in licences_of(read_card(parent)))
    return tuple(sorted({card.licence, *inherited}))


@cache
def _registry(folder: Path) -> dict[str, str]:
    return {str(key): str(value) for key, value in read_toml(folder / "registry.toml").items()}


@cache
def _card(path: Path) -> Card:
    return parse_card(Card, path, f"The encoder card {path.name}", EncoderInvalid)
