"""The results of the small runs, made of their figures and of the bench:

    python -m training.gpfm.page [--bench docs/results/pathbench.json] [--cells DIR] [--out docs/results]

reads the runs of ORDER that are in PATHSERVE_RUNS and the cells' predictions (default: the bench's own folder there),
and writes `gpfm.json`, which holds every figure, and `gpfm.md`, which is read. A run that is not there is "not run".
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from training import command
from training.files import json_bytes, write_atomic
from training.pages import shown
from training.pathbench.leaderboard import differences, leaderboard, row_of
from training.pathbench.protocols import METRICS
from training.pathbench.records import Record
from training.pathbench.results import published
from training.runs import runs_folder

EXPERTS = ("lite0", "gpfm-expert-tissue-small", "gpfm-expert-ssl-small", "gpfm-expert-text-small")
PLAIN = "gpfm-ssl-small"
STUDENTS = ("gpfm-distill-scratch-small", "gpfm-distill-lite0-small", "gpfm-distill-expert-small")
ORDER = (*EXPERTS[1:], PLAIN, *STUDENTS)
"""The runs in the order in which they are made; `lite0` is a package."""
_BUDGET_H = 8
_KEPT = ("git_commit", "git_changed_files", "seed", "recipe_sha256", "weights_sha256")
_TITLES = {
    "gpfm-expert-tissue-small": "expert: labels of tissue",
    "gpfm-expert-ssl-small": "expert: itself",
    "gpfm-expert-text-small": "expert: phrases",
    "gpfm-ssl-small": "plain self-distillation",
    "gpfm-distill-scratch-small": "arm A: student from fresh weights",
    "gpfm-distill-lite0-small": "arm C: CNN student from ImageNet weights",
    "gpfm-distill-expert-small": "arm B: student from the tissue expert",
}

_INTRODUCTION = """# GPFM: figures of the small runs

Research use, not a medical device. One student, several experts ([how](../gpfm.md)), on fewer than four thousand public
tiles, for hundreds of steps on one core: the figures say what the method does at this size, nothing of its published
one. One seed each. `[low, high]` is a 95 % bootstrap interval over groups; of mean ranks, over tasks.

This page is made by the command, not by hand:

    python -m training.gpfm.page
