"""What the results page says of the served network: Dice, baselines, words, wrong prompts, absence, support."""

from collections.abc import Mapping
from typing import Any

from training.pathsegmentor.absent_page import absent_places
from training.pathsegmentor.calibrate import FEWEST_GROUPS, FEWEST_PAIRS
from training.pathsegmentor.conditions import BAR
from training.pathsegmentor.markdown import NOT_RUN, p_value, shown, table, tested, verdict

_ANSWERS = {
    "served": "as served",
    "dice": "as drawn",
    "otsu": "otsu",
    "box_union": "union box",
    "box_instances": "instance boxes",
    "whole_image": "whole image",
}


def sections(run: Mapping[str, Any]) -> list[str]:
    """All that is told of the served network alone, but for its pictures."""
    figures = run["figures"]
    return [
        *_origin(run),
        *_overlap(figures["overlap"]),
        *_otsu(figures),
        *_boxes(figures["baselines"]),
        *_words(figures["words"]),
        *_wrong(figures["wrong"], run["controls"]),
        *_exchanged(figures.get("exchanged", {})),
        *_absence(figures["absence"], run["presence"]),
        *_by_level(run["absence_by_level"]["test"]),
        *absent_places(run.get("absent_places", {})),
        *_supported(run["supports"]),
    ]


def _origin(run: Mapping[str, Any]) -> list[str]:
    changed = f" (with {run['git_changed_files']} changed files)" if run["git_changed_files"] else ""
    return [
        "## The served network",
        "",
        f"Recipe `training/recipes/{run['recipe']}.toml`, seed {run['seed']}, "
        f"commit {run['git_commit'][:12]}{changed}, "
        f"{run['training_cpu_s']:.0f} s of CPU time on one thread for training and {run['evaluation_cpu_s']:.0f} s for "
        "these figures.",
        "",
        f"    python -m training.pathsegmentor.train training/recipes/{run['recipe']}.toml",
        f"    python -m training.pathsegmentor.evaluate ../runs/{run['recipe']} --out docs/results/pathsegmentor",
        "",
    ]


def _overlap(overlap: Mapping[str, Any]) -> list[str]:
    head = ("", *_ANSWERS.values(), "pairs", "groups")
    lines = []
    for part, title in (("test", "Held-out groups"), ("external", "Other sources, never trained on")):
        found = overlap[part]
        for rows, first in ((found["by_set"], "set"), (found["by_prompt"], "set · prompt")):
            lines += [f"### {title}: Dice by {first}", ""]
            lines += table(
                head,
                (
                    (
                        name,
                        *(shown(row[column]) for column in _ANSWERS),
                        str(row["dice"]["pairs"]),
                        str(row["dice"]["groups"]),
                    )
                    for name, row in rows.items()
                    if row["dice"]
                ),
            )
        lines += [
            f"All pairs: {shown(found['pairs']['served'])} as served, {shown(found['pairs']['dice'])} as drawn; mean "
            f"over prompts: {shown(found['prompts'])} as served, {shown(found['prompts_drawn'])} as drawn.",
            "",
        ]
    return lines


def _otsu(figures: Mapping[str, Any]) -> list[str]:
    found = figures["baselines"]["otsu"]
    by_kind = {
        name: row
        for part in figures["overlap"].values()
        for name, row in part["by_set"].items()
        if row["otsu"] and name not in found
    }
    return [
        "## Nuclei against Otsu's threshold",
        "",
        "All nuclei of an image: the network's Dice minus that of Otsu's threshold of haematoxylin optical density, a "
        "patient (where nobody knows them: a field, a near-duplicate) at a time.",
        "",
        *tested(found, "set", "network minus otsu"),
        f"By Holm's p below 0.05 the network is {verdict(found) or NOT_RUN}."
        + "".join(
            f" {name} is not in the table: it tells kinds of nuclei and not all. There the network is at "
            f"{shown(row['dice'])} as drawn, Otsu's threshold, which marks every kind, at {shown(row['otsu'])}."
            for name, row in by_kind.items()
        ),
        "",
    ]


def _boxes(baselines: Mapping[str, Any]) -> list[str]:
    return [
        "## Against box oracles",
        "",
        "The oracles are told where the object is; the network is not.",
        "",
        *tested(baselines["box_union"], "set", "network minus union box"),
        *tested(baselines["box_instances"], "set", "network minus instance boxes"),
        *tested(baselines["whole_image"], "set", "network minus whole image"),
    ]


