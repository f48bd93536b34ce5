"""Measure Smart-CCS: `python -m training.smartccs.evaluate EXPERIMENT RECIPE --out docs/results/smart-ccs`.

RECIPE names a finished run: of a detector for `detector`, of a slide head for all others (`encoders` asks only that the
recipe file be there). Each experiment writes a JSON file of its own, those that go by centre one a centre; a file that
is there already, of the same weights and settings, is left alone, so that a run that was interrupted goes on. The page
is made of them by training.smartccs.page. All is of synthetic bags and simulated centres, but what says otherwise.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from gateway.domain.bethesda import NAMES
from gateway.slides.site_fit import SiteNotFittable
from training import command
from training.data.split import PARTS
from training.errors import DataMissing, RunInvalid, TaskInvalid
from training.files import json_bytes, write_atomic
from training.repeatable import repeatable
from training.runs import Run, find_run, parse_recipe, read_json, read_toml
from training.smartccs import (
    data,
    head_controls,
    missed,
    modes,
    probes,
    recalibrate,
    second_sources,
    site_gate,
    slide,
    streams,
)
from training.smartccs.centres import CENTRES
from training.smartccs.detector import load as load_detector
from training.smartccs.detector_figures import detector_figures
from training.smartccs.embed import Look, annotated
from training.smartccs.recipe import DetectorRecipe
from training.smartccs.results import DETECTOR, FEATURES
from training.smartccs.slide import SlideRecipe
from training.smartccs.trial import AtCentre, Found, Trial, at_centre, open_trial
from training.ssl.recipe import read_recipe

SOURCES = (slide.SOURCE, *CENTRES)
_COUNT = 1000
_RECIPES = Path(__file__).parents[1] / "recipes"


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line. `updates`: of the encoder's norms, in `norms`."""

    experiment: str
    recipe: str
    out: Path
    centres: tuple[str, ...]
    updates: int
    only: tuple[str, ...]
    again: bool


class Bench:
    """A run of the slide head, opened when first asked for, and its centres."""

    def __init__(self, recipe: str) -> None:
        self._recipe = recipe
        self._centres: dict[str, AtCentre] = {}

    @cached_property
    def trial(self) -> Trial:
        return open_trial(self._recipe)

    def at(self, name: str) -> AtCentre:
        """A centre; looked at once."""
        if name not in self._centres:
            print(f"{name}: its cells are looked at, as they are and with colours mapped", file=sys.stderr)
            self._centres[name] = at_centre(self.trial, name)
        return self._centres[name]


def evaluate(asked: Asked) -> None:
    """Do an experiment, writing its files. Raises TrainingError."""
    repeatable()
    asked.out.mkdir(parents=True, exist_ok=True)
    EXPERIMENTS[asked.experiment](asked)


def _detector(asked: Asked) -> None:
    run = find_run(asked.recipe)
    recipe = parse_recipe(DetectorRecipe, run.recipe)

    def work() -> Found:
        return detector_figures(load_detector(run), recipe, data.load("test"), _COUNT)

    _written(asked, digests_of(run), {}, work)


def _encoders(asked: Asked) -> None:
    """Begun anew each time: it shows the encoders that are there, whose answers are kept in the runs folder."""
    path = _RECIPES / f"{asked.recipe}.toml"
    path = path if path.is_file() else Path(asked.recipe)
    recipe, _ = read_recipe(SlideRecipe, path)
    asked = replace(asked, recipe=recipe.name, again=True)
    learned = {}
    for settings in probes.ENCODERS.values():
        with suppress(RunInvalid):
            if settings.kind == "teacher":
                learned[str(settings.recipe)] = find_run(str(settings.recipe)).weights_sha256
    _written(asked, learned, {}, lambda: probes.probes(recipe, probes.ENCODERS))


_RUNS = (
    "smartccs-pretrain-small",
    "smartccs-pretrain-lite0-small",
    "smartccs-pretrain-shuffled-small",
    "smartccs-encoder-lite0-small",
    "smartccs-detect-small",
    DETECTOR,
    *FEATURES,
)
_TOLD = ("training", "heads", "control_shuffled_labels", "served", "cells", "test")
"""Of metrics.json what a page says of a training."""


