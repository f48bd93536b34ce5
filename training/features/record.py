"""What a feature file says of how its features were made. Features whose records differ are never mixed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from training.features.errors import FeaturesInvalid, FeaturesMixed

CODE = "pathserve-features-1"
"""Version of the rules by which tiles are chosen, cut and ordered. A change of any of them makes another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Encoder and checksum of what computed; toolkit profile and transform of what it was given; `dtype` it computed
    in; `embedding` the rule by which its output became a vector; side of a tile in pixels and in µm."""

    encoder: str
    checksum: str
    profile: str
    transform: str
    dtype: str
    embedding: str
    tile_px: int
    tile_um: float
    licence: str
    random: bool
    code: str = CODE

    def attributes(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, attributes: Mapping[str, Any], file: str) -> "Record":
        """The record among a file's attributes. Raises FeaturesInvalid."""
        names = [field.name for field in fields(cls)]
        if missing := [name for name in names if name not in attributes]:
            raise FeaturesInvalid(
                f"{file} does not say its {missing[0]}, so nobody knows how its features were made. Compute it again."
            )
        return cls(**{name: _plain(attributes[name]) for name in names})

    def demand_same(self, other: "Record", file: str) -> None:
        """Raises FeaturesMixed with the first field in which `other`, the record of `file`, differs from this one."""
        for field in fields(self):
            here, there = getattr(self, field.name), getattr(other, field.name)
            if here != there:
                raise FeaturesMixed(
                    f"{file} was made with another {field.name} ({_short(there)}, not {_short(here)}). Features that "
                    "were not made alike are not mixed: use another output folder, or remove the file."
                )


def _plain(value: Any) -> Any:
    """An HDF5 attribute as Python has it."""
    return value.item() if hasattr(value, "item") else value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
