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
    DESIGN,
    NAIVE,
    NO_LEVEL,
    NO_REGION,
    ONE_QUERY,
    PRETRAINED,
    SPECIALISTS,
    measured,
)
from training.pathsegmentor.conditions import conditions, lost
from training.pathsegmentor.explain import CONTROL, OBJECT_AWARE, PLAIN
from training.pathsegmentor.markdown import NOT_RUN, shown, table, tested
from training.pathsegmentor.pairs import Table
from training.pathsegmentor.pictures import ranked
from training.pathsegmentor.served_page import sections
from training.pathsegmentor.serving_page import SERVED, SLIDE_OBJECTS, engines, held_against, slide_objects
from training.pathsegmentor.shapes import irregularities
from training.pathsegmentor.trends import ANSWERS, DESCRIPTORS, FEWEST_OUTLINES, HELD
from training.runs import read_json

EXPLAIN = "explain.json"
_EARLIER_H = 2.2
"""CPU-hours of what is shown no more: two networks that were served before, each with its specialists and figures, an
arm of the second that was not ended, two trainings of 1,200 and 700 steps, and the first training of the network that
is served now, which a second repeated bit for bit."""
_INTRODUCTION = """# Segmentation by words: figures

Research use, not a medical device. One small network answers prompts such as `nuclei-level epithelial in colon
pathology` with a mask and with whether the object is there. It learned from tier A sets alone; MoNuSeg and MoNuSAC are
other sources, never trained on. No published figure is a goal for it: the published network has five hundred times its
parameters.

Dice is a pair's (one prompt on one image, the object present), averaged over pairs. `[low, high]` is the 95 % bootstrap
interval over groups: patients (ebhi, monuseg, monusac), fields of unknown patients (consep), or near-duplicates where
nothing is known (dsb2018, glomeruli, camelyon: `patient-unknown`). p is Wilcoxon's signed-rank test, two-sided, one
difference a group; `Holm` is p adjusted over the rows of its table. Each network is one training with one seed. The
weights, presence rule and what counts as supported are chosen on validation groups. How crops are stained and focused
in training was chosen after the figures of two earlier networks on MoNuSeg and on held-out groups were known, for both
lost to Otsu's threshold on MoNuSeg; how strongly, by what 1,200 further steps of the second did to half of MoNuSeg's
images ([training](../pathsegmentor.md)). So MoNuSeg chose how crops are stained, and its figures flatter. Of consep's
fields and of the images of dsb2018, glomeruli and camelyon nobody knows the patients: a held-out image may be of a
patient who was trained on.

**Which arm is served** was chosen when the figures of four of them were known, those of held-out groups and other
sources too. It is the best on validation groups, and the only one better than Otsu's threshold on all three sets of
nuclei; but it was chosen by them, and so they flatter it. All arms are compared with the published design, of whose
sixteen queries the one most like the text answers.

Images are read in windows of 256 px at the level's scale, blended. **As served** is what a user sees: a window in which
the presence rule does not find the object draws nothing. **As drawn** is without that rule; so are all comparisons, but
for recall. In every mean and difference of Dice, prompts that share one outline in an image count as one pair (where
they are told apart, each stands for it); presence is of each prompt. A mean over prompts leaves out those of fewer than
three groups. ebhi, camelyon, glomeruli and dsb2018 do not tell their scale; they stand at a nominal one. glomeruli is
stained with periodic acid-Schiff, all others with H&E.

`otsu` (nuclei only) is Otsu's threshold of haematoxylin optical density; `union box` and `instance boxes` are oracles,
the truth's own bounding boxes filled; `whole image` marks everything. A `control` shows what is found without what is
measured: with words that say nothing, labels exchanged, the prompt alone.
"""


def page(folder: Path) -> str:
    """The page of a folder of results, in Markdown. Raises RunInvalid."""
    runs = measured(folder)
    served = next((run for run in runs if run["served"]), None)
    design = next((run for run in runs if run["arm"] == DESIGN), None)
    arms = read_json(folder, COMPARISONS) if runs else {}
    made = f"python -m training.pathsegmentor.page docs/results/{folder.name} --out docs/results/{folder.name}.md"
    lines = [_INTRODUCTION, *lost(served), "This page is made by the command, not by hand:", "", f"    {made}", ""]
    explain, through_triton, objects = (_file(folder, name) for name in (EXPLAIN, SERVED, SLIDE_OBJECTS))
    if served is not None:
        held_against(served, {SERVED: through_triton, SLIDE_OBJECTS: objects})
    lines += _arms(arms, runs)
    lines += conditions(served, design, arms, explain, through_triton)
    if served is None:
        lines += [f"The served network: {NOT_RUN}.", ""]
    else:
        lines += sections(served)
    if design is not None:
        lines += _selection(design["figures"]["selection"])
    lines += _comparisons(arms)
    if served is not None:
        lines += _trends(served["trends"], folder)
    lines += _importance(explain)
    lines += slide_objects(objects, served["figures"]["overlap"]["test"]["by_prompt"] if served else {})
    lines += engines(through_triton)
    if served is not None:
        lines += [*_cases(folder), *_unshown(served["pairs"]), *_data(served["data"])]
    return "\n".join(lines).rstrip() + "\n"


