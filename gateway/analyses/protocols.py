"""The protocols an order may ask for, which models each needs, and which of its settings an order may change.

Descriptions only: nothing here reads a slide, so that the process that answers requests can import it lightly.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from gateway.domain.order import Order, RegionUm
from gateway.domain.prompts import MOST_PROMPTS
from gateway.operations.errors import InvalidOrder, InvalidSetting, UnknownProtocol
from gateway.operations.prompts import parse


@dataclass(frozen=True, slots=True)
class SettingSpec:
    """One setting of a protocol: a number between `least` and `most`, `whole` or not; `default` None = what the model's
    card says."""

    default: float | None
    least: float
    most: float
    meaning: str
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Protocol:
    """One protocol: its name in orders, its Triton models, its settings.

    Where tiles are read, the first model sees them; the last one's card speaks for the protocol. `prompts`: how
    many an order has, least and most; `prompt_models` are needed besides where it has any. `polygons`: whether a region
    may be one. `instead`: model -> another that takes its place where a site has no version of it that may serve.
    """

    name: str
    title: str
    models: tuple[str, ...]
    settings: Mapping[str, SettingSpec]
    prompts: tuple[int, int] = (0, 0)
    prompt_models: tuple[str, ...] = ()
    polygons: bool = False
    instead: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def all_models(self) -> tuple[str, ...]:
        """Every model that the protocol may use."""
        return (*self.models, *self.prompt_models, *self.instead.values())

    def asked(self, order: Order) -> "Protocol":
        """The protocol with the models that this order needs: those of prompts after the first one."""
        if not order.prompts:
            return self
        return replace(self, models=(self.models[0], *self.prompt_models, *self.models[1:]))

    def alternatives(self, model: str) -> tuple[str, ...]:
        """The models that can stand in a model's place, the preferred one first."""
        return (model, self.instead[model]) if model in self.instead else (model,)


_MIN_SHARE = SettingSpec(0.25, 0.01, 1.0, "least share of a tile under tissue to read it")
_MIN_PROBABILITY = SettingSpec(None, 0.0, 1.0, "least probability of the top class that counts as an answer")

_ADEQUACY = {
    "adequacy.min_cells": SettingSpec(
        8000, 0, 1_000_000, "least estimated number of squamous cells of a satisfactory smear", whole=True
    ),
    "adequacy.max_obscured": SettingSpec(0.75, 0.0, 1.0, "greatest share of the stained area that may be obscured"),
    "adequacy.max_blurred": SettingSpec(0.5, 0.0, 1.0, "greatest share of the stained area that may be out of focus"),
    "adequacy.max_blood": SettingSpec(0.5, 0.0, 1.0, "greatest share of the stained area that may be blood"),
    "adequacy.max_air_dried": SettingSpec(0.5, 0.0, 1.0, "greatest share of the nuclei that may be air-dried"),
    "adequacy.max_pen": SettingSpec(0.5, 0.0, 1.0, "greatest share of the stained area that may be pen"),
}
"""Squamous cells and obscuring: The Bethesda System (2014), chapter 1, of conventional smears."""

PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        protocol.name: protocol
        for protocol in (
            Protocol(
                name="tissue-classification",
                title="What tissue is where on an H&E slide",
                models=("tissue_classification",),
                settings=MappingProxyType(
                    {"tissue.min_share": _MIN_SHARE, "operating_point.min_probability": _MIN_PROBABILITY}
                ),
            ),
            Protocol(
                name="slide-classification",
                title="What an H&E slide as a whole shows, and the tiles that say so",
                models=("tile_encoder", "slide_abmil"),
                settings=MappingProxyType(
                    {
                        "tissue.min_share": _MIN_SHARE,
                        "operating_point.min_probability": _MIN_PROBABILITY,
                        "explain.tiles": SettingSpec(
                            16,
                            1,
                            32,
                            "tiles, the heaviest, in which the prompts' objects are looked for and blurred",
                            whole=True,
                        ),
                        "explain.repeats": SettingSpec(
                            20, 10, 100, "how often random areas are blurred in an object's place", whole=True
                        ),
                    }
                ),
                prompts=(0, 8),
                prompt_models=("pathseg_text", "pathseg"),
                instead=MappingProxyType({"slide_abmil": "slide_transmil"}),
            ),
            Protocol(
                name="segmentation",
                title="Where on an H&E slide is what the order asks for in words",
                models=("pathseg_text", "pathseg"),
                settings=MappingProxyType(
                    {
                        "tissue.min_share": SettingSpec(
                            0.01, 0.001, 1.0, "least share of a window under tissue to read it"
                        ),
                        "presence.min_probability": SettingSpec(
                            None, 0.0, 1.0, "least presence of an object in a window that lets it be drawn there"
                        ),
                    }
                ),
                prompts=(1, MOST_PROMPTS),
                polygons=True,
            ),
            Protocol(
                name="cervical-screening",
                title="What a Papanicolaou smear of the cervix shows, and the cells that say so",
                models=("smartccs_detect", "smartccs_embed", "smartccs_slide"),
                settings=MappingProxyType(
                    {
                        "tissue.min_share": SettingSpec(
                            0.001, 0.0001, 1.0, "least share of a window under cells to read it"
                        ),
                        "operating_point.abnormal_from": SettingSpec(
                            None, 0.0, 1.0, "least 1 - p(NILM) of an abnormal slide"
                        ),
                        **_ADEQUACY,
                    }
                ),
            ),
        )
    }
)


