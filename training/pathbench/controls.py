"""Negative controls: faults put in on purpose, each of which the bench must see; else the run is void.

A wrong normalisation, a leaked split, an encoder that has seen the test part, shuffled labels, permuted survival.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from training.data import tcga
from training.data.split import Split
from training.data.tcga import SurvivalTable
from training.errors import LeakageRefused, RecipeInvalid, TaskInvalid
from training.files import json_bytes, write_atomic
from training.pathbench import encoders, leakage
from training.pathbench.cache import FeatureCache
from training.pathbench.cells import code_version, config_digest
from training.pathbench.encoders import Encoder, EncoderInvalid, selftest
from training.pathbench.leakage import Origin
from training.pathbench.material import Material
from training.pathbench.probes import linear
from training.pathbench.protocols import Job
from training.pathbench.protocols.survival import mean_c_index
from training.pathbench.protocols.tile import labelled
from training.pathbench.recipe import BenchRecipe
from training.pathbench.records import cell_name
from training.pathbench.results import Control
from training.pathbench.tasks import read_task
from training.statistics import macro_auroc

_ALPHA = 0.05
_TRIES = 100


def run(
    recipe: BenchRecipe, folder: Path, material: Mapping[str, Material], cache: FeatureCache, survival: Sequence[str]
) -> tuple[Control, ...]:
    """The controls that the tasks allow; costly ones that were computed before are taken from `folder`.

    `survival` are the names of the survival tasks, of which the first is permuted. Raises what building the recipe's
    control encoders raises.
    """
    encoder = encoders.build(recipe.controls.encoder, profile=recipe.profile)
    found = [wrong_normalisation(encoders.build(recipe.controls.scaled, profile=recipe.profile))]
    tiles = {name: each for name, each in material.items() if read_task(name).kind == "tile"}
    permuted = len(tiles) + len(survival[:1])
    for name in list(tiles)[:1]:
        found += [leaked_split(name, tiles[name]), seen_test_part(name, tiles[name])]
    for name, each in tiles.items():
        job = Job(
            task=name, card=read_task(name), probe="linear", recipe=recipe, material=each, encoder=encoder, cache=cache
        )
        key = {
            "control": "shuffled labels",
            "encoder": encoder.meta.checksum,
            "data": each.sha256,
            "config": config_digest(job.card, recipe.linear, recipe.controls),
            "family": permuted,
            "code": code_version("tile"),
        }
        found.append(_kept(folder, key, lambda job=job: shuffled_labels(job, family=permuted)))
    for name in survival[:1]:
        table = tcga.load(read_task(name).cancer)
        key = {
            "control": "permuted survival",
            "data": [source.sha256 for source in table.sources],
            "config": config_digest(recipe.survival, recipe.controls),
            "family": permuted,
            "code": code_version("survival"),
        }
        found.append(
            _kept(folder, key, lambda name=name, table=table: permuted_survival(name, table, recipe, family=permuted))
        )
    return tuple(found)


def _kept(folder: Path, key: dict[str, Any], compute: Callable[[], Control]) -> Control:
    path = folder / "controls" / f"{cell_name(key)}.json"
    if path.is_file():
        return Control(**json.loads(path.read_bytes()))
    control = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json_bytes(asdict(control)))
    return control


def wrong_normalisation(encoder: Encoder) -> Control:
    """The encoder with its pixels scaled by constants that are not its own, against its recorded embedding.

    Raises RecipeInvalid for an encoder whose network scales pixels itself.
    """
    meta = encoder.meta
    if encoder.transform.mean is None:
        raise RecipeInvalid(f"The controls need an encoder with a normalisation of its own; {meta.id} has none.")
    swapped = replace(encoder.transform, mean=(0.9, 0.1, 0.5), std=(0.1, 0.9, 0.5))
    try:
        selftest.verify(replace(encoder, transform=swapped), selftest.record_path(meta.id, None))
        observed, caught = "accepted", False
    except EncoderInvalid as error:
        observed, caught = f"refused: {error.detail}", True
    return Control("wrong normalisation", meta.id, observed, "refused by the reference embedding", caught)


def leaked_split(task: str, material: Material) -> Control:
    """The task's split with one test group's first item moved to the training part, its other items left behind."""
    dataset, split = material.dataset, material.split
    test_M = split.indices("test")
    names, counts = np.unique(dataset.groups_N[test_M], return_counts=True)
    moved = test_M[dataset.groups_N[test_M] == names[counts.argmax()]][0]
    parts_N = split.parts_N.copy()
    parts_N[moved] = "train"
    try:
        leakage.require_disjoint(dataset, Split(split.dataset, parts_N, split.groups_N, split.sha256))
        observed, caught = "accepted", False
    except LeakageRefused as error:
        observed, caught = f"refused: {error.detail}", True
    return Control("leaked split", task, observed, "refused: a group in two parts", caught)


def seen_test_part(task: str, material: Material) -> Control:
    """An encoder whose card says that it was trained on the task's set."""
    dataset = material.dataset
    found = leakage.status(Origin(pretraining=(dataset.name,)), dataset, material.split)
    where = leakage.board(found, dataset)
    caught = found.status == "overlap" and where == "flagged"
    return Control(
        "encoder that saw the test part", task, f"{found.status}, {where} board", "overlap, flagged board", caught
    )


