"""What the results page says of the shipped network: Dice, baselines, words, wrong prompts, absence, support."""

from collections.abc import Mapping
from typing import Any

from training.pathsegmentor.markdown import shown, table, tested

_BASELINES = {
    "dice": "network",
    "otsu": "otsu",
    "box_union": "union box",
    "box_instances": "instance boxes",
    "whole_image": "whole image",
}


def sections(run: Mapping[str, Any]) -> list[str]:
    """All that is told of the shipped network alone, but for its pictures."""
    figures = run["figures"]
    return [
        *_origin(run),
        *_overlap(figures["overlap"]),
        *_otsu(figures["baselines"]),
        *_boxes(figures["baselines"]),
        *_words(figures["words"]),
        *_wrong(figures["wrong"], run["controls"]),
        *_absence(figures["absence"], run["presence"]),
        *_selection(figures["selection"]),
        *_supported(run["supports"]),
    ]


def _origin(run: Mapping[str, Any]) -> list[str]:
    changed = f" (with {run['git_changed_files']} changed files)" if run["git_changed_files"] else ""
    return [
        "## The shipped network",
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
    head = ("", *_BASELINES.values(), "pairs", "groups")
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
                        *(shown(row[column]) for column in _BASELINES),
                        str(row["dice"]["pairs"]),
                        str(row["dice"]["groups"]),
                    )
                    for name, row in rows.items()
                    if row["dice"]
                ),
            )
        lines += [
            f"All pairs: {shown(found['pairs']['dice'])}; mean over prompts: {shown(found['prompts'])}.",
            "",
        ]
    return lines


def _otsu(baselines: Mapping[str, Any]) -> list[str]:
    return [
        "## Nuclei against Otsu's threshold",
        "",
        "All nuclei of an image: the network's Dice minus that of Otsu's threshold of haematoxylin optical density.",
        "",
        *tested(baselines["otsu"], "set", "network minus otsu"),
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
    return [
        "## Leaving out words",
        "",
        "What the same network loses where a word is kept from it: the level, the region (`unspecified` in its place), "
        "and `pathology`, which every prompt has (control: no change). At the level's own scale the scale tells the "
        "level too; at one scale for all (0.5 µm per pixel) it does not. Only an object that is annotated on two "
        "levels can be mistaken. The network never saw a prompt without its level: a trained arm stands below.",
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
                "no level",
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
        "permuted": "control: prompts exchanged over all pairs",
    }
    lines = ["## Wrong prompts", "", "Dice of the right prompt minus that of a wrong one, on the same truth.", ""]
    for column, title in titles.items():
        lines += [f"{title[0].upper()}{title[1:]}:", "", *tested(wrong[column], "set", "right minus wrong")]
    return [
        *lines,
        f"Control: the same prompt twice gives the same bits in {controls['same_twice']} of {controls['images']} "
        "images. Alone or among others in one request, a prompt gives the same mask in "
        f"{controls['same_mask_among_others']}; the greatest difference of a probability is "
        f"{controls['largest_difference']:.1e}.",
        "",
    ]


def _absence(absence: Mapping[str, Any], rule: Mapping[str, Any]) -> list[str]:
    within = absence["mean_within_sets"]
    lines = [
        "## What is not there",
        "",
        f"Presence counts from {rule['threshold']:.2f} on, temperature {rule['temperature']:.2f}. Area under the ROC "
        "curve within each set, over prompts whose objects the set annotates exhaustively; the mean over sets of three "
        f"objects or more is {f'{within:.2f}' if within is not None else 'not defined'}. Over all sets together it is "
        f"{shown(absence['pooled'])}, which prompts that are told by their set alone inflate.",
        "",
        *table(
            ("set", "objects", "present / absent", "presence", "control: shuffled", "Beta test alone"),
            (
                (
                    name,
                    str(row["objects"]),
                    f"{row['auroc']['present']} / {row['auroc']['absent']}" if row["auroc"] else "one label only",
                    shown(row["auroc"]),
                    shown(row["shuffled"]),
                    shown(row["beta_auroc"]),
                )
                for name, row in absence["by_set"].items()
            ),
        ),
        "How often a mask is shown where the object is not, and, in brackets, none where it is:",
        "",
    ]
    rules = ("neither", "head", "Beta test", "both")
    lines += table(
        ("set", *rules, "mean area where it is not"),
        (
            (
                name,
                *(f"{shown(row['false_mask'][rule])} ({_share(row['missed'][rule])})" for rule in rules),
                _share(row["false_area"]),
            )
            for name, row in absence["by_set"].items()
            if row["false_area"]
        ),
    )
    return lines


def _share(figure: Mapping[str, Any]) -> str:
    return f"{figure['value']:.1%}" if figure else "–"


def _selection(selection: Mapping[str, Any]) -> list[str]:
    return [
        "## Which query answers",
        "",
        f"The chosen query: {shown(selection['chosen'])}; the best of all queries, told by the truth (oracle): "
        f"{shown(selection['best'])}; gap {shown(selection['gap'], sign=True)}.",
        "",
    ]


def _supported(supports: Mapping[str, Any]) -> list[str]:
    return [
        "## Which prompts are supported",
        "",
        "On validation groups: five pairs or more, of three groups or more, and the interval of Dice minus its floor "
        "(the better of the whole image and, for nuclei, Otsu's threshold) above 0. Every other prompt is answered "
        "with the finding that it is not validated.",
        "",
        *table(
            ("prompt", "validation Dice", "above its floor", "supported"),
            (
                (
                    prompt,
                    "–" if row["val_dice"] is None else f"{row['val_dice']:.2f}",
                    shown(row["above_floor"], sign=True),
                    "yes" if row["supported"] else "no",
                )
                for prompt, row in supports.items()
            ),
        ),
    ]
