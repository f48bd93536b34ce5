"""The tissue system's figures, and the page made of them:

    python -m training.tissue.evaluate RUN... --out docs/results/tissue.md

RUN is a run folder; only its recipe, metrics and manifest are read.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from training import command
from training.data.dataset import Dataset
from training.files import write_atomic
from training.operating_point import operating_point
from training.pages import interval, score_table, shown
from training.statistics import (
    balanced_accuracy,
    calibration_error,
    difference,
    figure,
    macro_auroc,
    macro_f1,
    recalls,
    resamples,
)
from training.tissue.probe import Protocol

SCORES = {
    "balanced accuracy": balanced_accuracy,
    "macro F1": macro_f1,
    "macro AUROC (one versus rest)": macro_auroc,
    "expected calibration error": calibration_error,
}


def figures(
    runs_RNC: np.ndarray, labels_N: np.ndarray, groups_N: np.ndarray, protocol: Protocol, seed: int
) -> dict[str, Any]:
    """Every score of one classifier with its interval."""
    draws = resamples(labels_N, groups_N, protocol.bootstrap, seed)
    return {name: asdict(figure(score, runs_RNC, labels_N, draws)) for name, score in SCORES.items()}


def summary(tiles: Dataset, runs: dict[str, np.ndarray], protocol: Protocol, seed: int) -> dict[str, Any]:
    """Figures of all rows, recall per class of the first, its paired difference to each other one, its confusion."""
    labels_N, draws = tiles.labels_N, resamples(tiles.labels_N, tiles.groups_N, protocol.bootstrap, seed)
    names = list(runs)
    first = runs[names[0]]
    recall = {
        name: asdict(figure(lambda p, y, k=index: float(recalls(p, y)[k]), first, labels_N, draws))
        for index, name in enumerate(tiles.classes)
    }
    confusion = np.zeros((len(tiles.classes),) * 2, int)
    for run_NC in first:
        np.add.at(confusion, (labels_N, run_NC.argmax(1)), 1)
    return {
        "grouping": tiles.grouping,
        "tiles": len(labels_N),
        "groups": len(np.unique(tiles.groups_N)),
        "classes": list(tiles.classes),
        "protocol": protocol.model_dump(mode="json"),
        "rows": {name: figures(run, labels_N, tiles.groups_N, protocol, seed) for name, run in runs.items()},
        "recall": recall,
        "differences": {
            name: asdict(difference(balanced_accuracy, first, runs[name], labels_N, draws)) for name in names[1:]
        },
        "confusion": confusion.tolist(),
    }


def answering(runs_RNC: np.ndarray, labels_N: np.ndarray, accuracy: float) -> dict[str, Any]:
    """The operating point of the cross-validated answers, and what it costs: the share of tiles still answered."""
    top = runs_RNC.max(2).ravel()
    point = operating_point(top, (runs_RNC.argmax(2) == labels_N).ravel(), accuracy, least=0.25)
    return {
        "min_probability": point.min_probability,
        "aim": accuracy,
        "accuracy_when_answered": round(point.reached, 4),
        "answered": round(float((top >= point.min_probability).mean()), 4),
    }


def page(folders: list[Path]) -> str:
    """The results page of some run folders, in Markdown."""
    text = [
        "# Tissue classification: figures",
        "",
        "Research use, not a medical device. Seven classes, ten tiles each (CRC-VAL-HE-7K, CC BY 4.0, 224 px at 0.5 µm",
        "per pixel). The patients are unknown: every figure is `patient-unknown`, tiles of one patient may lie on both",
        "sides of a split, and 70 tiles carry no strong claim. `[low, high]` is the 95 % bootstrap interval over",
        "groups (near-duplicates stay together); chance is 0.14 in balanced accuracy. Augmentation, penalty and",
        "temperature are chosen on inner folds of the training part.",
        "",
        "Rows: `head` and `probe` are what is served (an encoder is measured by a probe on its embedding);",
        "`colour statistics` is the baseline; a `control` shows what the protocol finds where there is little or",
        "nothing to find; an `ablation` uses a part of the embedding. Pooling at three depths was kept after seeing",
        "the ablations, so its gain over the last map alone is optimistic.",
        "",
        "This page is made by the command, not by hand:",
        "",
        "    python -m training.tissue.evaluate " + " ".join(map(str, folders)) + " --out docs/results/tissue.md",
    ]
    for folder in folders:
        text += ["", *_section(folder)]
    return "\n".join(text) + "\n"


def _section(folder: Path) -> list[str]:
    run = shown(folder, "tissue")
    recipe, metrics = run.recipe, run.metrics
    protocol = metrics["protocol"]
    lines = [
        f"## {recipe['name']}",
        "",
        f"{run.origin}.",
        f"{protocol['repeats']} × {protocol['folds']} outer folds, {protocol['inner_folds']} inner folds, "
        f"{metrics['tiles']} tiles in {metrics['groups']} groups.",
        "",
        f"    python -m training.tissue.train training/recipes/{recipe['name']}.toml",
        "",
        *score_table("classifier", SCORES, metrics["rows"]),
    ]
    for name, gap in metrics["differences"].items():
        lines += ["", f"Balanced accuracy minus that of {name}, same folds and resamples: {interval(gap, sign=True)}."]
    lines += ["", "| class | recall |", "|---|---|"]
    lines += [f"| {name} | {interval(recall)} |" for name, recall in metrics["recall"].items()]
    if "operating_point" in metrics:
        point, choice = metrics["operating_point"], metrics["choice"]
        lines += [
            "",
            f"Served head: augmentation {choice['augmentation']}, penalty {choice['penalty']:g}, temperature "
            f"{choice['temperature']:.2f}. Operating point: a tile is answered from a probability of "
            f"{point['min_probability']:.2f}; at that point {point['answered']:.0%} of the held-out tiles are answered "
            f"and {point['accuracy_when_answered']:.0%} of those answers are right (aim {point['aim']:.0%}). The point "
            "was chosen on these same held-out answers, so the last figure is optimistic.",
        ]
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 1 with one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m training.tissue.evaluate", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args(arguments)

    def write() -> None:
        text = page(chosen.runs)
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(chosen.out, text.encode())

    return command.status(write, "The page")


if __name__ == "__main__":
    sys.exit(main())