def _words(words: Mapping[str, Any]) -> list[str]:
    columns = ("no_level", "no_region", "no_constant")
    lost = [
        name
        for name, row in words.items()
        if row["levels"] == 1 and row["common_scale_no_level"] and row["common_scale_no_level"]["high"] < 0
    ]
    return [
        "## Leaving out words",
        "",
        "What the same network loses where a word is kept from it: the level, the region (`unspecified` in its place), "
        "and `pathology`, which every prompt has (control: no change). At the level's own scale the scale tells the "
        "level too; at one scale for all (0.5 µm per pixel) it does not. Only an object that is annotated on two "
        "levels can be mistaken for another. The network never saw a prompt without its level; one trained so is an "
        "arm "
        "of its own."
        + (
            f" At one scale objects of one level lose as well ({', '.join(lost)}), so that what is lost does not show "
            "that the word tells levels apart."
            if lost
            else ""
        ),
        "",
        *table(
            (
                "level, object",
                "levels of the object",
                "Dice",
                "no level",
                "no region",
                "control: no `pathology`",
                "one scale",
                "one scale, no level",
            ),
            (
                (
                    name,
                    str(row["levels"]),
                    shown(row["dice"]),
                    *(shown(row[column], sign=True) for column in columns),
                    shown(row["common_scale"]),
                    shown(row["common_scale_no_level"], sign=True),
                )
                for name, row in words.items()
            ),
        ),
    ]


def _wrong(wrong: Mapping[str, Any], controls: Mapping[str, Any]) -> list[str]:
    titles = {
        "wrong_level": "the same object on another level",
        "wrong_object": "another object of the same level that shares no pixel with it",
        "permuted": "prompts exchanged over all pairs (the right one may come again)",
    }
    lines = ["## Wrong prompts", "", "Dice of the right prompt minus that of a wrong one, on the same truth.", ""]
    for column, title in titles.items():
        lines += [f"{title[0].upper()}{title[1:]}:", "", *tested(wrong[column], "set", "right minus wrong")]
    return [
        *lines,
        f"Control: the same prompt twice gives the same bits in {controls['same_twice']} of {controls['images']} "
        "images. Alone or among others in one request, a prompt gives the same mask in "
        f"{controls['same_mask_among_others']}; the greatest difference of a probability is "
        f"{controls['largest_difference']:.1e}. This is the trained network; as it is served, a text has the same "
        "vector alone and among others, and a prompt the same mask, to the rounding that "
        "[gate G4](../engines.md#models) shows.",
        "",
    ]


def _exchanged(exchanged: Mapping[str, Any]) -> list[str]:
    """What is left where prompts are exchanged, beside the answer that no prompt is needed for."""
    if not exchanged:
        return []
    return [
        "### Prompts exchanged, and the largest object",
        "",
        "A network that its prompt tells nothing can do no better than to mark what is largest. `largest object` is "
        "an oracle: the largest of an image's outlines, whatever is asked; where images have one, it is the truth.",
        "",
        *table(
            (
                "set",
                "outlines an image, at most",
                "right prompt",
                "exchanged",
                "largest object",
                "exchanged minus largest",
                "p",
            ),
            (
                (
                    name,
                    str(row["outlines"]),
                    *(shown(row[key]) for key in ("dice", "permuted", "largest_object")),
                    shown(row["gap"], sign=True),
                    p_value(row["gap"]["p"]),
                )
                for name, row in exchanged.items()
            ),
        ),
    ]


def _absence(absence: Mapping[str, Any], rules: Mapping[str, Any]) -> list[str]:
    within = absence["mean_within_sets"]
    lines = [
        "## What is not there",
        "",
        f"Presence counts {_rules(rules)}. Area under the ROC "
        "curve in whole images, of prompts whose objects the set annotates exhaustively: within prompts (the mean over "
        "prompts that are there in some images and not in others), and over all prompts of a set together. The latter "
        "can come from the prompt without the image; how far, the control shows, which says how often a prompt's "
        "object "
        "is there in validation images.",
        "",
        *table(
            (
                "set",
                "objects",
                "present / absent",
                "within prompts",
                "prompts together",
                "control: the prompt alone",
                "control: shuffled",
                "Beta test alone",
            ),
            (
                (
                    name,
                    str(row["objects"]),
                    f"{row['present']} / {row['absent']}",
                    *(
                        shown(row[key])
                        for key in ("within_prompts", "pooled", "prompt_alone", "shuffled", "beta_auroc")
                    ),
                )
                for name, row in absence["by_set"].items()
                if row["objects"]
            ),
        ),
        *_bar(within),
        *(
            f"- {name}: {_by_prompt(row['within_prompts'])}."
            for name, row in absence["by_set"].items()
            if row["within_prompts"]
        ),
        "",
        "How often a mask is shown where the object is not, and then none where it is:",
        "",
    ]
    rules = ("neither", "head", "Beta test", "both")
    return [
        *lines,
        *table(
            ("set", "", *rules, "mean area where it is not, as drawn"),
            (
                (
                    name,
                    title,
                    *(shown(row[key][rule]) if rule in row[key] else "–, not fitted" for rule in rules),
                    shown(row["false_area"]) if key == "false_mask" else "",
                )
                for name, row in absence["by_set"].items()
                if row["false_area"]
                for key, title in (("false_mask", "false masks"), ("missed", "missed"))
            ),
        ),
        "The Beta test is fitted on prompts of validation images; a set with other prompts has no figure of it.",
        "",
    ]