def _file(folder: Path, name: str) -> dict[str, Any] | None:
    """None where it was not written yet. Raises RunInvalid for one that is cut off."""
    return read_json(folder, name) if (folder / name).is_file() else None


def _arms(arms: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> list[str]:
    rows, served = [], {run["arm"] for run in runs if run["served"]}
    for arm in (*ARMS, *(name for name in arms if name not in ARMS)):
        if arm not in arms:
            rows.append((arm, NOT_RUN, *[""] * 6))
            continue
        cost = arms[arm]
        beside = cost.get("prompts_design", {})
        of_arm = [run["figures"]["validation"]["prompts_drawn"] for run in runs if run["arm"] == arm]
        over_prompts = (
            shown(cost["prompts"][column]) + (f"; design: {shown(beside[column])}" if beside else "")
            for column in ("served", "dice")
        )
        rows.append(
            (
                f"**{arm}**, served" if arm in served else arm,
                ", ".join(f"`{name}`" for name in cost["runs"]),
                f"{cost['parameters']:,}",
                f"{cost['iterations']:,}",
                f"{cost['training_cpu_s'] / 60:.0f}",
                shown(of_arm[0]) if len(of_arm) == 1 else "–",
                *over_prompts,
            )
        )
    spent_h = sum(run["training_cpu_s"] + run["evaluation_cpu_s"] for run in runs) / 3600
    head = ("arm", "recipe", "parameters", "iterations", "CPU minutes of training", "validation groups, as drawn")
    return [
        "## Arms",
        "",
        "In the order in which they are to be run; Dice is the mean over prompts on held-out groups, beside it that of "
        f"the published design on the same pairs. What is shown took {spent_h:.1f} of 8 CPU-hours, measuring included; "
        f"the networks before it and trials of how to stain crops took {_EARLIER_H:.1f} more. Each by",
        "",
        "    python -m training.pathsegmentor.train training/recipes/RECIPE.toml",
        "    python -m training.pathsegmentor.evaluate ../runs/RECIPE --out docs/results/pathsegmentor",
        "",
        *table((*head, "as served", "as drawn"), rows),
    ]


_FAMILIES = {
    "by_set": ("set", "Dice"),
    "by_object": ("level, object", "Dice"),
    "by_object_one_scale": ("level, object", "Dice at one scale for all levels"),
    "external_recall": ("level, object", "recall as served"),
}
_ARM_TEXTS = {
    SPECIALISTS: (
        "One network against one a set",
        "Fixed-class networks, one a set, of the same total parameters and iterations. No win is claimed. An interval "
        "that holds 0 does not prove parity: with so few groups it means that the two are not told apart. ebhi's "
        "epithelial, glands and polyps are one outline: three rows, one test.",
        ("by_set", "by_object"),
    ),
    NO_LEVEL: (
        "Trained without the level word",
        "The level is kept from the network in training too. Only `epithelial` is annotated on two levels, so it alone "
        "can be mistaken; and at the level's own scale the scale still tells the level.",
        ("by_object", "by_object_one_scale"),
    ),
    NO_REGION: (
        "Trained without the region word",
        "The region is kept from the network in training too.",
        ("by_object", "by_object_one_scale"),
    ),
    ONE_QUERY: (
        "One query a prompt",
        "The text's vector is the only query, and nothing is selected (arXiv 2312.17183).",
        ("by_set",),
    ),
    PRETRAINED: ("Pretrained text", "A frozen sentence encoder in place of words from scratch.", ("by_set",)),
    NAIVE: (
        "What is not annotated taken for absent",
        "Trained with the mistake that the partial-label rule forbids. On other sources, of what this network was "
        "taught to call absent, the share of the truth that is marked:",
        ("external_recall",),
    ),
}


def _selection(selection: Mapping[str, Any]) -> list[str]:
    """Of the published design."""
    return [
        "## Which query answers",
        "",
        "One query of the published design's sixteen answers, the one most like the text; on images of one window: "
        f"{shown(selection['chosen'])}. The best of all queries, told by the truth (oracle): "
        f"{shown(selection['best'])}; gap {shown(selection['gap'], sign=True)}.",
        "",
    ]


def _comparisons(arms: Mapping[str, Any]) -> list[str]:
    lines = []
    for arm, (title, text, families) in _ARM_TEXTS.items():
        lines += [f"## {title}", ""]
        if not all(family in arms.get(arm, {}) for family in families):
            lines += [f"{NOT_RUN.capitalize()}.", ""]
            continue
        lines += [text, ""] if text else []
        for family in families:
            first, what = _FAMILIES[family]
            lines += tested(arms[arm][family], first, f"{what}, this arm minus published design")
            rows = {name: row for name, row in arms[arm][family].items() if row["interval"]}
            apart = [name for name, row in rows.items() if row["low"] > 0 or row["high"] < 0]
            told = f"The interval, not adjusted, leaves out 0 for {', '.join(apart)}; elsewhere nothing is told apart."
            lines += [told, ""] if apart else []
    return lines


def _importance(found: Mapping[str, Any] | None) -> list[str]:
    lines = ["## Importance of objects, on made slides", ""]
    if found is None:
        return [*lines, f"{NOT_RUN.capitalize()}.", ""]
    rows = []
    below = [
        f"seed {run['seed']}: {name}"
        for run in found["seeds"]
        for name, figures in run["objects"].items()
        if figures["imp"][2] < 1
    ]
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
        f"trainings with one causal object the ranks agree with Kendall's τ {found['rank_agreement']:.2f} (0 is "
        "chance): "
        "beyond the first rank the order is not to be relied on."
        + (
            f" An importance below 1 with its whole interval ({', '.join(below)}) means that blurring helped."
            * bool(below)
        ),
        "",
        "    python -m training.pathsegmentor.explain --out docs/results/pathsegmentor/explain.json",
        "",
        *table(("seed", "object", "importance", "control: elsewhere", "importance minus control"), rows),
        f"Area under the ROC curve of the slide's answer, one a seed, without intervals; object-aware is better in "
        f"{sum(run['auroc'][OBJECT_AWARE] > run['auroc'][PLAIN] for run in found['seeds'])} of {len(found['seeds'])}:",
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
        "Spline regression of Dice (logistic: no fit leaves 0 to 1) on each descriptor of the truth, held-out groups "
        "and "
        "other sources together, each set with a level of its own, with a band over resamples of groups; and again "
        "with "
        "log size and log density held at their means, the one that is the descriptor excepted. The table has the "
        "fitted "
        "change of Dice from the 10th to the 90th percentile. Irregularity is 1 - 4πA/P²: of each instance "
        "(Crofton's perimeter), on which conclusions rest, and of the mask (boundary pixels, as published), which "
        "N perfect disks raise to 1 - 1/N. Of shapes that are known:",
        "",
        *table(
            ("shape", "mask, 4 neighbours", "mask, 8 neighbours", "mask, Crofton", "instances, Crofton"),
            ((name, *(f"{value:.2f}" for value in values)) for name, *values in irregularities()),
        ),
    ]
    for level, trend in trends.items():
        rows = [
            (DESCRIPTORS[name], ANSWERS[answer], *(interval(curves[kind]["change"], sign=True) for kind in curves))
            for name, content in trend["by"].items()
            for answer, curves in content["answers"].items()
        ]
        size = f"{trend['pairs']} pairs, {trend['outlines']} outlines, {trend['groups']} groups"
        lines += [f"### {level} ({size})", ""]
        if not trend["by"]:
            lines += [f"Too few: no trend under {FEWEST_OUTLINES} outlines.", ""]
            continue
        lines += table(("descriptor", "answer", "change within sets", HELD), rows)
        lines += _conclusion(trend["by"])
        for name in trend["by"]:
            lines += [f"![Dice over {DESCRIPTORS[name]}, {level}]({folder.name}/trend-{level}-{name}.svg)", ""]
    return lines