"""


def figures(bench: Path, cells: Path) -> dict[str, Any]:
    """Every figure of the page as JSON values. Raises RunInvalid, ResultInvalid, BoardRefused."""
    runs = {}
    for name in ORDER:
        folder = runs_folder() / name
        if (folder / "manifest.json").is_file():
            run = shown(folder, "gpfm")
            runs[name] = {
                "stage": run.recipe["stage"],
                "seen": {key: run.manifest[key] for key in _KEPT},
                "metrics": dict(run.metrics),
            }
    models = (*EXPERTS, PLAIN, *STUDENTS)
    records = [record for record in published(bench) if record.model in models]
    boards = leaderboard(records)["boards"]
    return {
        "runs": runs,
        "ranks": {
            name: {key: ranking[key] for key in ("mean_rank", "mean_rank_95", "tasks", "statement")}
            for name in ("main", "flagged")
            if (ranking := boards[name]["ranking"])
        },
        "differences": [found for student in STUDENTS for found in _against(student, records, cells)],
    }


def _against(student: str, records: Sequence[Record], cells: Path) -> Iterator[dict[str, Any]]:
    """A student minus plain self-distillation and minus each expert, on every row of the main board that has them."""
    others = (PLAIN, *EXPERTS)
    main = [record for record in records if record.board == "main" and record.metric in METRICS and record.predictions]
    for row in sorted({row_of(record) for record in main}):
        files = {
            record.model: cells / str(record.predictions)
            for record in main
            if row_of(record) == row and record.model in (student, *others)
        }
        if student in files and len(files) > 1 and all(file.is_file() for file in files.values()):
            for found in differences(student, files, row):
                yield {"student": student, "task": row.task, "cohort": row.cohort, "metric": row.metric, **found}


def page(values: Mapping[str, Any]) -> str:
    """`gpfm.md` of these figures."""
    runs: Mapping[str, Any] = values["runs"]
    lines = [_INTRODUCTION, *_runs(runs)]
    lines += ["", "## What a student tells of its experts", "", *_agreement(runs)]
    lines += ["", "## Self-distillation", "", *_losses(runs)]
    lines += ["", "## On the bench", "", *_ranks(values["ranks"]), *_differences(values["differences"])]
    return "\n".join(lines) + "\n"


def _runs(runs: Mapping[str, Any]) -> list[str]:
    lines = ["| run | recipe | figures | CPU-hours | commit |", "|---|---|---|---|---|"]
    for name in ORDER:
        recipe = f"`training/recipes/{name}.toml`"
        if name not in runs:
            lines.append(f"| {_TITLES[name]} | {recipe} | not run | | |")
            continue
        metrics, seen = runs[name]["metrics"], runs[name]["seen"]
        changed = f" and {count} changed files" if (count := seen["git_changed_files"]) else ""
        said = f"{metrics['training']['iterations']} steps" if "training" in metrics else _validation(metrics)
        lines.append(
            f"| {_TITLES[name]} | {recipe} | {said} | {metrics['cpu_s'] / 3600:.2f} | "
            f"{seen['git_commit'][:12]}{changed}, seed {seen['seed']} |"
        )
    total = sum(run["metrics"]["cpu_s"] for run in runs.values()) / 3600
    return [
        *lines,
        "",
        f"Each is made by `python -m training.gpfm.train training/recipes/NAME.toml`; {total:.2f} hours on one core "
        f"together, of {_BUDGET_H}. Ablations and further seeds: not run.",
    ]


def _validation(metrics: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{name}: balanced accuracy {found['balanced_accuracy']:.2f} on {found['tiles']} tiles of the validation part "
        f"(chance {found['chance']:.2f})"
        for name, found in metrics["validation"].items()
    )


def _agreement(runs: Mapping[str, Any]) -> list[str]:
    lines = [
        "The cosine of the student's heads with each expert's view of tiles that no run learns from, with the means "
        "over the tiles taken off both sides, so that knowing nothing is 0; `void` where the control is not near 0.",
        "",
        "| student | expert, part | cosine | before the first step | gain | control: another tile's view |",
        "|---|---|---|---|---|---|",
    ]
    for name in STUDENTS:
        if name not in runs:
            lines.append(f"| {_TITLES[name]} | all | not run | not run | not run | not run |")
            continue
        for expert, parts in runs[name]["metrics"]["agreement"]["experts"].items():
            for part, found in parts.items():
                void = " (void)" if found["void"] else ""
                start, control = found["centred_start"], found["centred_shuffled"]
                lines.append(
                    f"| {_TITLES[name]} | {expert}, {part} | {_value(found, 'centred')}{void} | {start:.3f} | "
                    f"{_value(found, 'centred_gain')} | {control:.3f} |"
                )
    told = [runs[name]["metrics"]["agreement"] for name in STUDENTS if name in runs]
    if told:
        lines += ["", f"{told[0]['tiles']} tiles in {told[0]['groups']} groups."]
    return lines


def _value(found: Mapping[str, Any], name: str) -> str:
    bounds = found.get(f"{name}_interval")
    return f"{found[name]:.3f}" + ("" if bounds is None else f" [{bounds[0]:.3f}, {bounds[1]:.3f}]")


def _losses(runs: Mapping[str, Any]) -> list[str]:
    lines = [
        "Each loss at the first steps and at the last. A teacher begins as its student's copy, so a small first value "
        "of `dino_global` is no knowledge. Of the teacher at the end: the entropy of its answer to one crop and of its "
        "mean answer (nats, of the most that is possible), and the effective rank of its class tokens.",
        "",
        "| run | loss | first | last |",
        "|---|---|---|---|",
    ]
    taught = [name for name in ORDER if name in runs and "training" in runs[name]["metrics"]]
    for name in taught:
        for term, found in runs[name]["metrics"]["training"]["losses"].items():
            if not term.endswith("_display"):
                lines.append(f"| {_TITLES[name]} | {term} | {found['first']:.3f} | {found['last']:.3f} |")
    lines += ["", "| run | entropy | entropy of the mean | effective rank | alarms |", "|---|---|---|---|---|"]
    for name in taught:
        training = runs[name]["metrics"]["training"]
        teacher = training["teacher"]
        most = f" of {teacher['most_entropy']:.2f}" if "most_entropy" in teacher else ""
        lines.append(
            f"| {_TITLES[name]} | {teacher['entropy']:.2f}{most} | {teacher['used_entropy']:.2f} | "
            f"{teacher['effective_rank']:.1f} | {training['alarms']} |"
        )
    return lines


def _ranks(ranks: Mapping[str, Any]) -> list[str]:
    lines = [
        "Mean ranks among the experts, plain self-distillation and the students alone, 1 is best, from "
        "[pathbench.md](pathbench.md) (`python -m training.pathbench run training/recipes/pathbench-small.toml`), "
        "where all encoders and the bench's own rows `control` stand.",
    ]
    for name, title in (("main", "Main board"), ("flagged", "Flagged board (patients unknown, or a set seen)")):
        if name not in ranks:
            lines += ["", f"{title}: not run."]
            continue
        bounds = ranks[name]["mean_rank_95"] or {}
        lines += ["", f"{title}, {ranks[name]['tasks']} tasks:", "", "| encoder | mean rank |", "|---|---|"]
        for model, mean in sorted(ranks[name]["mean_rank"].items(), key=lambda item: item[1]):
            low_high = " [{:.2f}, {:.2f}]".format(*bounds[model]) if model in bounds else ""
            lines.append(f"| {model} | {mean:.2f}{low_high} |")
        lines += ["", ranks[name]["statement"]]
    return lines


def _differences(found: Sequence[Mapping[str, Any]]) -> list[str]:
    lines: list[str] = []
    for student in STUDENTS:
        pairs = [pair for pair in found if pair["student"] == student]
        lines += ["", f"### {_TITLES[student]}", ""]
        if not pairs:
            lines.append("Not run.")
            continue
        others = [other for other in (PLAIN, *EXPERTS) if any(pair["second"] == other for pair in pairs)]
        lines += [
            "Its score minus that of each other on the main board's rows, over the same resamples of groups.",
            "",
            "| task, probe | " + " | ".join(others) + " |",
            "|---" * (len(others) + 1) + "|",
        ]
        for task, cohort, metric in dict.fromkeys((pair["task"], pair["cohort"], pair["metric"]) for pair in pairs):
            row = {p["second"]: p for p in pairs if (p["task"], p["cohort"], p["metric"]) == (task, cohort, metric)}
            values = [_difference(row[other]) if other in row else "not run" for other in others]
            lines.append(f"| {task} ({cohort}), {metric} | " + " | ".join(values) + " |")
        lines += ["", *_verdict(pairs, others)]
    return lines


def _difference(pair: Mapping[str, Any]) -> str:
    return f"{pair['difference']:+.3f} [{pair['low']:+.3f}, {pair['high']:+.3f}]"


def _verdict(pairs: Sequence[Mapping[str, Any]], others: Sequence[str]) -> list[str]:
    """How often the student is better or worse beyond chance, corrected within each row (Holm, 0.05)."""
    said = []
    for other in others:
        own = [pair for pair in pairs if pair["second"] == other]
        sure = [pair["difference"] for pair in own if pair["holm"] < 0.05]
        better = sum(gap > 0 for gap in sure)
        said.append(f"{other}: better in {better}, worse in {len(sure) - better} of {len(own)} rows")
    return ["Beyond chance after Holm's correction within a row: " + "; ".join(said) + "."]


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 1 with one sentence on stderr."""
    results = Path(__file__).parents[2] / "docs" / "results"
    parser = argparse.ArgumentParser(prog="python -m training.gpfm.page", description=__doc__)
    parser.add_argument("--bench", type=Path, default=results / "pathbench.json")
    parser.add_argument("--cells", type=Path, help="default: the bench's cells in PATHSERVE_RUNS")
    parser.add_argument("--out", type=Path, default=results)
    given = parser.parse_args(arguments)

    def write() -> None:
        values = figures(given.bench, given.cells or runs_folder() / "pathbench" / "cells")
        write_atomic(given.out / "gpfm.json", json_bytes(values))
        write_atomic(given.out / "gpfm.md", page(values).encode())

    return command.status(write, "The page")


if __name__ == "__main__":
    sys.exit(main())