def _runs(asked: Asked) -> None:
    """What the trainings were: no experiment, and begun anew each time."""
    found = {}
    for name in dict.fromkeys((asked.recipe, *_RUNS)):
        with suppress(RunInvalid):
            run = find_run(name)
            told = {key: run.metrics[key] for key in _TOLD if key in run.metrics}
            told["served"] = {key: value for key, value in told.get("served", {}).items() if key != "source"}
            found[name] = {
                "stage": run.recipe["stage"],
                "seed": run.manifest["seed"],
                "git_commit": run.manifest["git_commit"],
                "git_changed_files": run.manifest["git_changed_files"],
                "digests": digests_of(run),
                "cpu_s": run.metrics["cpu_s"],
                "changes": _changes(run.recipe, _RECIPES / f"{name}.toml"),
                **told,
            }
    _written(replace(asked, again=True), {}, {}, lambda: {"runs": found})


def _blocks(asked: Asked) -> None:
    """Annotated cells by part, block and class: no experiment, and begun anew each time."""
    _written(replace(asked, again=True), {}, {}, lambda: {"parts": blocks(data.load())})


def blocks(fields: Sequence[data.Field]) -> Found:
    """By part and group of fields: how many, and the nuclei annotated in them by class."""
    rows: Found = {part: {} for part in PARTS}
    for part, group in sorted({(field.part, field.group) for field in fields}):
        inside = [field for field in fields if (field.part, field.group) == (part, group)]
        counted_C = data.counts(inside)[PARTS.index(part)]
        rows[part][group] = {"fields": len(inside), "cells": dict(zip(NAMES, counted_C.tolist(), strict=True))}
    return rows


def digests_of(run: Run) -> dict[str, str]:
    """Of a run's weights and of those that it rests on, by what they are: detector, encoder, head."""
    stage = str(run.recipe["stage"])
    found = {_KINDS.get(stage, "encoder"): run.weights_sha256}
    if stage == "slide":
        found |= {role: parent["weights_sha256"] for role, parent in run.manifest["starts_from"].items()}
        found["encoder"] = run.metrics["served"]["encoder_sha256"]  # one that no run learned has a digest too
    return found


_KINDS = {"detect": "detector", "slide": "head"}


def _changes(recipe: dict[str, Any], file: Path) -> list[str]:
    """The settings of a run that differ from those of the recipe's file, as `--set` would say them; how it is published
    is none of its training."""
    recipe = {key: value for key, value in recipe.items() if key != "publish"}
    now, then = _flat(recipe), _flat(read_toml(file)) if file.is_file() else {}
    return sorted(f"{key}={value}" for key, value in now.items() if then and then.get(key) != value)