def protocol_named(name: str) -> Protocol:
    """The protocol of that name. Raises UnknownProtocol."""
    try:
        return PROTOCOLS[name]
    except KeyError:
        raise UnknownProtocol(f"There is no protocol {name!r}. Known protocols: {', '.join(PROTOCOLS)}.") from None


def options_of(protocol: Protocol, order: Order) -> dict[str, float | None]:
    """All settings of the protocol with the order's changes. Raises InvalidSetting."""
    options = {name: spec.default for name, spec in protocol.settings.items()}
    if twice := [name for name, times in Counter(name for name, _ in order.settings).items() if times > 1]:
        raise InvalidSetting(f"The setting {twice[0]} is given more than once. Give each setting once.")
    for name, text in order.settings:
        spec = protocol.settings.get(name)
        if spec is None:
            raise InvalidSetting(
                f"The protocol {protocol.name} has no setting {name!r}; it has: {', '.join(protocol.settings)}."
            )
        try:
            value = float(text)
        except ValueError:
            raise InvalidSetting(f"The setting {name} must be a number; {text!r} is not.") from None
        if not spec.least <= value <= spec.most:
            raise InvalidSetting(f"The setting {name} must lie between {spec.least:g} and {spec.most:g}.")
        if spec.whole and not value.is_integer():
            raise InvalidSetting(f"The setting {name} must be a whole number; {text!r} is not.")
        options[name] = value
    return options


def check_order(order: Order) -> None:
    """Raise UnknownProtocol, InvalidSetting or InvalidOrder where no analysis could ever be made of this order."""
    protocol = protocol_named(order.protocol)
    options_of(protocol, order)
    if not any(specimen.slides for specimen in order.specimens):
        raise InvalidOrder("The order names no slide. Name at least one study under specimens[].slides[].")
    references = [slide for specimen in order.specimens for slide in specimen.slides]
    named = [(slide.study, series) for slide in references for series in slide.series or ("",)]
    if len(set(named)) < len(named):
        raise InvalidOrder("The order names a slide twice. Name each series once, under its own specimen.")
    _check_prompts(protocol, order)
    if order.region is not None:
        if order.region.polygon_um and not protocol.polygons:
            raise InvalidOrder(
                f"The protocol {protocol.name} reads boxes, no polygons. Order a region without a polygon."
            )
        if _encloses_nothing(order.region):
            raise InvalidOrder(
                "The region encloses nothing of any slide: it has no area, or lies beside it, or its polygon lies "
                "beside its box. Draw it again."
            )


def _encloses_nothing(region: RegionUm) -> bool:
    """What can be told without a slide: no width or height, all corners on one line, or all beyond one side."""
    right, bottom = region.x_um + region.width_um, region.y_um + region.height_um
    if region.width_um <= 0 or region.height_um <= 0 or right <= 0 or bottom <= 0:
        return True
    if not region.polygon_um:
        return False
    across = [corner.x_um for corner in region.polygon_um]
    down = [corner.y_um for corner in region.polygon_um]
    beyond = max(across) <= region.x_um or min(across) >= right or max(down) <= region.y_um or min(down) >= bottom
    sides = [(x - across[0], y - down[0]) for x, y in zip(across, down, strict=True)]
    far_x, far_y = max(sides, key=lambda side: math.hypot(*side))
    thickest = max(abs(x * far_y - y * far_x) for x, y in sides)
    return beyond or thickest <= 1e-9 * (far_x**2 + far_y**2)


def _check_prompts(protocol: Protocol, order: Order) -> None:
    """Raises InvalidOrder, PromptInvalid."""
    least, most = protocol.prompts
    if order.prompts and not most:
        raise InvalidOrder(f"The protocol {protocol.name} takes no prompts. Leave `prompts` out.")
    if len(order.prompts) < least:
        raise InvalidOrder(
            f"The protocol {protocol.name} needs to be told what to look for. Give at least one prompt, such as "
            "“nuclei-level epithelial in colon pathology”."
        )
    if len(order.prompts) > most:
        raise InvalidOrder(
            f"The order has {len(order.prompts)} prompts; the protocol {protocol.name} answers {most} at a time. Order "
            "the others by themselves."
        )
    for prompt in order.prompts:
        parse(prompt)
