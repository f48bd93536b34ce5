"""The results page of segmentation by words, from the files that `training.pathsegmentor.evaluate` has written:

    python -m training.pathsegmentor.page docs/results/pathsegmentor --out docs/results/pathsegmentor.md

What an arm has not given yet stands as "not run".
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training import command
from training.errors import RunInvalid
from training.files import write_atomic
from training.pages import interval
from training.pathsegmentor.comparisons import (
    ARMS,
    COMPARISONS,
    NAIVE,
    NO_LEVEL,
    NO_REGION,
    ONE_QUERY,
    PRETRAINED,
    SHIPPED,
    SPECIALISTS,
    measured,
)
from training.pathsegmentor.explain import CONTROL, OBJECT_AWARE, PLAIN
from training.pathsegmentor.markdown import NOT_RUN, shown, table, tested
from training.pathsegmentor.shipped_page import sections
from training.pathsegmentor.trends import ANSWERS, DESCRIPTORS
from training.runs import read_json

EXPLAIN = "explain.json"
_INTRODUCTION = """# Segmentation by words: figures

Research use, not a medical device. One small network answers prompts such as `nuclei-level epithelial in colon
pathology` with a mask and with whether the object is there. It learned from tier A sets alone; MoNuSeg and MoNuSAC are
other sources, never trained or chosen on. No published figure is a goal for it: it is five hundred times smaller than
the published network and has seen a thousandth of its pairs.

Dice is a pair's (one prompt on one image, the object present), averaged over pairs. `[low, high]` is the 95 % bootstrap
interval over groups: patients (ebhi, monuseg, monusac), fields of unknown patients (consep), or near-duplicates where
nothing is known (dsb2018, glomeruli, camelyon: `patient-unknown`). p is Wilcoxon's signed-rank test, two-sided, one
difference a group; `Holm` is p adjusted over the rows of its table. Each network is one training with one seed. The
presence rule and what counts as supported are chosen on validation groups; test groups and other sources are read once.
Images are read as they are served: windows of 256 px at the level's scale, blended. ebhi, camelyon, glomeruli and
dsb2018 do not tell their scale; they stand at a nominal one.

