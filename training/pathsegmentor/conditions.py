"""Which conditions, set before anything was trained, the figures meet: computed from the files, not judged by eye.

They follow the claims of arXiv 2506.20988; one that no file tells of is "not measured". They are judged by the network
that is served, but for those that compare arms, and for the choice among queries: that is the published design's.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from training.conditions import NONE, REPORTED, Verdict, section
from training.pathsegmentor.comparisons import NAIVE, NO_LEVEL, NO_REGION, ONE_QUERY, SPECIALISTS
from training.pathsegmentor.explain import CONTROL, OBJECT_AWARE, PLAIN
from training.pathsegmentor.markdown import LEVEL, p_value
from training.pathsegmentor.markdown import shown as shown_in
from training.pathsegmentor.shapes import irregularities

BAR = 0.8
"""Of presence within prompts, the mean over sets (S4)."""
_FIRST, _OF = 4, 5
"""Seeds in which the causal object must rank first (S10)."""
_OF_DISKS = 0.1
"""How far the irregularity of disks may lie from what it is known to be (S7)."""

Found = Mapping[str, Any]
shown = partial(shown_in, digits=3)
"""A bound that leaves out 0 by little must not read as 0."""


def conditions(
    served: Found | None, design: Found | None, arms: Found, explain: Found | None, engines: Found | None
) -> list[str]:
    """The section of the page: of the files of the served network and of the published design, comparisons.json,
    explain.json and served.json."""
    return section(
        "Set before training; how each is judged was written later, with figures of an earlier network at hand. A "
        "condition without a bar is reported. An interval is judged as it is, unadjusted for how many there are; where "
        f"a row has Holm's p, that decides, below {LEVEL}. Judged is the network that is served; arms (S1, S2, S5) are "
        "compared with the published design, whose queries are those of S9.",
        _rows(served, design, arms, explain, engines),
    )


def lost(served: Found | None) -> list[str]:
    """Where the served network is worse than Otsu's threshold, by its interval: for the top of the page."""
    if served is None:
        return []
    found = served["figures"]["baselines"]["otsu"]
    worse = [
        f"{name}: Dice {shown(row, sign=True)}, better in {row['better_groups']} of {row['groups']} groups, "
        f"p {p_value(row['p'])}, Holm {p_value(row['p_holm'])}"
        + ("" if row["p_holm"] < LEVEL else " (the signed-rank test does not show it)")
        for name, row in found.items()
        if row["interval"] and row["high"] < 0
    ]
    worse += [
        f"{name}, which tells kinds of nuclei and not all: Dice {shown(row['dice'])}, the threshold "
        f"{shown(row['otsu'])}"
        for name, row in served["figures"]["overlap"]["external"]["by_set"].items()
        if row["otsu"] and name not in found and row["dice"]["value"] < row["otsu"]["value"]
    ]
    return [f"**On nuclei the served network loses to Otsu's threshold on {'; '.join(worse)}.**", ""] if worse else []


def _rows(
    served: Found | None, design: Found | None, arms: Found, explain: Found | None, engines: Found | None
) -> Iterator[tuple[str, str, Verdict]]:
    figures = {} if served is None else served["figures"]
    controls = {} if served is None else served["controls"]
    yield "S1", "one network on a par with one a set on most sets", _parity(arms)
    yield "S1, control", "exchanged prompts cost Dice, and fall to marking the largest object", _exchanged(figures)
    yield (
        "S2",
        "trained without the level word, at one scale, objects of two levels lose and others do not",
        _level(arms, figures),
    )
    yield "S2", "trained without the region word, at one scale: which objects lose", _region(arms)
    yield "S2, control", "without `pathology` nothing changes", _constant(figures)
    yield "S3", "a wrong level or object costs Dice, in every set", _wrong(figures)
    yield "S3, control", "the same prompt twice gives the same bits", _all_of(controls, "same_twice")
    yield "S4", f"presence within prompts, mean over sets, above {BAR}", _presence(figures)
    yield "S4, control", "shuffled presence is chance", _shuffled(figures)
    yield "S5", "not annotated taken for absent lowers recall on other sources", _naive(arms)
    yield "S6", "Dice on a source held out, beside its oracles", _external(figures)
    yield "S7", "trends over both irregularities", _irregularities(served)
    yield "S7, control", "ten disks are as regular as one by instances; by their mask they are at 1 - 1/10", _disks()
    yield "S8", "a prompt's mask is the same with and without others", _all_of(controls, "same_mask_among_others")
    yield "S9", "the gap to the best query and the arm of one query are told", _queries(design, arms)
    yield "S10", f"the causal object ranks first in {_FIRST} of {_OF} seeds", _causal(explain)
    yield (
        "S10, control",
        "blurring the causal object costs more than an equally large area elsewhere, in every seed",
        _elsewhere(explain),
    )
    yield "S10, control", "masks of another slide take the gain away", _masks_exchanged(explain)
    yield "S10, control", "trainings with one causal object rank the objects alike", _ranks(explain)
    yield "S11", "engines through Triton against PyTorch", _engines(engines, "engine")
    yield "S11", "windows against the whole image at once", _engines(engines, "windows")
    yield "Nuclei", "better than Otsu's threshold, a patient at a time, in every set", _otsu(figures)


