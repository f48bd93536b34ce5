"""The protocols an order may ask for, which models each needs, and which of its settings an order may change.

Descriptions only: nothing here reads a slide, so that the process that answers requests can import it lightly.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from gateway.domain.order import Order
from gateway.operations.errors import InvalidOrder, InvalidSetting, UnknownProtocol
from gateway.operations.prompts import parse


@dataclass(frozen=True, slots=True)
class SettingSpec:
    """One setting of a protocol: a number between `least` and `most`; `default` None = what the model's card says."""

    default: float | None
    least: float
    most: float
    meaning: str


@dataclass(frozen=True, slots=True)
class Protocol:
    """One protocol: its name in orders, its Triton models, its settings.

    The first model sees the tiles, the last one's card speaks for the protocol (often one and the same). `instead`:
    model -> another that takes its place where a site has no version of it that may serve.
    """

    name: str
    title: str
    models: tuple[str, ...]
    settings: Mapping[str, SettingSpec]
    prompts: bool = False
    instead: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def all_models(self) -> tuple[str, ...]:
        """Every model that the protocol may use."""
        return (*self.models, *self.instead.values())

    def alternatives(self, model: str) -> tuple[str, ...]:
        """The models that can stand in a model's place, the preferred one first."""
        return (model, self.instead[model]) if model in self.instead else (model,)


MOST_PROMPTS = 32
"""Prompts of an order: what a model answers of one picture at a time."""

_MIN_SHARE = SettingSpec(0.25, 0.01, 1.0, "least share of a tile under tissue to read it")
_MIN_PROBABILITY = SettingSpec(None, 0.0, 1.0, "least probability of the top class that counts as an answer")

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
                    {"tissue.min_share": _MIN_SHARE, "operating_point.min_probability": _MIN_PROBABILITY}
                ),
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
                prompts=True,
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
    if protocol.prompts:
        _check_prompts(order)
        return
    if order.prompts:
        raise InvalidOrder(f"The protocol {protocol.name} takes no prompts. Leave `prompts` out.")
    if order.region is not None and order.region.polygon_um:
        raise InvalidOrder(f"The protocol {protocol.name} reads boxes, no polygons. Order a region without a polygon.")


def _check_prompts(order: Order) -> None:
    """Raises InvalidOrder, PromptInvalid."""
    if not order.prompts:
        raise InvalidOrder(
            f"The protocol {order.protocol} needs to be told what to look for. Give at least one prompt, such as "
            "“nuclei-level epithelial in colon pathology”."
        )
    if len(order.prompts) > MOST_PROMPTS:
        raise InvalidOrder(f"The order has {len(order.prompts)} prompts; {MOST_PROMPTS} are answered at a time.")
    for prompt in order.prompts:
        parse(prompt)
