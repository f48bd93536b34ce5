"""The files of results that training.smartccs.evaluate and composed have written, as page and conditions read them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.errors import RunInvalid
from training.runs import read_json
from training.smartccs.centres import CENTRES
from training.smartccs.slide import SOURCE

SHIPPED, DETECTOR = "smartccs-slide-imagenet-small", "smartccs-detect-small"
FEATURES = {
    "smartccs-slide-fresh-small": "fresh weights",
    "smartccs-slide-lite0-small": "cytology, from ImageNet's weights",
    "smartccs-slide-small": "cytology, from fresh weights",
    SHIPPED: "ImageNet (served)",
}
"""Recipes of slide heads, by the features that they learned on."""
ORDER = (SOURCE, *CENTRES)
SHIFTS = tuple(CENTRES)
_BY_CENTRE = ("missed", "modes", "norms", "different")

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Results:
    """Files by experiment and recipe; those of a centre each by its name besides, and why nothing could be measured at
    a centre."""

    whole: Mapping[tuple[str, str], Row]
    centres: Mapping[tuple[str, str], Mapping[str, Row]]
    failed: Mapping[tuple[str, str], Mapping[str, str]]
    composed: Mapping[str, Row]
    cpu_s: float

    def one(self, experiment: str, recipe: str = SHIPPED) -> Row | None:
        """A file of an experiment; None where it is not there."""
        return self.whole.get((experiment, recipe))

    def by_centre(self, experiment: str, recipe: str = SHIPPED) -> Mapping[str, Row]:
        """An experiment's files by centre, in the order in which they are shown."""
        found = self.centres.get((experiment, recipe), {})
        order = [name for name in ORDER if name in found]
        return {name: found[name] for name in (*order, *sorted(found.keys() - set(order)))}


def results(folder: Path) -> Results:
    """What a folder holds. Raises RunInvalid for a file that is cut off, and where files of one recipe are of different
    weights."""
    if not folder.is_dir():
        raise RunInvalid(f"There is no folder {folder.name} of results. Name one, or make it.")
    whole: dict[tuple[str, str], Row] = {}
    centres: dict[tuple[str, str], dict[str, Row]] = {}
    failed: dict[tuple[str, str], dict[str, str]] = {}
    composed: dict[str, Row] = {}
    weights: dict[str, tuple[str, str]] = {}
    spent = 0.0
    for path in sorted(folder.glob("*.json")):
        found = read_json(folder, path.name)
        try:
            spent += found["cpu_s"]
            if found["experiment"] == "composed":
                composed |= found["centres"]
                continue
            key = found["experiment"], found["recipe"]
            if "failed" in found:
                failed.setdefault(key, {})[found["centre"]] = found["failed"]
            elif found["experiment"] in _BY_CENTRE:
                centres.setdefault(key, {})[found["centre"]] = found
            else:
                whole[key] = found
            digest = found["weights_sha256"]
        except KeyError as error:
            raise RunInvalid(f"{path.name} is no file of results: it lacks {error.args[0]}. Remove it.") from None
        first = weights.setdefault(found["recipe"], (digest, path.name)) if digest else (digest, path.name)
        if first[0] != digest:
            raise RunInvalid(
                f"{path.name} and {first[1]} are of different weights of {found['recipe']}. Measure one of them again."
            )
    return Results(whole, centres, failed, composed, spent)