def _parity(arms: Found) -> Verdict:
    rows = arms.get(SPECIALISTS, {}).get("by_set", {})
    held = [name for name, row in rows.items() if _holds(row)]
    if not rows:
        return NONE
    apart = [f"{name} {shown(row, sign=True)}" for name, row in rows.items() if not _holds(row)]
    told = f"not told apart in {len(held)} of {len(rows)} sets" + (
        f"; specialist minus one network: {', '.join(apart)}" if apart else ""
    )
    return told, len(held) > len(rows) / 2


def _exchanged(figures: Found) -> Verdict:
    """Only of sets with several outlines an image, and only where the right prompt exceeds the oracle: a network whose
    right answers lie below the largest object falls below it by any other prompt too."""
    rows = {name: row for name, row in figures.get("exchanged", {}).items() if row["outlines"] > 1}
    if not rows:
        return NONE
    costs = figures["wrong"]["permuted"]
    told = (
        f"{name}: right {shown(row['dice'])}, exchanged {shown(row['permuted'])} (right minus exchanged "
        f"{shown(costs[name], sign=True)}), largest object {shown(row['largest_object'])}"
        for name, row in rows.items()
    )
    tells = all(row["dice"]["value"] > row["largest_object"]["value"] for row in rows.values())
    falls = all(row["gap"]["low"] <= 0 < costs[name]["low"] for name, row in rows.items())
    return "; ".join(told), falls if tells else None


def _losing(arms: Found, arm: str) -> list[str] | None:
    """The objects that an arm loses at one scale by their whole interval; None where it was not run."""
    rows = arms.get(arm, {}).get("by_object_one_scale", {})
    return [name for name, row in rows.items() if row["interval"] and row["high"] < 0] if rows else None


def _level(arms: Found, figures: Found) -> Verdict:
    losing = _losing(arms, NO_LEVEL)
    if losing is None or not figures:
        return NONE
    both = [name for name in arms[NO_LEVEL]["by_object_one_scale"] if figures["words"][name]["levels"] > 1]
    told = f"lost: {', '.join(losing) or 'none'}; of two levels: {', '.join(both)}"
    return told, bool(both) and set(losing) == set(both)


def _region(arms: Found) -> Verdict:
    """Without the region the level is still said: no object can be mistaken for that of another level."""
    losing = _losing(arms, NO_REGION)
    return NONE if losing is None else (f"lost: {', '.join(losing) or 'none'}", REPORTED)


def _constant(figures: Found) -> Verdict:
    rows = {name: row["no_constant"] for name, row in figures.get("words", {}).items() if row["no_constant"]}
    if not rows:
        return NONE
    changed = [f"{name} {shown(row, sign=True)}" for name, row in rows.items() if row["interval"] and not _holds(row)]
    greatest = max(abs(row["value"]) for row in rows.values())
    told = f"greatest change {greatest:.3f}; leaves out 0: {', '.join(changed) or 'none'}"
    return told, not changed


def _wrong(figures: Found) -> Verdict:
    rows = [
        (f"{title} {name}", row)
        for key, title in (("wrong_level", "level"), ("wrong_object", "object"))
        for name, row in figures.get("wrong", {}).get(key, {}).items()
    ]
    short = [f"{name} {shown(row, sign=True)}" for name, row in rows if row["low"] <= 0]
    return (
        (f"above 0 in {len(rows) - len(short)} of {len(rows)}" + "".join(f"; {each}" for each in short), not short)
        if rows
        else NONE
    )


def _all_of(controls: Found, key: str) -> Verdict:
    return (
        (f"{controls[key]} of {controls['images']} images", controls[key] == controls["images"]) if controls else NONE
    )


def _presence(figures: Found) -> Verdict:
    within = figures.get("absence", {}).get("mean_within_sets", {})
    return (f"{within['within_prompts']:.2f}", within["within_prompts"] > BAR) if within else NONE


def _shuffled(figures: Found) -> Verdict:
    rows = {
        name: row["shuffled"] for name, row in figures.get("absence", {}).get("by_set", {}).items() if row["shuffled"]
    }
    away = [
        f"{name} {shown(row)}" for name, row in rows.items() if row["interval"] and not row["low"] <= 0.5 <= row["high"]
    ]
    return (
        (
            f"0.5 in the interval of {len(rows) - len(away)} of {len(rows)} sets"
            + "".join(f"; {each}" for each in away),
            not away,
        )
        if rows
        else NONE
    )


