"""Run a bench, or what of it is missing:

    python -m training.pathbench run RECIPE.toml [--out DIR]
    python -m training.pathbench update [RECIPE.toml] [--out DIR]

A cell is named by the digests of all that its numbers depend on, so that a run that was killed goes on where it was,
several runs share the work, and a new encoder or task adds its own cells only. `update` also writes what changed.
"""

import argparse
import json
import logging
import os
import sys
import time
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from training import command
from training.data import tcga
from training.errors import TrainingError
from training.files import sha256_bytes
from training.pathbench import changelog, controls, encoders, leakage, results, tasks
from training.pathbench.cache import FeatureCache
from training.pathbench.cells import Cells, code_version, config_digest
from training.pathbench.encoders import Encoder
from training.pathbench.material import INTERNAL, Cohort, Material, gather
from training.pathbench.protocols import Job, Outcome, survival
from training.pathbench.recipe import BenchRecipe
from training.pathbench.records import Record, cell_name
from training.pathbench.results import NotRun, Results
from training.pathbench.tasks import PROBES, TaskCard, read_task
from training.runs import parse_recipe, read_toml, runs_folder

RECIPE = Path(__file__).parents[1] / "recipes" / "pathbench-small.toml"
OUT = Path(__file__).parents[2] / "docs" / "results"
_log = logging.getLogger(__name__)
_code = cache(code_version)


