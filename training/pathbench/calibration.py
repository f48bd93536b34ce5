"""Whether the bench's tests and intervals keep what they promise, on made data whose truth is known:

    python -m training.pathbench.calibration [--out docs/results/pathbench-calibration.md]

Coverage: how often a 95 % interval holds the true figure. Null: how often a test at α 0.05 finds a difference between
two heads that differ by their seed alone, where the labels are permuted and nothing can be learned. Power: how often it
finds an encoder worse in which a part of the patients bear another patient's features.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch.nn import functional as F

from training.files import json_bytes, write_atomic
from training.nn.mil import ABMIL
from training.pathbench import statistics
from training.pathbench.statistics import ALPHA, Units
from training.statistics import RunsScore, bootstrap, macro_auroc, replicates

TILES, WIDTH, TRAINED_ON = 6, 12, 80
"""Tiles a patient, numbers a tile, patients trained on: small, since only the tests are on trial."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is simulated. The defaults take about a minute on one idle core."""

    simulations: int = 400
    resamples: int = 400
    patients: int = 100
    null_tasks: int = 200
    power_tasks: int = 60
    seeds: tuple[int, ...] = (0, 1, 2)
    swapped: float = 0.05
    draws: int = 1000


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.pathbench.calibration", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/results/pathbench-calibration.md"))
    out: Path = parser.parse_args(arguments).out
    torch.set_num_threads(1)
    sizes = Sizes()
    found = {"coverage": coverage(sizes), "null": null(sizes), "power": power(sizes)}
    write_atomic(out.with_suffix(".json"), json_bytes(found))
    write_atomic(out, page(sizes, found).encode())
    return 0


def coverage(sizes: Sizes, seed: int = 0) -> dict[str, float]:
    """The share of 95 % intervals of an AUROC that hold the true one, resampling patients, and resampling tiles.

    A patient has one label and 1 to 12 tiles, whose scores share the patient's own deviation: the true area is
    Φ(shift / √(2·(patients' + tiles' variance))).
    """
    rng = np.random.default_rng(seed)
    shift, of_patient, of_tile = 1.2, 1.0, 0.7
    truth = stats.norm.cdf(shift / np.sqrt(2 * (of_patient**2 + of_tile**2)))
    held = {"patients": 0, "tiles": 0}
    for simulation in range(sizes.simulations):
        patient_N = np.repeat(np.arange(sizes.patients), rng.integers(1, 13, sizes.patients))
        labels_N = patient_N % 2
        score_N = shift * labels_N + rng.normal(0, of_patient, sizes.patients)[patient_N]
        score_N += rng.normal(0, of_tile, len(patient_N))
        score = RunsScore(macro_auroc, np.stack([-score_N, score_N], 1)[None], labels_N)
        for unit, groups_N in (("patients", patient_N), ("tiles", np.arange(len(patient_N)))):
            found = bootstrap(score, groups_N, labels_N, sizes.resamples, simulation)
            held[unit] += int(found.low <= truth <= found.high)
    return {unit: count / sizes.simulations for unit, count in held.items()}


def null(sizes: Sizes, seed: int = 1) -> dict[str, float]:
    """The shares of tasks without truth in which each test finds that one seed of a head beats another.

    `replicates` is the signed-rank test on bootstrap replicates, which this package refuses and some evaluation code
    does: its p measures how many were drawn.
    """
    found: dict[str, list[bool]] = {"paired_bootstrap": [], "delong": [], "replicates": []}
    for task, bags in enumerate(_tasks(sizes.null_tasks, sizes.patients, shift=0.0, seed=seed)):
        first, second = (_answers(bags, bags.features_PTD, 2 * task + k) for k in range(2))
        scores = [RunsScore(macro_auroc, answers_NC[None], bags.test_labels) for answers_NC in (first, second)]
        groups_N = np.arange(len(bags.test_labels))
        gap = statistics.paired_bootstrap(*scores, groups_N, bags.test_labels, sizes.resamples, task)
        drawn = replicates(scores, groups_N, bags.test_labels, sizes.resamples, task).scores_BK
        found["paired_bootstrap"].append(gap.p < ALPHA)
        found["delong"].append(statistics.delong(first[:, 1], second[:, 1], bags.test_labels == 1).p < ALPHA)
        found["replicates"].append(stats.wilcoxon(drawn[:, 0], drawn[:, 1], method="asymptotic").pvalue < ALPHA)
    return {test: float(np.mean(rejected)) for test, rejected in found.items()}


def power(sizes: Sizes, seed: int = 2) -> list[dict[str, float]]:
    """How often the signed-rank test over tasks finds the worse encoder, by tasks and by seeds averaged a task.

    The worse encoder gives `swapped` of the patients another one's features. Sets of tasks are drawn from a pool.
    """
    gaps_TS = np.array(
        [
            [_area(bags, whole, s) - _area(bags, swapped, s) for s in sizes.seeds]
            for bags, whole, swapped in _degraded(sizes, seed)
        ]
    )
    rng, lines = np.random.default_rng(seed), []
    for tasks in (6, 10, 20, 40):
        for seeds in sorted({1, len(sizes.seeds)}):
            gaps_T = gaps_TS[:, :seeds].mean(1)
            drawn = (gaps_T[rng.integers(0, len(gaps_T), tasks)] for _ in range(sizes.draws))
            share = float(np.mean([_finds(gaps) for gaps in drawn]))
            lines.append({"tasks": tasks, "seeds": seeds, "loss": float(gaps_T.mean()), "found": share})
    return lines


