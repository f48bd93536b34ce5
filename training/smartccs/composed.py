"""What the served pipeline says of composed slides, by centre, from its reports alone:

    python -m training.smartccs.composed TRUTH.json --reports DIR --out docs/results/smart-ccs

TRUTH.json is what `training.smartccs.compose` wrote beside the slides. DIR holds a folder for each slide, of
the same name, with what `pathserve analyze --protocol cervical-screening` wrote. Composed slides are no patients: real
cells placed in real background. Intervals resample slides.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gateway.domain.bethesda import CLASSES, NAMES, NILM
from training import command
from training.errors import RunInvalid
from training.files import json_bytes, write_atomic
from training.runs import read_json
from training.smartccs.results import MODELS
from training.smartccs.slide_fit import auc_of
from training.smartccs.trial import Found
from training.statistics import ItemScore, StatisticsInvalid, bootstrap

REPORT = "report.json"
_COUNT = 1000


@dataclass(frozen=True, slots=True)
class Read:
    """A composed slide and what its report says. `centre`: with what degraded it, if anything did; `label`: its true
    class; `probabilities`, `unadapted`: by class, None where no cell was found; `abnormal`: what it is called, None
    where that is withheld; `category`: the number of the class that is named, if one is; `satisfactory`: whether it is
    adequate; `verdict`: what its site was found to be; `withheld`: the codes of why no category is named."""

    slide: str
    centre: str
    label: int
    probabilities: tuple[float, ...] | None
    unadapted: tuple[float, ...] | None
    abnormal: bool | None
    category: int | None
    satisfactory: bool
    verdict: str
    withheld: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Composed:
    """What was read of a truth file's slides: those with a report; by centre how many have none; and the digests of the
    weights of detector, encoder and head that every report names."""

    slides: tuple[Read, ...]
    without_report: Mapping[str, int]
    digests: Mapping[str, str]


def read(truth: Path, reports: Path) -> Composed:
    """Each slide of a truth file. Raises RunInvalid for files that are none, where no report is there, and where the
    reports are of different weights."""
    found, missing, models = [], Counter[str](), {}
    for row in _rows(read_json(truth.parent, truth.name), truth.name):
        folder = reports / row["folder"]
        if not (folder / REPORT).is_file():
            missing[row["centre"]] += 1
            continue
        report = read_json(folder, REPORT)
        found.append(_read(row, report))
        models[row["folder"]] = _digests(row["folder"], report)
    if not found:
        raise RunInvalid(f"{reports.name} holds no {REPORT} of any slide that {truth.name} names. Analyse them first.")
    first = models[found[0].slide]
    for folder_name, digests in models.items():
        if digests != first:
            raise RunInvalid(
                f"The reports of {found[0].slide} and {folder_name} are of different weights. Analyse again."
            )
    return Composed(tuple(found), missing, first)


def _digests(folder: str, report: Mapping[str, Any]) -> dict[str, str]:
    try:
        weights = {each["name"]: str(each["weights_sha256"]) for each in report["models"]}
        return {kind: weights[name] for name, kind in MODELS.items()}
    except (KeyError, TypeError):
        wanted = ", ".join(MODELS)
        raise RunInvalid(f"The report of {folder} does not name the weights of {wanted}. Analyse it again.") from None


def _rows(said: Mapping[str, Any], file: str) -> list[dict[str, str]]:
    try:
        rows = [{name: str(row[name]) for name in ("folder", "class", "centre")} for row in said["slides"]]
        faults = [row.get("degraded") for row in said["slides"]]
        return [
            row | {"centre": f"{row['centre']}, {fault}"} if fault else row
            for row, fault in zip(rows, faults, strict=True)
        ]
    except (KeyError, TypeError, AttributeError):
        raise RunInvalid(f"{file} names no slides with class and centre. Compose the slides again.") from None


def _read(row: Mapping[str, str], report: Mapping[str, Any]) -> Read:
    """`screenings` is of every slide; the members beside it are of the one that speaks for the case."""
    try:
        series = report["screened_series"]
        slide = next(each for each in report["screenings"] if each["series"] == series)
        return Read(
            row["folder"],
            row["centre"],
            NAMES.index(row["class"]),
            *(_probabilities(report[name]) for name in ("probabilities", "probabilities_unadapted")),
            slide["abnormal"],
            next(iter(slide["categories"]), None),
            slide["adequacy"]["satisfactory"],
            slide["adaptation"]["verdict"],
            tuple(reason["code"] for reason in slide["withheld"]),
        )
    except (KeyError, TypeError, ValueError, StopIteration):
        raise RunInvalid(f"The report of {row['folder']} is not one of cervical-screening. Analyse it again.") from None


def _probabilities(said: Mapping[str, float] | None) -> tuple[float, ...] | None:
    return tuple(float(said[name]) for name in NAMES) if said else None


def by_centre(slides: Sequence[Read], without_report: Mapping[str, int], count: int = _COUNT) -> Found:
    """Of each centre's slides: how they were called, and AUC, sensitivity and specificity as served, with and without
    the site's adaptation; how many have no report, and are in no figure. Where there is no probability, the score of a
    slide is 0 and nothing is called."""
    return {
        centre: {"without_report": without_report.get(centre, 0)}
        | _figures([each for each in slides if each.centre == centre], count)
        for centre in sorted({each.centre for each in slides} | without_report.keys())
    }


def _figures(slides: Sequence[Read], count: int) -> Found:
    labels_N = np.array([each.label for each in slides])
    abnormal_N = (labels_N != NILM).astype(np.int64)
    called_N = np.array([-1 if each.abnormal is None else int(each.abnormal) for each in slides])
    named_N = np.array([-1 if each.category is None else each.category for each in slides])
    found: Found = {
        "slides": {name: int((labels_N == number).sum()) for number, name in enumerate(NAMES)},
        "withheld": int((called_N < 0).sum()),
        "reasons": dict(sorted(Counter(reason for each in slides for reason in each.withheld).items())),
        "unsatisfactory": sum(not each.satisfactory for each in slides),
        "without_cells": sum(each.probabilities is None for each in slides),
        "verdicts": sorted({each.verdict for each in slides}),
        "right_class": float((named_N == labels_N).mean()) if len(slides) else None,
    }
    for name, attribute in (("auc", "probabilities"), ("auc_unadapted", "unadapted")):
        chances_NC = np.array([getattr(each, attribute) or _NOTHING for each in slides])
        found[name] = _figure(_area(chances_NC, labels_N), abnormal_N, count)
    for name, side in (("sensitivity", 1), ("specificity", 0)):
        found[name] = _figure(_share(called_N == side, abnormal_N == side), abnormal_N, count)
    return found


_NOTHING = tuple(float(number == NILM) for number in range(len(CLASSES)))


def _area(chances_NC: np.ndarray, labels_N: np.ndarray) -> ItemScore:
    return lambda index: auc_of(chances_NC[index], labels_N[index])


def _share(right_N: np.ndarray, of_N: np.ndarray) -> ItemScore:
    def score(index: np.ndarray) -> float:
        kept = index[of_N[index]]
        return float(right_N[kept].mean()) if len(kept) else float("nan")

    return score


def _figure(score: ItemScore, abnormal_N: np.ndarray, count: int) -> dict[str, Any] | None:
    """None where one side is missing, or too few slides make an interval."""
    if not len(abnormal_N):
        return None
    try:
        return asdict(bootstrap(score, np.arange(len(abnormal_N)), abnormal_N, count))
    except StatisticsInvalid:
        return None


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 1 with one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m training.smartccs.composed", description=__doc__)
    parser.add_argument("truth", type=Path)
    parser.add_argument("--reports", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args(arguments)

    def work() -> None:
        started = time.process_time()
        found = read(chosen.truth, chosen.reports)
        centres = by_centre(found.slides, found.without_report)
        name = "-".join(centre.replace(", ", "-").replace(" ", "_") for centre in centres)
        told = {
            "experiment": "composed",
            "digests": dict(found.digests),
            "centres": centres,
            "reports": [asdict(each) for each in found.slides],
            "cpu_s": round(time.process_time() - started, 1),
        }
        write_atomic(chosen.out / f"composed-{name}.json", json_bytes(told))

    return command.status(work, "The file")


if __name__ == "__main__":
    sys.exit(main())