def _flat(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return flat


def _of_trial(work: Callable[[Bench, Asked], Found]) -> Callable[[Asked], None]:
    """An experiment in one file."""

    def do(asked: Asked) -> None:
        bench = Bench(asked.recipe)
        weights = digests_of(find_run(asked.recipe))
        _written(asked, weights, {"centres": list(asked.centres)}, lambda: work(bench, asked))

    return do


def _by_centre(work: Callable[[Bench, Asked, str], Found]) -> Callable[[Asked], None]:
    """An experiment of a file a centre."""

    def do(asked: Asked) -> None:
        bench = Bench(asked.recipe)
        weights = digests_of(find_run(asked.recipe))
        for name in asked.centres:
            settings = {"centre": name, "only": list(asked.only)}
            settings |= {"updates": asked.updates} if asked.experiment == "norms" else {}
            _written(asked, weights, settings, lambda name=name: work(bench, asked, name), name)

    return do


def _modes(bench: Bench, asked: Asked, name: str) -> Found:
    return modes.modes_at(bench.trial, bench.at(name), asked.only)


def _missed(bench: Bench, asked: Asked, name: str) -> Found:
    return missed.missed_at(bench.trial, bench.at(name))


def _norms(bench: Bench, asked: Asked, name: str) -> Found:
    return modes.norms_at(bench.trial, bench.at(slide.SOURCE), bench.at(name), asked.updates)


def _gate(bench: Bench, asked: Asked) -> Found:
    source = bench.at(slide.SOURCE)
    return {
        "third_source_set": site_gate.third_source_set(bench.trial, source),
        "one_block": {
            group: site_gate.one_block(bench.trial, source, group)
            for group in sorted({field.group for field in bench.trial.unseen("test")})
        },
        "shifts": {
            name: site_gate.shift(bench.trial, bench.at(name)) for name in asked.centres if name != slide.SOURCE
        },
        "strangers": site_gate.strangers(bench.trial),
    }


def _prevalence(bench: Bench, asked: Asked) -> Found:
    return {
        "by_centre": {name: streams.prevalence_at(bench.trial, bench.at(name)) for name in asked.centres},
        "sorted_stream": streams.sorted_stream(bench.trial, bench.at(slide.SOURCE)),
    }


def _order(bench: Bench, asked: Asked) -> Found:
    return {"by_centre": {name: streams.order_at(bench.trial, bench.at(name)) for name in asked.centres}}


def _forgetting(bench: Bench, asked: Asked) -> Found:
    source = bench.at(slide.SOURCE)
    return {
        "by_target": {
            name: streams.forgetting(bench.trial, source, bench.at(name))
            for name in asked.centres
            if name != slide.SOURCE
        }
    }


def _recalibrated(bench: Bench, asked: Asked) -> Found:
    return {"by_centre": {name: recalibrate.recalibrated_at(bench.trial, bench.at(name)) for name in asked.centres}}


def _different(asked: Asked) -> None:
    """A really different set, of which nothing is written where it is not at hand; its cells are annotated. Half of its
    groups stand for commissioning, half are measured."""
    bench = Bench(asked.recipe)
    weights = digests_of(find_run(asked.recipe))
    for name in second_sources.READERS:
        try:
            fields = second_sources.load(name)
        except DataMissing:
            print(f"There is no set {name} among the data: nothing is measured on it.", file=sys.stderr)
            continue
        groups = sorted({field.group for field in fields})
        halves = {group: ("validation", "test")[place % 2] for place, group in enumerate(groups)}
        dealt = [replace(field, part=halves[field.group]) for field in fields]

        def work(name: str = name, dealt: Sequence[data.Field] = dealt) -> Found:
            look = Look(f"annotated cells of {name}", annotated)
            return modes.modes_at(bench.trial, at_centre(bench.trial, name, look, dealt), asked.only)

        _written(asked, weights, {"centre": name, "only": list(asked.only)}, work, name)


EXPERIMENTS: dict[str, Callable[[Asked], None]] = {
    "runs": _runs,
    "blocks": _blocks,
    "detector": _detector,
    "encoders": _encoders,
    "cells": _of_trial(lambda bench, _: head_controls.cells_against(bench.trial)),
    "released": _of_trial(lambda bench, _: head_controls.released(bench.trial)),
    "missed": _by_centre(_missed),
    "modes": _by_centre(_modes),
    "norms": _by_centre(_norms),
    "different": _different,
    "prevalence": _of_trial(_prevalence),
    "gate": _of_trial(_gate),
    "order": _of_trial(_order),
    "forgetting": _of_trial(_forgetting),
    "recalibrated": _of_trial(_recalibrated),
}


def _written(
    asked: Asked,
    digests: dict[str, str],
    settings: dict[str, Any],
    work: Callable[[], Found],
    centre: str | None = None,
) -> None:
    """One file of an experiment, unless it is there already."""
    name = "-".join([asked.experiment, asked.recipe, *([] if centre is None else [centre.replace(" ", "_")])])
    path = asked.out / f"{name}.json"
    said = {"experiment": asked.experiment, "recipe": asked.recipe, "digests": digests, **settings}
    if not asked.again and path.is_file():
        try:
            there = read_json(asked.out, path.name)
        except RunInvalid:
            there = {}
        if {key: there.get(key) for key in said} == said:
            print(f"{path.name} is there already.", file=sys.stderr)
            return
    started = time.process_time()
    try:
        found = work()
    except (TaskInvalid, SiteNotFittable) as error:
        if centre is None:
            raise
        # A centre at which nothing is found is a result too, and no reason to leave out the others.
        found = {"failed": error.detail}
        print(f"{centre}: {error.detail}", file=sys.stderr)
    spent = {"cpu_s": round(time.process_time() - started, 1)}
    write_atomic(path, json_bytes(said | found | spent))
    print(f"{path.name}: {spent['cpu_s'] / 60:.1f} CPU-minutes", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 1 with one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m training.smartccs.evaluate", description=__doc__)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("recipe")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--centres", nargs="+", choices=SOURCES, default=SOURCES)
    parser.add_argument("--updates", type=int, default=24, help="of the norms, by batches of 8 slides; default: 24")
    parser.add_argument("--only", nargs="+", choices=modes.SHORT, default=(), help="modes to measure; default: all")
    parser.add_argument("--again", action="store_true", help="measure anew what is there already")
    chosen = parser.parse_args(arguments)
    if chosen.updates < 1:
        parser.error("--updates is 1 or more")

    def work() -> None:
        evaluate(
            Asked(
                chosen.experiment,
                chosen.recipe,
                chosen.out,
                tuple(chosen.centres),
                chosen.updates,
                tuple(chosen.only),
                chosen.again,
            )
        )

    return command.status(work, "The file")


if __name__ == "__main__":
    sys.exit(main())