def binomial_interval(tries: int, share: float = ALPHA) -> tuple[float, float]:
    """The 95 % interval of a share that is `share` in truth, of so many tries."""
    low, high = stats.binom.interval(0.95, tries, share)
    return float(low / tries), float(high / tries)


@dataclass(frozen=True, slots=True, eq=False)
class _Bags:
    """Patients P with T tiles of D numbers and a label each; the first `TRAINED_ON` are trained on."""

    features_PTD: np.ndarray
    labels_P: np.ndarray

    @property
    def test_labels(self) -> np.ndarray:
        return self.labels_P[TRAINED_ON:]


def _tasks(count: int, tested: int, shift: float, seed: int) -> Iterator[_Bags]:
    """Tasks whose labels move the tiles by `shift` along a direction of the task's own; 0 is a permuted label."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        labels_P = rng.permutation(np.arange(TRAINED_ON + tested) % 2)
        direction_D = rng.normal(size=WIDTH)
        features_PTD = rng.normal(size=(len(labels_P), TILES, WIDTH)) + rng.normal(size=(len(labels_P), 1, WIDTH))
        features_PTD += shift * labels_P[:, None, None] * direction_D / np.linalg.norm(direction_D)
        yield _Bags(features_PTD.astype(np.float32), labels_P)


def _degraded(sizes: Sizes, seed: int) -> Iterator[tuple[_Bags, np.ndarray, np.ndarray]]:
    """Tasks with the features of a good encoder, and of the same one with some patients' features exchanged."""
    rng = np.random.default_rng(seed + 1)
    for bags in _tasks(sizes.power_tasks, sizes.patients, shift=1.5, seed=seed):
        patients = np.arange(len(bags.labels_P))
        moved = rng.choice(patients, round(sizes.swapped * len(patients)), replace=False)
        source = patients.copy()
        source[moved] = np.roll(moved, 1)
        yield bags, bags.features_PTD, bags.features_PTD[source]


def _answers(bags: _Bags, features_PTD: np.ndarray, seed: int) -> np.ndarray:
    """(N, 2) probabilities of the tested patients by an attention head of this seed."""
    torch.manual_seed(seed)
    head = ABMIL(WIDTH, 2, hidden=16, attention=8, dropout=0.1)
    optimiser = torch.optim.Adam(head.parameters(), 1e-2, weight_decay=1e-5)
    features, labels = torch.from_numpy(features_PTD), torch.from_numpy(bags.labels_P)
    for _ in range(30):
        loss = F.cross_entropy(head(features[:TRAINED_ON]), labels[:TRAINED_ON])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    head.eval()
    with torch.no_grad():
        return head(features[TRAINED_ON:]).softmax(1).numpy()


def _area(bags: _Bags, features_PTD: np.ndarray, seed: int) -> float:
    return macro_auroc(_answers(bags, features_PTD, seed), bags.test_labels)


def _finds(gaps_T: np.ndarray) -> bool:
    ids = tuple(map(str, range(len(gaps_T))))
    found = statistics.wilcoxon(Units(ids, gaps_T), Units(ids, np.zeros(len(gaps_T))))
    return found.p < ALPHA and bool(np.median(gaps_T) > 0)


def page(sizes: Sizes, found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    low, high = binomial_interval(sizes.null_tasks)
    spread = 1.96 * np.sqrt(0.95 * 0.05 / sizes.simulations)
    rates, covered = found["null"], found["coverage"]
    curve = [f"| {x['tasks']} | {x['seeds']} | {x['loss']:.3f} | {x['found']:.2f} |" for x in found["power"]]
    return f"""# PathBench: do its tests keep what they promise?

Made data, whose truth is known; no patient and no published encoder is in it. This page is made by the command:

    python -m training.pathbench.calibration

## Coverage

{sizes.simulations} simulations of {sizes.patients} patients with 1 to 12 tiles each, {sizes.resamples} resamples:
share of the 95 % intervals of an AUROC that hold the true one (± {spread:.3f}).

| resampled | coverage |
|---|---|
| patients, all their tiles together | {covered["patients"]:.3f} |
| tiles (not valid: too narrow) | {covered["tiles"]:.3f} |

## Nothing to find

{sizes.null_tasks} tasks with permuted labels, {sizes.patients} test patients each; two attention heads that differ by
their seed alone. A test at α 0.05 finds a difference in the share of tasks below; within [{low:.3f}, {high:.3f}]
(binomial 95 %) it keeps its promise.

| test | finds a difference |
|---|---|
| paired bootstrap over patients | {rates["paired_bootstrap"]:.3f} |
| DeLong | {rates["delong"]:.3f} |
| signed-rank test on bootstrap replicates (not valid; the bench refuses it) | {rates["replicates"]:.3f} |

## Something to find

In the worse encoder {sizes.swapped:.0%} of the patients bear another patient's features. Share of {sizes.draws} sets of
tasks, drawn from {sizes.power_tasks}, in which the signed-rank test over tasks finds it worse at α 0.05.

| tasks | seeds averaged a task | mean loss of AUROC | found |
|---|---|---|---|
{chr(10).join(curve)}
"""


if __name__ == "__main__":
    raise SystemExit(main())
