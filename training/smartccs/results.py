"""The files of results that training.smartccs.evaluate and composed have written, as page and conditions read them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.errors import RunInvalid
from training.runs import read_json, read_toml
from training.smartccs.centres import CENTRES
from training.smartccs.slide import SOURCE

SHIPPED = "smartccs-slide-imagenet-small"
DETECTOR = str(read_toml(Path(__file__).parents[1] / "recipes" / f"{SHIPPED}.toml")["detector"])
FEATURES = {
    "smartccs-slide-fresh-small": "fresh weights",
    "smartccs-slide-lite0-small": "cytology, from ImageNet's weights",
    "smartccs-slide-small": "cytology, from fresh weights",
    SHIPPED: "ImageNet (served)",
}
"""Recipes of slide heads, by the features that they learned on."""
MODELS = {"smartccs_detect": "detector", "smartccs_embed": "encoder", "smartccs_slide": "head"}
"""The served models, by what files of results call their weights."""
ORDER = (SOURCE, *CENTRES)
SHIFTS = tuple(CENTRES)
_BY_CENTRE = ("missed", "modes", "norms", "different")
_STUDY = "pathserve-study-report-1"
"""What reports of `pathserve study` say of themselves; they lie here as they were written."""

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Results:
    """Files by experiment and recipe; those of a centre each by its name besides, and why nothing could be measured at
    a centre. `studies`: reports of studies by their files. `stale`: files that are left out, and why."""

    whole: Mapping[tuple[str, str], Row]
    centres: Mapping[tuple[str, str], Mapping[str, Row]]
    failed: Mapping[tuple[str, str], Mapping[str, str]]
    composed: Mapping[str, Row]
    studies: Mapping[str, Row]
    stale: Mapping[str, str]
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
    """What a folder holds. A file of other weights than those of the trainings that are shown, or of a head on another
    detector than the served head's, is left out as stale. Raises RunInvalid for a file that is cut off or that does not
    say what it is of, and where files of one recipe are of different weights and no training says which are shown."""
    if not folder.is_dir():
        raise RunInvalid(f"There is no folder {folder.name} of results. Name one, or make it.")
    whole: dict[tuple[str, str], Row] = {}
    centres: dict[tuple[str, str], dict[str, Row]] = {}
    failed: dict[tuple[str, str], dict[str, str]] = {}
    composed: dict[str, Row] = {}
    studies: dict[str, Row] = {}
    stale: dict[str, str] = {}
    first: dict[str, tuple[Mapping[str, str], str]] = {}
    spent = 0.0
    files = {path.name: read_json(folder, path.name) for path in sorted(folder.glob("*.json"))}
    shown = _shown(files)
    for file, found in files.items():
        try:
            if found.get("format") == _STUDY:
                weights = {
                    MODELS[each["folder"]]: each["version"]["weights_sha256"] for each in found["study"]["models"]
                }
                if other := _other(SHIPPED, weights, shown):
                    stale[file] = other
                else:
                    studies[file] = found
                continue
            experiment, cpu_s, digests = found["experiment"], found["cpu_s"], found["digests"]
            recipe = SHIPPED if experiment == "composed" else found["recipe"]
            if other := _other(recipe, digests, shown):
                stale[file] = other
                continue
            comparable = digests and recipe not in shown and experiment != "encoders"
            before = first.setdefault(recipe, (digests, file)) if comparable else (digests, file)
            if before[0] != digests:
                raise RunInvalid(
                    f"{file} and {before[1]} are of different weights of {recipe}. Measure one of them again."
                )
            spent += cpu_s
            if experiment == "composed":
                composed |= found["centres"]
            elif "failed" in found:
                failed.setdefault((experiment, recipe), {})[found["centre"]] = found["failed"]
            elif experiment in _BY_CENTRE:
                centres.setdefault((experiment, recipe), {})[found["centre"]] = found
            else:
                whole[experiment, recipe] = found
        except KeyError as error:
            raise RunInvalid(f"{file} is no file of results: it lacks {error.args[0]}. Remove it.") from None
    return Results(whole, centres, failed, composed, studies, stale, spent)


def _shown(files: Mapping[str, Row]) -> Mapping[str, Mapping[str, str]]:
    """The digests of the trainings that are shown, by recipe."""
    told = next((found["runs"] for found in files.values() if found.get("experiment") == "runs"), {})
    return {recipe: run["digests"] for recipe, run in told.items()}


def _other(recipe: str, digests: Mapping[str, str], shown: Mapping[str, Mapping[str, str]]) -> str | None:
    """Of what other weights a file is than those that are shown; None where it is of these, or nothing is known."""
    of_run = shown.get(recipe, {})
    for kind, digest in digests.items():
        # What compares encoders names the trainings themselves.
        known = next(iter(shown[kind].values())) if kind in shown else of_run.get(kind, digest)
        if digest != known:
            return f"{kind} `{digest[:12]}`, and that of the trainings above is `{known[:12]}`"
    served = shown.get(SHIPPED, {}).get("detector")
    if recipe in (*FEATURES, DETECTOR) and served and digests.get("detector", served) != served:
        return f"detector `{digests['detector'][:12]}`, and the served head's is `{served[:12]}`"
    return None
