"""What a cytology model takes for a site: an affine map of cell features, and a map of colours, fitted once and frozen.

Both are inputs of unchanged engines, so that a state has a digest of its own in a report's provenance. Its bytes are
canonical: the same state has the same bytes, and any change of a value is another digest.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gateway.domain.model import ScreeningRule
from gateway.operations.errors import InvalidInput
from gateway.slides.site_colour import ColourMap, Densities

Verdict = Literal["adapted", "like the source", "out of scope", "not commissioned"]
Features = NDArray[np.float32]
_SCHEMA = "pathserve-site-1"


class SiteStateInvalid(InvalidInput):
    """A site's state that is damaged, was changed by hand, or belongs to another model."""

    reason, title = "site-state-invalid", "Site state not usable"


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """What a model's card says of the slides that it learned from: their densities; mean_D, deviation_D (float32) of
    their cells' features; gate: the distance up to which a site counts as like them. `digest` names them."""

    densities: Densities
    mean_D: Features
    deviation_D: Features
    gate: float

    def record(self) -> dict[str, Any]:
        """For a card, and for the digest."""
        return {
            "densities": asdict(self.densities),
            "mean": _numbers(self.mean_D),
            "deviation": _numbers(self.deviation_D),
            "gate": self.gate,
        }

    @classmethod
    def read(cls, record: dict[str, Any]) -> "Source":
        """The inverse of `record`. Raises KeyError, TypeError, ValueError for what is none."""
        mean_D, deviation_D = (_vector(record[name]) for name in ("mean", "deviation"))
        if len(mean_D) != len(deviation_D):
            raise ValueError("mean and deviation differ in length")
        return cls(_densities(record["densities"]), mean_D, deviation_D, float(record["gate"]))

    @classmethod
    def of(cls, rule: ScreeningRule | None) -> "Source | None":
        """What a card's rule says of it; None where there is no rule, or it says nothing that can be used."""
        try:
            return None if rule is None else cls.read(dict(rule.source))
        except (KeyError, TypeError, ValueError):
            return None

    @property
    def digest(self) -> str:
        return hashlib.sha256(_canonical(self.record())).hexdigest()


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SiteState:
    """site: a centre with its scanner and stain; version: 1, 2, … of its fits; source_sha256: the digest of the source
    constants that it was fitted to, which a model's card has; gamma_D, beta_D: float32, f' = gamma·f + beta; colour:
    what is applied to tiles first; slides, cells: how many it rests on; distance_raw and distance_coloured (None: not
    reached): from the source, before and after the colours were mapped; gate: what they were held against."""

    site: str
    version: int
    verdict: Verdict
    source_sha256: str
    gamma_D: Features
    beta_D: Features
    colour: ColourMap | None = None
    slides: int = 0
    cells: int = 0
    distance_raw: float | None = None
    distance_coloured: float | None = None
    gate: float | None = None

    @property
    def changes_nothing(self) -> bool:
        """Whether answers with this state are, to the bit, those without."""
        return self.colour is None and not self.maps_features

    @property
    def maps_features(self) -> bool:
        """Whether cells' features are mapped; where they are not, they reach the slide's model to the bit."""
        return not bool((self.gamma_D == 1).all() and (self.beta_D == 0).all())

    def to_bytes(self) -> bytes:
        """Canonical JSON, ASCII, one line."""
        fields = {name: getattr(self, name) for name in _PLAIN}
        colour = None if self.colour is None else asdict(self.colour)
        vectors = {"gamma": _numbers(self.gamma_D), "beta": _numbers(self.beta_D)}
        return _canonical({"schema": _SCHEMA, **fields, **vectors, "colour": colour})

    @property
    def digest(self) -> str:
        """sha256 of its bytes."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @classmethod
    def from_bytes(cls, data: bytes) -> "SiteState":
        """The state of canonical bytes. Raises SiteStateInvalid for any others."""
        try:
            record = json.loads(data)
            colour = record["colour"]
            state = cls(
                **{name: record[name] for name in _PLAIN},
                gamma_D=_vector(record["gamma"]),
                beta_D=_vector(record["beta"]),
                colour=None if colour is None else ColourMap(*(_densities(colour[of]) for of in ("site", "source"))),
            )
            whole = record["schema"] == _SCHEMA and len(state.gamma_D) == len(state.beta_D)
            if whole and state.to_bytes() == data:
                return state
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        raise SiteStateInvalid("The site's state is damaged or was changed. Fit the site again, or restore the file.")


_PLAIN = (
    "site", "version", "verdict", "source_sha256", "slides", "cells", "distance_raw", "distance_coloured", "gate",
)  # fmt: skip


def identity(
    site: str,
    version: int,
    verdict: Verdict,
    source: Source,
    *,
    slides: int = 0,
    cells: int = 0,
    distance_raw: float | None = None,
    distance_coloured: float | None = None,
    gate: float | None = None,
) -> SiteState:
    """A state that changes nothing, with its verdict and what that rests on, by SiteState's names."""
    width = len(source.mean_D)
    return SiteState(
        site=site,
        version=version,
        verdict=verdict,
        source_sha256=source.digest,
        gamma_D=np.ones(width, np.float32),
        beta_D=np.zeros(width, np.float32),
        slides=slides,
        cells=cells,
        distance_raw=distance_raw,
        distance_coloured=distance_coloured,
        gate=gate,
    )


def not_commissioned(site: str, source: Source) -> SiteState:
    """Of a site that nobody fitted: its slides are answered as the model is."""
    return identity(site, 0, "not commissioned", source)


def demand_fits(state: SiteState, source: Source) -> None:
    """Raises SiteStateInvalid where a state was fitted to another model than the one of these source constants."""
    if state.source_sha256 != source.digest:
        raise SiteStateInvalid(
            f"The state of {state.site} was fitted to another model. Fit the site again for the model that is served."
        )


def _canonical(record: dict[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _numbers(vector_D: Features) -> list[float]:
    return [float(value) for value in vector_D]


def _vector(numbers: list[float]) -> Features:
    vector_D = np.array(numbers, np.float32)
    if vector_D.ndim != 1 or not np.isfinite(vector_D).all():
        raise ValueError("not a vector of finite numbers")
    return vector_D


def _densities(record: dict[str, list[float]]) -> Densities:
    (m0, m1, m2), (d0, d1, d2) = record["mean"], record["deviation"]
    return Densities((m0, m1, m2), (d0, d1, d2))
