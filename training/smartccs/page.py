"""The results page of Smart-CCS, from the files that `training.smartccs.evaluate` has written:

    python -m training.smartccs.page docs/results/smart-ccs --out docs/results/smart-ccs.md

What has not been measured yet stands as "not run".
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from training import command
from training.files import write_atomic
from training.markdown import NOT_RUN, shown, table
from training.smartccs.adaptation_page import adaptation, commissioning, gates, orders, recalibration
from training.smartccs.cells_page import blocks, missed, not_run
from training.smartccs.conditions import conditions
from training.smartccs.modes import NONE, SITE
from training.smartccs.probes import ENCODERS, FRESH, SHUFFLES
from training.smartccs.results import DETECTOR, FEATURES, ORDER, SHIPPED, Results, Row, results
from training.smartccs.served_page import heads, studies

_EVALUATE = "python -m training.smartccs.evaluate"
_CORES = 2
_INTRODUCTION = """# Smart-CCS: figures

Research use, not a medical device. After arXiv 2502.09662, at a small scale; no published figure is a goal for it.
There are no public slides of all classes, so nearly every figure here is of **synthetic bags**: cells of CRIC's smears
dealt together as a slide of a class might show them ([how](../smart-ccs.md)). They are no patients. All centres but
`source` are **simulated** by a fixed change of colour and optics. The changes are linear in optical density, which
flatters `colour` and `site`.