def _rules(rules: Mapping[str, Any]) -> str:
    return ", ".join(
        f"from {rule['threshold']:.2f} on at the level of {level} (temperature {rule['temperature']:.2f}"
        f"{', chosen on all levels' if rule['pooled'] else ''})"
        for level, rule in rules.items()
    )


def _bar(within: Mapping[str, float]) -> list[str]:
    if not within:
        return ["No set tells three objects or more exhaustively.", ""]
    met = {True: "is met", False: "is not met"}
    return [
        "The mean over sets that tell three objects or more exhaustively (held-out and other sources) is "
        f"{within['within_prompts']:.2f} within prompts and {within['pooled']:.2f} with prompts together; the bar that "
        f"was set beforehand, above {BAR}, {met[within['within_prompts'] > BAR]} by the first and "
        f"{met[within['pooled'] > BAR]} by the second. By prompt (present / absent):",
        "",
    ]


def _by_prompt(within: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{prompt.split(' · ')[-1].removesuffix(' pathology')} {row['value']:.2f} ({row['present']} / {row['absent']})"
        for prompt, row in within["by_prompt"].items()
    )


def _by_level(levels: Mapping[str, Any]) -> list[str]:
    wrong = [
        f"At the level of {level} the rule is wrong in all {row['absent']['outlined']} pairs that are known by their "
        "outlines to lack the object: each gets a mask."
        for level, row in levels.items()
        if row["absent"]["outlined"] and row["false_mask"]["outlined"]["served"]["value"] == 1
    ]
    return [
        "### By level, in windows",
        "",
        "Windows of 256 px of held-out groups, each alone, as a slide is read. Counted are pairs of a window and a "
        "prompt: an outline with several prompts counts for each. Absent is what an exhaustive outline leaves out of "
        "the window, or what cannot be in the organ. No set has a whole window of a lymph node without tumor, or of a "
        "colon without glands; how many smaller places there are without them stands below. "
        "Area under the ROC curve of presence among what is outlined, within each set's prompts:",
        "",
        *table(
            ("level", "present", "absent", "within prompts", "none where it is: as drawn", "as served"),
            (
                (
                    level,
                    str(row["present"]),
                    ", ".join(f"{name} {count}" for name, count in row["absent_objects"].items()) or "–",
                    shown(row["within_prompts"]),
                    *(shown(row["missed"][when]) for when in ("drawn", "served")),
                )
                for level, row in levels.items()
            ),
        ),
        *(f"- {level}: {_by_prompt(row['within_prompts'])}." for level, row in levels.items() if row["within_prompts"]),
        "",
        "How often a mask is shown where the object is not:",
        "",
        *table(
            ("level", "how it is known", "pairs", "as drawn", "as served"),
            (
                (level, known, str(row["absent"][known]), *(shown(figures[when]) for when in ("drawn", "served")))
                for level, row in levels.items()
                for known, figures in row["false_mask"].items()
                if row["absent"][known]
            ),
        ),
        *([" ".join(wrong), ""] if wrong else []),
    ]


def _supported(supports: Mapping[str, Any]) -> list[str]:
    return [
        "## Which prompts are supported",
        "",
        f"On validation groups: {FEWEST_PAIRS} pairs or more, of {FEWEST_GROUPS} groups or more, in a stain of the "
        "card; the interval of Dice as served minus its floor (the better of the whole image and, for nuclei, Otsu's "
        "threshold) above 0; a prompt without a region in two known regions or more; a polyp only where glands without "
        "one are known. Every other prompt is answered with the finding that it is not validated. The intervals are "
        "not "
        "adjusted for the number of prompts, and a few groups can lie above a floor by luck.",
        "",
        *table(
            ("prompt", "as served", "as drawn", "above its floor", "supported"),
            (
                (
                    prompt,
                    *("–" if row[key] is None else f"{row[key]:.2f}" for key in ("val_dice", "val_dice_drawn")),
                    shown(row["above_floor"], sign=True),
                    "yes" if row["supported"] else f"no: {'; '.join(row['unmet'])}",
                )
                for prompt, row in supports.items()
            ),
        ),
    ]