def shuffled_labels(job: Job, *, family: int) -> Control:
    """The linear probe on permuted labels: the mean test AUC over the permutations must not differ from 0.5.

    The interval is Student's over the permutations, Bonferroni-corrected for the `family` of such controls, so that a
    bench without a fault is declared void in one run of twenty at most. Where a permutation leaves one class only in a
    part, another is drawn. Raises TaskInvalid where none can be found.
    """
    material, dataset = job.material, job.material.dataset
    test_M = np.concatenate([cohort.indices_M for cohort in material.cohorts if cohort.split is material.split])
    parts = [labelled(job, dataset, indices_M)[0] for indices_M in (material.train_M, material.validation_M, test_M)]
    train, validation, test = parts
    labels_N = np.concatenate([part.labels_N for part in parts])
    ends = np.cumsum([len(part.labels_N) for part in parts])[:2]
    areas: list[float] = []
    for seed in range(_TRIES):
        mixed = np.random.default_rng((job.recipe.seed, seed)).permutation(labels_N)
        train_N, validation_N, test_N = np.split(mixed, ends)
        if min(len(np.unique(each)) for each in (train_N, validation_N, test_N)) < 2:
            continue
        answers = linear(
            replace(train, labels_N=train_N),
            replace(validation, labels_N=validation_N),
            [test.features_ND],
            len(dataset.classes),
            job.recipe.linear,
            (seed,),
        )
        areas.append(macro_auroc(answers.scores[0][0], test_N))
        if len(areas) == job.recipe.controls.permutations:
            break
    if len(areas) < job.recipe.controls.permutations:
        raise TaskInvalid(f"The labels of {job.task} cannot be shuffled: a part would hold one class only.")
    mean, low, high = student_interval(areas, _ALPHA / family)
    return Control(
        "shuffled labels",
        job.task,
        f"AUC {mean:.3f} [{low:.3f}, {high:.3f}] over {len(areas)} permutations",
        "an interval that covers 0.5",
        low <= 0.5 <= high,
    )


def permuted_survival(task: str, table: SurvivalTable, recipe: BenchRecipe, *, family: int) -> Control:
    """Outcomes dealt to other patients: the nested protocol must not differ from 0.5, as in `shuffled_labels`; what the
    released protocol makes of the same permutations is told beside it, as the size of its optimism."""
    settings = recipe.survival.model_copy(update={"seeds": recipe.survival.seeds[:1]})
    found: dict[str, list[float]] = {"nested": [], "released": []}
    for seed in range(recipe.controls.survival_permutations):
        order_N = np.random.default_rng((recipe.seed, seed)).permutation(len(table))
        mixed = replace(table, months_N=table.months_N[order_N], event_N=table.event_N[order_N])
        for protocol, values in found.items():
            values.append(mean_c_index(mixed, settings.model_copy(update={"protocol": protocol}), recipe.seed))
    mean, low, high = student_interval(found["nested"], _ALPHA / family)
    optimistic, *_ = student_interval(found["released"], _ALPHA)
    return Control(
        "permuted survival",
        task,
        f"nested C-index {mean:.3f} [{low:.3f}, {high:.3f}] over {len(found['nested'])} permutations; "
        f"released {optimistic:.3f}, {optimistic - mean:+.3f} by its optimism",
        "a nested interval that covers 0.5",
        low <= 0.5 <= high,
    )


def student_interval(values: Sequence[float], alpha: float) -> tuple[float, float, float]:
    """Mean, and Student's interval at 1 − alpha, of independent repetitions."""
    mean, count = float(np.mean(values)), len(values)
    half = float(student.ppf(1 - alpha / 2, count - 1) * np.std(values, ddof=1) / np.sqrt(count))
    return mean, mean - half, mean + half