def _conclusion(by: Mapping[str, Any]) -> list[str]:
    if "irregularity_instance" not in by:
        return []
    change = by["irregularity_instance"]["answers"]["dice"]["partial"]["change"]
    told = "not told from none" if change["low"] <= 0 <= change["high"] else "less" if change["value"] < 0 else "more"
    return [
        f"Conclusion: from the most regular to the most irregular instances, {HELD}, the network's change of Dice is "
        f"{interval(change, sign=True)}: {told}.",
        "",
    ]


def _cases(folder: Path) -> list[str]:
    sheets = sorted(path.name for path in folder.glob("cases-*.jpg"))
    if not sheets:
        return []
    lines = [
        "## Cases by rank",
        "",
        "Each set's held-out pairs in order of Dice: the one at the 95th, 50th and 5th percentile, not chosen by eye. "
        "Green: the truth; red: the network's mask as drawn, without the presence rule. Sets of tier A only (CoNSeP, "
        "Apache-2.0; DSB 2018, CC0; glomeruli, "
        "EBHI-Seg, CC BY 4.0; CAMELYON, CC0).",
        "",
    ]
    for name in sheets:
        lines += [f"![good, typical and bad case of {name[6:-4]}]({folder.name}/{name})", ""]
    return lines


def _unshown(pairs: Mapping[str, Any]) -> list[str]:
    """The cases by rank of other sources, by name."""
    told = Table.read(pairs)
    outside = told.where(told["external"] == 1)
    rows = [
        (
            name,
            rank,
            str(outside["image"][row]),
            str(outside["prompt"][row]).removesuffix(" pathology"),
            *(f"{outside[column][row]:.2f}" for column in ("dice", "served")),
        )
        for name, rank, row in ranked(outside)
    ]
    if not rows:
        return []
    head = ("set", "case", "image", "prompt", "as drawn", "as served")
    return ["Images of other sources may not be shown (tier B); the same ranks of theirs:", "", *table(head, rows)]


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