`otsu` (nuclei only) is Otsu's threshold of haematoxylin optical density; `union box` and `instance boxes` are oracles,
the truth's own bounding boxes filled; `whole image` marks everything. A `control` shows what is found where there is
nothing to find.
"""


def page(folder: Path) -> str:
    """The page of a folder of results, in Markdown. Raises RunInvalid."""
    runs = measured(folder)
    shipped = next((run for run in runs if run["arm"] == SHIPPED), None)
    arms = read_json(folder, COMPARISONS) if runs else {}
    made = f"python -m training.pathsegmentor.page docs/results/{folder.name} --out docs/results/{folder.name}.md"
    lines = [_INTRODUCTION, "This page is made by the command, not by hand:", "", f"    {made}", ""]
    lines += _arms(arms, runs)
    if shipped is None:
        lines += [f"The shipped network: {NOT_RUN}.", ""]
    else:
        lines += sections(shipped)
    lines += _comparisons(arms)
    if shipped is not None:
        lines += _trends(shipped["trends"], folder)
    lines += _importance(folder)
    if shipped is not None:
        lines += [*_cases(folder), *_data(shipped["data"])]
    return "\n".join(lines).rstrip() + "\n"


def _arms(arms: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = []
    for arm in (*ARMS, *(name for name in arms if name not in ARMS)):
        if arm not in arms:
            rows.append((arm, NOT_RUN, "", "", "", ""))
            continue
        members = [run for run in runs if run["arm"] == arm]
        over_prompts = " · ".join(
            (f"{run['sets'][0]}: " if len(members) > 1 else "") + shown(run["figures"]["overlap"]["test"]["prompts"])
            for run in members
        )
        cost = arms[arm]
        rows.append(
            (
                arm,
                ", ".join(f"`{name}`" for name in cost["runs"]),
                f"{cost['parameters']:,}",
                f"{cost['iterations']:,}",
                f"{cost['training_cpu_s'] / 60:.0f}",
                over_prompts,
            )
        )
    head = ("arm", "recipe", "parameters", "iterations", "CPU minutes", "Dice, mean over prompts, held-out groups")
    return ["## Arms", "", "In the order in which they are to be run.", "", *table(head, rows)]


_ARM_TEXTS = {
    SPECIALISTS: (
        "One network against one a set",
        "Fixed-class networks, one a set, of the same total parameters and iterations. No win is claimed; what counts "
        "is parity within the interval.",
        "by_set",
    ),
    NO_LEVEL: ("Trained without the level word", "The level is kept from the network in training too.", "by_object"),
    NO_REGION: ("Trained without the region word", "", "by_object"),
    ONE_QUERY: (
        "One query a prompt",
        "The text's vector is the only query, and nothing is selected (arXiv 2312.17183).",
        "by_set",
    ),
    PRETRAINED: ("Pretrained text", "A frozen sentence encoder in place of words from scratch.", "by_set"),
    NAIVE: (
        "What is not annotated taken for absent",
        "Trained with the mistake that the partial-label rule forbids. On other sources, where what this network was "
        "taught to call absent is annotated:",
        "external_recall",
    ),
}


def _comparisons(arms: Mapping[str, Any]) -> list[str]:
    lines = []
    for arm, (title, text, family) in _ARM_TEXTS.items():
        lines += [f"## {title}", ""]
        if family not in arms.get(arm, {}):
            lines += [f"{NOT_RUN.capitalize()}.", ""]
            continue
        first = "set" if family == "by_set" else "level, object"
        what = "recall as served" if family == "external_recall" else "Dice"
        lines += [text, ""] if text else []
        lines += tested(arms[arm][family], first, f"{what}, this arm minus shipped")
    return lines


def _importance(folder: Path) -> list[str]:
    lines = ["## Importance of objects, on made slides", ""]
    if not (folder / EXPLAIN).is_file():
        return [*lines, f"{NOT_RUN.capitalize()}.", ""]
    found = read_json(folder, EXPLAIN)
    rows = []
    for run in found["seeds"]:
        for name, figures in run["objects"].items():
            told = (f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, low, high in figures.values())
            rows.append((str(run["seed"]), f"**{name}**" if name == run["causal"] else name, *told))
    return [
        *lines,
        "Slides are made of small pictures with five objects, and the label hangs on the look of one of them alone "
        "(bold); a tenth of the labels is wrong. Importance is the mean loss with an object blurred over the mean loss "
        "without (intervals over slides); the control blurs an equally large region elsewhere. Masks are the truth's "
        "(Dice 1).",
        "",
        f"The causal object ranks first in {found['causal_first']} of {len(found['seeds'])} seeds; between three "
        f"trainings with one causal object the ranks agree with Kendall's τ {found['rank_agreement']:.2f}.",
        "",
        "    python -m training.pathsegmentor.explain --out docs/results/pathsegmentor/explain.json",
        "",
        *table(("seed", "object", "importance", "control: elsewhere", "importance minus control"), rows),
        "Area under the ROC curve of the slide's answer:",
        "",
        *table(
            ("seed", PLAIN, OBJECT_AWARE, f"control: {CONTROL}"),
            (
                (str(run["seed"]), *(f"{run['auroc'][name]:.2f}" for name in (PLAIN, OBJECT_AWARE, CONTROL)))
                for run in found["seeds"]
            ),
        ),
    ]


def _trends(trends: Mapping[str, Any], folder: Path) -> list[str]:
    lines = [
        "## Shape, size, density",
        "",
        "Spline regression of Dice on each descriptor of the truth, held-out groups and other sources together, with a "
        "band over resamples of groups; alone, and with log count and log size held at their means. The table has the "
        "fitted change of Dice from the 10th to the 90th percentile. Irregularity is 1 - 4πA/P²: of each instance "
        "(Crofton's perimeter), on which conclusions rest, and of the mask (boundary pixels, as published), which "
        "N perfect disks raise to 1 - 1/N.",
        "",
    ]
    for level, trend in trends.items():
        rows = [
            (DESCRIPTORS[name], ANSWERS[answer], *(interval(curves[kind]["change"], sign=True) for kind in curves))
            for name, content in trend["by"].items()
            for answer, curves in content["answers"].items()
        ]
        lines += [f"### {level} ({trend['pairs']} pairs, {trend['groups']} groups)", ""]
        lines += table(("descriptor", "answer", "change alone", "count and size held"), rows)
        for name in trend["by"]:
            lines += [f"![Dice over {DESCRIPTORS[name]}, {level}]({folder.name}/trend-{level}-{name}.svg)", ""]
    return lines


def _cases(folder: Path) -> list[str]:
    sheets = sorted(path.name for path in folder.glob("cases-*.jpg"))
    if not sheets:
        return []
    lines = [
        "## Cases by rank",
        "",
        "Each set's held-out pairs in order of Dice: the one at the 95th, 50th and 5th percentile, not chosen by eye. "
        "Green: the truth; red: the network's mask. Sets of tier A only (CoNSeP, Apache-2.0; DSB 2018, CC0; glomeruli, "
        "EBHI-Seg, CC BY 4.0; CAMELYON, CC0).",
        "",
    ]
    for name in sheets:
        lines += [f"![good, typical and bad case of {name[6:-4]}]({folder.name}/{name})", ""]
    return lines


def _data(found: Mapping[str, Any]) -> list[str]:
    parts = ("train", "val", "test", "external")
    shared = [row for row in found["overlaps"] if row["pictures"] or row["groups"]]
    return [
        "## Data",
        "",
        *table(
            ("set", *(f"{part}: images (groups)" for part in parts)),
            (
                (
                    name,
                    *(f"{row[part]['images']} ({row[part]['groups']})" if part in row else "–" for part in parts),
                )
                for name, row in found["split"].items()
            ),
        ),
        f"Of {len(found['overlaps'])} pairs of sets, {len(shared)} share a picture (perceptual hash) or a patient:",
        "",
        *table(
            ("sets", "pictures", "groups"),
            ((f"{row['first']}, {row['second']}", str(row["pictures"]), str(row["groups"])) for row in shared),
        ),
    ]


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 1 with one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m training.pathsegmentor.page", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args(arguments)

    def work() -> None:
        if not chosen.folder.is_dir():
            raise RunInvalid(f"There is no folder {chosen.folder.name}. Run training.pathsegmentor.evaluate first.")
        write_atomic(chosen.out, page(chosen.folder).encode())

    return command.status(work, "The page")


if __name__ == "__main__":
    sys.exit(main())