def main(arguments: list[str]) -> int:
    """0, or 1 with one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m training.pathbench run", description=__doc__)
    parser.add_argument("recipe", type=Path, nargs="?", default=RECIPE)
    parser.add_argument("--update", action="store_true", help="write what changed since the last published run")
    parser.add_argument("--out", type=Path, default=OUT, help="where results go; default: docs/results")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return command.status(lambda: run(given.recipe, given.out, update=given.update), "The bench's cells or results")


def run(recipe_path: Path, out: Path, *, update: bool = False) -> Results:
    """All cells of a recipe, published in `out`. Raises TrainingError, ResultInvalid where a control was not caught."""
    threadpool_limits(1)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    recipe = parse_recipe(BenchRecipe, read_toml(recipe_path))
    folder = runs_folder() / "pathbench"
    before = results.published(out / "pathbench.json")
    found = Bench(recipe, folder, before).run()
    results.publish(found, folder / "cells", out)
    if update:
        changelog.write(before, found.records, out / "pathbench-changes")
    return found


class Bench:
    """One pass over a recipe's cells: what is there is taken, what is missing is computed."""

    def __init__(self, recipe: BenchRecipe, folder: Path, before: tuple[Record, ...] = ()) -> None:
        self._recipe, self._folder = recipe, folder
        self._cells = Cells(folder / "cells", before)
        self._cache = FeatureCache(runs_folder() / "cache" / "features.sqlite")
        self._records: dict[str, Record] = {}
        self._not_run: list[NotRun] = []
        self._material: dict[str, Material | None] = {}

    def run(self) -> Results:
        """Every cell of the recipe. What another process is computing is waited for at the end."""
        recipe = self._recipe
        ids = encoders.registered() if recipe.encoders == "registered" else recipe.encoders
        ids = [model for model in ids if model not in recipe.without]
        names = tasks.registered() if recipe.tasks == "registered" else recipe.tasks
        cards = {name: read_task(name) for name in names}
        tables = [name for name, card in cards.items() if card.kind == "survival"]
        busy: list[tuple[str | None, str]] = [(None, name) for name in tables if not self._table(name, wait=False)]
        for model in ids:
            encoder = self._build(model)
            for name, card in cards.items():
                if encoder and card.kind != "survival" and not self._tiles(encoder, name, wait=False):
                    busy.append((model, name))
        for model, name in busy:
            if model is None:
                self._table(name, wait=True)
            elif encoder := self._build(model):
                self._tiles(encoder, name, wait=True)
        material = {name: found for name, found in self._material.items() if found}
        caught = controls.run(recipe, self._folder, material, self._cache, tables)
        records = sorted(self._records.values(), key=lambda r: (r.board, r.task, r.cohort, r.probe, r.model))
        return Results(recipe.name, tuple(records), tuple(dict.fromkeys(self._not_run)), caught)

    def _build(self, model: str) -> Encoder | None:
        try:
            return encoders.build(model, profile=self._recipe.profile)
        except TrainingError as error:
            self._not_run.append(NotRun(model, "all", error.detail))
            return None

    def _gather(self, task: str) -> Material | None:
        """A task's items, read once a run; None where its data do not fill it."""
        if task not in self._material:
            try:
                self._material[task] = gather(read_task(task))
            except TrainingError as error:
                self._not_run.append(NotRun("all", task, error.detail))
                self._material[task] = None
        return self._material[task]

    def _tiles(self, encoder: Encoder, task: str, *, wait: bool) -> bool:
        """An encoder's cells of a task; False where another process has them in hand."""
        material, card = self._gather(task), read_task(task)
        if material is None:
            return True
        with self._cells.claim(_short(f"{encoder.meta.id} {task}"), wait=wait) as mine:
            if not mine:
                return False
            for probe in PROBES[card.kind]:
                self._probe(encoder, task, card, probe, material)
        return True

    def _probe(self, encoder: Encoder, task: str, card: TaskCard, probe: str, material: Material) -> None:
        recipe = self._recipe
        job = Job(
            task=task, card=card, probe=probe, recipe=recipe, material=material, encoder=encoder, cache=self._cache
        )
        cohorts = {cohort.name: cohort for cohort in material.cohorts}
        keys = {name: _key(job, cohort) for name, cohort in cohorts.items()}
        missing = [name for name, key in keys.items() if self._cells.find(key) is None]
        if missing:
            start = time.monotonic()
            try:
                outcomes = list(import_module(tasks.KINDS[card.kind]).evaluate(job))
            except TrainingError as error:
                outcomes = [Outcome(cohort=name, refused=error.detail) for name in keys]
            for outcome in outcomes:
                if outcome.cohort in missing:
                    self._store(outcome, keys[outcome.cohort], _facts(job, cohorts[outcome.cohort]))
            self._say(encoder.meta.id, task, probe, outcomes, time.monotonic() - start)
        for name, key in keys.items():
            self._take(encoder.meta.id, f"{task} ({name}): {probe}", key)

    def _table(self, task: str, *, wait: bool) -> bool:
        """A survival task's cell; False where another process has it in hand."""
        card, recipe = read_task(task), self._recipe
        try:
            table = tcga.load(card.cancer)
        except TrainingError as error:
            self._not_run.append(NotRun(survival.MODEL, task, error.detail))
            return True
        key = {
            "model": survival.MODEL,
            "task": task,
            "probe": "nll",
            "cohort": INTERNAL,
            "config": config_digest(card, recipe.survival),
            "bootstrap": recipe.bootstrap,
            "seed": recipe.seed,
            "code": _code("survival"),
            "split": sha256_bytes("".join(source.sha256 for source in table.sources).encode()),
        }
        with self._cells.claim(_short(f"{survival.MODEL} {task}"), wait=wait) as mine:
            if not mine:
                return False
            if self._cells.find(key) is None:
                start = time.monotonic()
                try:
                    outcome = survival.evaluate(table, recipe.survival, replicates=recipe.bootstrap, seed=recipe.seed)
                except TrainingError as error:
                    outcome = Outcome(cohort=INTERNAL, refused=error.detail)
                facts = {"model": survival.MODEL, "type": "survival", "task": task, "organ": card.organ, "probe": "nll"}
                self._store(outcome, key, {**facts, "board": "survival", "leakage": "clean"})
                self._say(survival.MODEL, task, "nll", [outcome], time.monotonic() - start)
            self._take(survival.MODEL, task, key)
        return True

    def _store(self, outcome: Outcome, key: dict[str, Any], facts: dict[str, Any]) -> None:
        """A cell's record, or the sentence why it has none; `facts` say what was measured."""
        if outcome.refused:
            self._cells.refuse(key, outcome.refused)
        else:
            self._cells.write(_record(outcome, key, facts), outcome)

    def _take(self, model: str, what: str, key: dict[str, Any]) -> None:
        """A finished cell into the results."""
        found = self._cells.find(key)
        if isinstance(found, Record):
            self._records[found.cell] = found
        elif found is not None:
            self._not_run.append(NotRun(model, what, found))

    def _say(self, model: str, task: str, probe: str, outcomes: list[Outcome], seconds: float) -> None:
        """A line of the log for what was computed: figures, and every image that was skipped."""
        line = {
            "model": model,
            "task": task,
            "probe": probe,
            "seconds": round(seconds, 1),
            "pid": os.getpid(),
            "cells": [
                {
                    "cohort": each.cohort,
                    "value": each.figure and each.figure.value,
                    "refused": each.refused,
                    "notes": each.notes,
                }
                for each in outcomes
            ],
        }
        with (self._folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        figures = ", ".join(
            each.refused or f"{each.cohort} {each.figure.value:.3f}" for each in outcomes if each.figure or each.refused
        )
        _log.info("%s on %s, %s: %s (%.0f s)", model, task, probe, figures, seconds)


def _short(text: str) -> str:
    return sha256_bytes(text.encode())[:32]


def _key(job: Job, cohort: Cohort) -> dict[str, Any]:
    """What a cell's numbers depend on."""
    meta, recipe, kind = job.encoder.meta, job.recipe, job.card.kind
    sections = {
        "linear": recipe.dense if kind == "segmentation" else recipe.linear,
        "knn": recipe.neighbours,
        "retrieval": recipe.neighbours,
    }
    return {
        "model": meta.id,
        "encoder": meta.checksum,
        "transform": meta.transform,
        "profile": meta.profile,
        "pretraining": [*meta.pretraining, *meta.inherits_from],
        "task": job.task,
        "probe": job.probe,
        "cohort": cohort.name,
        "split": job.material.split.sha256,
        "data": job.material.sha256,
        "config": config_digest(job.card, sections.get(job.probe, recipe.bags)),
        "seeds": list(job.seeds),
        "bootstrap": recipe.bootstrap,
        "seed": recipe.seed,
        "code": _code(kind),
    }


def _facts(job: Job, cohort: Cohort) -> dict[str, Any]:
    """What was measured, and on which board it may stand."""
    leak = leakage.status(job.encoder.meta, cohort.dataset, cohort.split)
    composed = job.card.kind == "slide" and not isinstance(job.card.bag, str)
    return {
        "model": job.encoder.meta.id,
        "type": job.card.kind,
        "task": job.task,
        "organ": job.card.organ,
        "probe": job.probe,
        # Composed bags are a test of heads with a known truth, not a clinical task.
        "board": "flagged" if composed else leakage.board(leak, job.material.dataset),
        "leakage": leak.status,
        "reasons": leak.reasons,
    }


def _record(outcome: Outcome, key: dict[str, Any], facts: dict[str, Any]) -> Record:
    figure = outcome.figure
    assert figure is not None, "an outcome without a figure is refused"
    return Record(
        **facts,
        cohort=outcome.cohort,
        metric=outcome.metric,
        values=outcome.values,
        value=figure.value,
        low=figure.low,
        high=figure.high,
        groups=outcome.groups,
        items=outcome.items,
        grouping=outcome.grouping,
        notes=outcome.notes,
        also=outcome.also,
        optimistic=outcome.optimistic,
        test_reads=outcome.test_reads,
        key=key,
        predictions=f"{cell_name(key)}.npz" if outcome.predictions is not None else None,
    )