Bags hold only cells that a detector found, in shares that are assumed: they do not show what it misses. What is missed
is told [below](#what-the-detector-misses-by-class-and-centre). The rest of every bag, of whatever class, is dealt of
nuclei annotated NILM, of what was found in fields without abnormal nuclei, and of what was found beside the annotated
nuclei of the others, which nobody named: mostly false alarms, some of them perhaps abnormal. A slide shows such too.
Figures of bags say how well what was found is told apart, not how well slides are screened.

The cells of training, validation and test bags are of different blocks of images, of which there are few, and whose
patients are not told. `[low, high]` is the 95 % bootstrap interval: over bags, over fields (cells, detector), or over
composed slides. Bags of one part share their cells: an interval says how a figure varies with the bags that are dealt,
not how it would with other patients, and is too narrow for that. An AUC is of 1 - p(NILM), abnormal against NILM; with
more than one head it is the mean over heads from different seeds. Sensitivity and specificity are at each head's own
operating point, which bags of single validation blocks of the source gave; it is never moved to the centre but where
that is said. AGC has no cell in the data: it has no figure. Nearly all SCC cells of a part are of one block: what is
counted of them is of a smear or two. A `control` shows what is found where there should be nothing.

Second forms are served of the detector, of the head's calibration, of how its bags are dealt (those unnamed cells are
in), of its operating point (the lowest of single blocks, not that of mixed bags), and of `site` (features are mapped
only where mapped colours are not enough; out of scope is three gates, not ten). All were designed with the first ones'
figures on these test blocks known, and those of the controls, their settings and weights chosen on the validation
blocks alone. That flatters them beside the first, whose figures are not here. Heads on different detectors, or on bags
dealt otherwise, are asked of different cells: their figures do not compare.
"""


def page(folder: Path) -> str:
    """The page of a folder of results, in Markdown. Raises RunInvalid."""
    found = results(folder)
    name = f"docs/results/{folder.name}"
    lines = [
        _INTRODUCTION,
        "This page is made by the command, not by hand:",
        "",
        f"    python -m training.smartccs.page {name} --out {name}.md",
        "",
        *_trainings(found, name),
        *_stale(found),
        *conditions(found),
        *blocks(found.one("blocks"), name),
        *heads(found, name),
        *_overview(found, name),
        *_encoders(found.one("encoders"), name),
        *_detector(found.one("detector", DETECTOR), name),
        *_other_detectors(found, name),
        *_cells(found.one("cells"), name),
        *missed(found, name),
        *_released(found.one("released"), name),
        *adaptation(found, name),
        *commissioning(found.one("prevalence"), name),
        *gates(found.one("gate"), name),
        *orders(found.one("order"), found.one("forgetting"), found.by_centre("norms"), name),
        *recalibration(found.one("recalibrated"), name),
        *_composed(found, name),
        *studies(found, name),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _trainings(found: Results, name: str) -> list[str]:
    told = found.one("runs")
    if told is None:
        return not_run("Trainings", f"{_EVALUATE} runs {SHIPPED} --out {name}")
    rows = [
        (
            f"`training/recipes/{recipe}.toml`" + "".join(f" `--set {change}`" for change in run["changes"]),
            str(run["seed"]),
            f"{run['git_commit'][:12]}{', files changed since' if run['git_changed_files'] else ''}",
            _length(run),
            f"{run['cpu_s'] / 60:.0f}",
            "; ".join(f"{kind} `{digest[:12]}`" for kind, digest in run["digests"].items()),
        )
        for recipe, run in told["runs"].items()
    ]
    spent = sum(run["cpu_s"] for run in told["runs"].values())
    return [
        "## Trainings",
        "",
        f"Each by `python -m training.smartccs.train RECIPE`. They took {_hours(spent)}, and all that is measured here "
        f"{_hours(found.cpu_s)} more, without what caches kept from an interrupted run. One CPU-hour is an hour of the "
        "machine, which has two cores.",
        "",
        *table(("recipe", "seed", "commit", "", "minutes of one core", "weights"), rows),
    ]


def _stale(found: Results) -> list[str]:
    if not found.stale:
        return []
    return [
        "## Left out as stale",
        "",
        "These files were measured of other weights than those of the trainings above. They are shown nowhere, and "
        "what they measured stands as not run or not measured until it is measured again:",
        "",
        *(f"- `{file}`: {reason}" for file, reason in found.stale.items()),
        "",
    ]


def _length(run: Row) -> str:
    if "training" not in run:
        return f"{len(run['heads'])} heads"
    if not run["training"]["iterations"]:
        return "weights as published"
    kept = run["training"].get("validation")
    which = f", weights of the best validation, at {kept['iteration'] + 1:,}" if kept else ""
    return f"{run['training']['iterations']:,} iterations{which}"


def _hours(cpu_s: float) -> str:
    return f"{cpu_s / 3600:.1f} hours of one core, {cpu_s / 3600 / _CORES:.1f} CPU-hours"


def _overview(found: Results, name: str) -> list[str]:
    title = "Slides at each centre: features, and adaptation"
    rows = []
    for centre in ORDER:
        for recipe, features in FEATURES.items():
            there = found.by_centre("modes", recipe).get(centre)
            for mode in (NONE, SITE):
                row = None if there is None else there["modes"].get(mode)
                if row is None:
                    rows.append((centre, features, mode, NOT_RUN, "", ""))
                    continue
                told = (shown(row[key], digits=3) for key in ("auc", "sensitivity", "specificity"))
                rows.append((centre, features, mode, *told))
    return [
        f"## {title}",
        "",
        "Synthetic bags of detected cells; mean over five heads. `none`: no adaptation; `site`: the state that is "
        "fitted once to the centre's unlabelled validation bags, behind its gate, as it is served (before the guards "
        "of the deciding rule). At the source its gate was chosen on the same bags that it is fitted to, so that it is "
        "none there by construction; [the gate](#the-gate) tells what sites of unseen source smears come to.",
        "",
        *(f"    {_EVALUATE} modes {recipe} --only none site --out {name}" for recipe in FEATURES if recipe != SHIPPED),
        f"    {_EVALUATE} modes {SHIPPED} --out {name}",
        "",
        *table(("centre", "features", "adaptation", "AUC", "sensitivity", "specificity"), rows),
    ]


def _encoders(told: Row | None, name: str) -> list[str]:
    asked = f"{_EVALUATE} encoders {SHIPPED} --out {name}"
    if told is None:
        return not_run("Encoders of cells", asked)
    rows = []
    for encoder in ENCODERS:
        row = told["encoders"].get(encoder)
        if row is None:
            rows.append((encoder, NOT_RUN, "", "", "", ""))
            continue
        keys = ("neighbours", "probe", "bags", "probe_auroc", "control_shuffled_labels")
        figures = (shown(row[key], digits=3) for key in keys)
        rows.append((encoder, *figures))
    gains = [
        (encoder, *(shown(row[key], sign=True, digits=3) for key in ("neighbours", "probe", "bags")))
        for encoder, row in told["ours_minus"].items()
    ]
    control = told["fresh_minus_control"]
    first = next(iter(told["encoders"].values()))
    head = ("encoder", "20 neighbours", "probe", "bags, AUC", "probe, macro AUROC", "control: shuffled labels")
    lines = [
        "## Encoders of cells",
        "",
        f"{first['cells']:,} annotated cells of {first['fields']} test fields, classes {', '.join(told['classes'])}: "
        f"chance is {1 / len(told['classes']):.2f}. Balanced accuracy of 20 nearest neighbours and of a linear probe; "
        f"AUC of {told['heads']} heads on synthetic bags of annotated cells. Intervals over fields and over bags. The "
        f"control: probes of {SHUFFLES} shufflings of the train labels, by macro AUROC, whose chance is 0.5; its "
        "interval "
        "is over shufflings, wide enough for all encoders at once.",
        "",
        f"    {asked}",
        "",
        *table(head, rows),
        "Self-distillation on whole tiles of 1,200 px in place of windows, for comparison: not run.",
        "",
    ]
    if gains:
        lines += ["Ours minus each other, on the same resamples:", ""]
        lines += table(("ours minus", "20 neighbours", "linear probe", "bags, AUC"), gains)
    if control:
        told_of = ", ".join(
            f"{what} {shown(control[key], sign=True, digits=3)}"
            for key, what in (("neighbours", "20 neighbours"), ("probe", "linear probe"), ("bags", "bags"))
        )
        lines += [f"`{FRESH}` minus the pixel-shuffled control: {told_of}.", ""]
    return lines


def _detector(told: Row | None, name: str) -> list[str]:
    asked = f"{_EVALUATE} detector {DETECTOR} --out {name}"
    if told is None:
        return not_run("Detector", asked)
    arms = (
        ("detector, unannotated hits are false alarms", "froc"),
        ("detector, false alarms on annotated NILM nuclei only", "froc_annotated_only"),
        ("dark blobs, unannotated hits are false alarms", "dark_blobs"),
        ("dark blobs, false alarms on annotated NILM nuclei only", "dark_blobs_annotated_only"),
        ("control: boxes of other fields", "control_other_fields"),
    )
    rates = tuple(told["froc"])
    cells = ", ".join(f"{count} {kind}" for kind, count in told["cells"].items())
    return [
        "## Detector",
        "",
        f"{told['fields']} fields of {len(told['groups'])} blocks that it never saw, with {cells} cells; in "
        f"{told['negative_fields']} fields nothing is abnormal. Boxes are squares of one size about a point, so FROC "
        "leads. Sensitivity at so many false alarms a field, whatever class is named; the first row is too severe, "
        "since not every abnormal cell is annotated, and the second too mild. Intervals over fields.",
        "",
        f"    {asked}",
        "",
        *table(
            ("", *(f"{rate} a field" for rate in rates)),
            ((title, *(shown(told[key][rate]) for rate in rates)) for title, key in arms),
        ),
        f"Detector minus dark blobs at 4 a field: {shown(told['above_dark_blobs'], sign=True)}; with false alarms on "
        f"annotated NILM nuclei only {shown(told['above_dark_blobs_annotated_only'], sign=True)}. Average precision at "
        f"half overlap: {shown(told['ap50'])}, dark blobs {shown(told['ap50_of_dark_blobs'])}.",
        "",
        "By class, at the threshold of 4 false alarms a field; classes of fewer than 30 test cells are left out. The "
        "interval is over fields, and a class of one block has no other: see [where the cells come from]"
        "(#where-the-cells-come-from):",
        "",
        *table(
            ("class", "test cells", "found"),
            ((kind, str(told["cells"][kind]), shown(row)) for kind, row in told["by_class"].items()),
        ),
    ]


def _other_detectors(found: Results, name: str) -> list[str]:
    """Of detectors that are not served, what compares them."""
    others = {recipe: row for (experiment, recipe), row in found.whole.items() if experiment == "detector"}
    rows = [
        (f"`{recipe}`", *(shown(figure) for figure in row["froc"].values()), shown(row["ap50"]))
        for recipe, row in others.items()
        if recipe != DETECTOR
    ]
    if not rows:
        return []
    return [
        "Detectors that are not served, on the same fields, unannotated hits taken for false alarms:",
        "",
        f"    {_EVALUATE} detector RECIPE --out {name}",
        "",
        *table(("recipe", "1 a field", "2 a field", "4 a field", "8 a field", "average precision"), rows),
    ]


def _cells(told: Row | None, name: str) -> list[str]:
    asked = f"{_EVALUATE} cells {SHIPPED} --out {name}"
    if told is None:
        return not_run("Heads on detected and on annotated cells", asked)
    controls = [
        (f"control: labels shuffled, head {number}, asked of detected", shown(row, digits=3))
        for number, row in enumerate(told["control_shuffled_labels"], 1)
    ]
    return [
        "## Heads on detected and on annotated cells",
        "",
        f"AUC of {told['bags']} synthetic test bags of either kind: of the same classes in the same order, but dealt "
        "anew, so that their cells and shares are others, and of detected cells with those that nobody named among "
        "the rest, which annotated ones cannot have. Both hold their class in assumed shares, the detected ones "
        "of what was found: what the detector misses they cannot show. The next section does.",
        "",
        f"    {asked}",
        "",
        *table(("head", "AUC"), [*((what, shown(row, digits=3)) for what, row in told["auc"].items()), *controls]),
        "Detected throughout minus annotated throughout: "
        f"{shown(told['gap'], sign=True, digits=3)}; on detected cells, having learned from detected minus from "
        f"annotated ones: {shown(told['gap_of_learning'], sign=True, digits=3)}.",
        "",
    ]


def _released(told: Row | None, name: str) -> list[str]:
    asked = f"{_EVALUATE} released {SHIPPED} --out {name}"
    if told is None:
        return not_run("The published adaptation", asked)
    return [
        "## The published adaptation",
        "",
        "What the published code comes to, on batches of 16 test bags: a regression test, never served. In exact "
        "arithmetic the classifier has no gradient at all. Adam takes a step of its rate, 1e-5, whatever the size of a "
        "gradient, of rounding too.",
        "",
        f"    {asked}",
        "",
        *table(
            (
                "head",
                "bags",
                "greatest change of a probability",
                "most probable class changes",
                "gradient of alignment",
                "greatest gradient of a weight",
            ),
            (
                (
                    kind,
                    str(row["bags"]),
                    f"{row['greatest_change']:.1e}",
                    str(row["class_changes"]),
                    "reaches the classifier" if row["classifier_has_gradient"] else "None",
                    f"{row['greatest_slope']:.1e}",
                )
                for kind, row in told["heads"].items()
            ),
        ),
    ]


def _composed(found: Results, name: str) -> list[str]:
    asked = f"python -m training.smartccs.composed TRUTH.json --reports DIR --out {name}"
    if not found.composed:
        return not_run("Composed slides, through the served pipeline", asked)
    rows = []
    for centre, row in found.composed.items():
        figures = (
            "–" if row[key] is None else shown(row[key])
            for key in ("auc_unadapted", "auc", "sensitivity", "specificity")
        )
        abnormal = sum(row["slides"].values()) - row["slides"]["NILM"]
        rows.append(
            (
                centre,
                str(row["slides"]["NILM"]),
                str(abnormal),
                *figures,
                str(row["withheld"]) + "".join(f"; {reason} {count}" for reason, count in row["reasons"].items()),
                str(row["unsatisfactory"]),
                str(row["without_report"]),
                ", ".join(row["verdicts"]),
            )
        )
    head = (
        "centre", "NILM", "abnormal", "AUC without adaptation", "AUC as served", "sensitivity", "specificity",
        "withheld", "unsatisfactory", "without a report", "site",
    )  # fmt: skip
    return [
        "## Composed slides, through the served pipeline",
        "",
        "Slides of real background with real cells of the test part placed in it, no patients; read by `pathserve "
        "analyze`. A slide whose call is withheld counts as neither found nor called normal. One without a report, "
        "whose analysis failed or was not made, is in no figure but its count. A slide of a site that is not "
        "commissioned is served without adaptation: both areas are of the same answers then. Centres that are not "
        "here were not run. Intervals over slides.",
        "",
        f"    {asked}",
        "",
        *table(head, rows),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, or 1 with one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m training.smartccs.page", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args(arguments)
    return command.status(lambda: write_atomic(chosen.out, page(chosen.folder).encode()), "The page")


if __name__ == "__main__":
    sys.exit(main())