def _naive(arms: Found) -> Verdict:
    rows = arms.get(NAIVE, {}).get("external_recall", {})
    if not rows:
        return NONE
    return _with_holm(rows), all(row["value"] < 0 and row["p_holm"] < LEVEL for row in rows.values())


def _external(figures: Found) -> Verdict:
    rows = figures.get("overlap", {}).get("external", {}).get("by_set", {})
    told = "; ".join(
        f"{name} {shown(row['dice'])}, union box {shown(row['box_union'])}, whole image {shown(row['whole_image'])}"
        for name, row in rows.items()
    )
    return (told, REPORTED) if rows else NONE


def _irregularities(served: Found | None) -> Verdict:
    trends = {} if served is None else served["trends"]
    both = [
        level for level, trend in trends.items() if {"irregularity_mask", "irregularity_instance"} <= set(trend["by"])
    ]
    few = [level for level in trends if level not in both]
    if not trends:
        return NONE
    return f"{', '.join(both) or 'none'}" + "".join(f"; {level}: too few outlines" for level in few), not few


def _disks() -> Verdict:
    of_mask, of_instances = {}, {}
    for name, *_, mask, instances in irregularities():
        of_mask[name], of_instances[name] = mask, instances
    one, ten = "disk, radius 20", "ten disks, radius 10"
    told = (
        f"by instances {of_instances[one]:.3f} and {of_instances[ten]:.3f}, "
        f"by mask {of_mask[one]:.3f} and {of_mask[ten]:.3f}"
    )
    away = of_instances[one], of_instances[ten], of_mask[one], of_mask[ten] - 0.9
    return told, all(abs(value) < _OF_DISKS for value in away)


def _queries(design: Found | None, arms: Found) -> Verdict:
    gap = None if design is None else design["figures"]["selection"]["gap"]
    rows = arms.get(ONE_QUERY, {}).get("by_set")
    if not gap:
        return NONE
    told = f"gap {shown(gap, sign=True)}"
    if not rows:
        return f"{told}; the arm was not run", None
    return f"{told}; one query: " + ", ".join(f"{name} {shown(row, sign=True)}" for name, row in rows.items()), REPORTED


def _causal(explain: Found | None) -> Verdict:
    if explain is None:
        return NONE
    first, seeds = explain["causal_first"], len(explain["seeds"])
    return f"{first} of {seeds}, on made slides", first * _OF >= _FIRST * seeds


def _elsewhere(explain: Found | None) -> Verdict:
    if explain is None:
        return NONE
    excess = {run["seed"]: run["objects"][run["causal"]]["excess"] for run in explain["seeds"]}
    short = [
        f"seed {seed}: {value:+.3f} [{low:+.3f}, {high:+.3f}]"
        for seed, (value, low, high) in excess.items()
        if low <= 0
    ]
    return "; ".join((f"above 0 in {len(excess) - len(short)} of {len(excess)}", *short)), not short


def _masks_exchanged(explain: Found | None) -> Verdict:
    if explain is None:
        return NONE
    seeds: Sequence[Found] = [run["auroc"] for run in explain["seeds"]]
    gaining = [auroc for auroc in seeds if auroc[OBJECT_AWARE] > auroc[PLAIN]]
    gone = sum(auroc[CONTROL] <= auroc[PLAIN] for auroc in gaining)
    told = f"object-aware gains in {len(gaining)} of {len(seeds)} seeds; of these the gain is gone in {gone}"
    return told, gone == len(gaining) if gaining else None


def _ranks(explain: Found | None) -> Verdict:
    if explain is None:
        return NONE
    return f"Kendall's τ {explain['rank_agreement']:.2f} over three trainings (0 is chance)", REPORTED


def _engines(engines: Found | None, part: str) -> Verdict:
    if engines is None:
        return NONE
    found = engines[part]
    told = f"greatest difference of Dice {found['largest']:.1e} (bound {found['bounds']['dice']:.0e})"
    if "presence" in found["bounds"]:
        told += f", of presence {found['largest_presence']:.1e} (bound {found['bounds']['presence']:.0e})"
    return f"{told}, {found['pairs']} pairs", found["met"]


def _otsu(figures: Found) -> Verdict:
    rows = figures.get("baselines", {}).get("otsu", {})
    if not rows:
        return NONE
    return _with_holm(rows), all(row["value"] > 0 and row["p_holm"] < LEVEL for row in rows.values())


def _with_holm(rows: Found) -> str:
    return "; ".join(f"{name} {shown(row, sign=True)}, Holm {p_value(row['p_holm'])}" for name, row in rows.items())


def _holds(row: Found) -> bool:
    """Whether an interval holds 0."""
    return bool(row["low"] <= 0 <= row["high"])
