"""The results page's sections of adaptation to other centres."""

from collections.abc import Iterator, Mapping

from gateway.domain.bethesda import NAMES
from training.markdown import NOT_RUN, shown, table
from training.smartccs.modes import NONE, OTHER_ORGAN, SHUFFLED_BANK, SITE
from training.smartccs.results import SHIPPED, Results, Row

_EVALUATE = "python -m training.smartccs.evaluate"
_MODES = {
    NONE: "none",
    "colour": "A: colour only",
    SITE: "site: A, and B where A is not enough, behind the gate (served)",
    "A+B": "A+B without the gate",
    "features": "B without A",
    "all cells": "B without A, all cells alike",
    "batch": "moments of a batch, plain",
    "batch, anchored": "moments of a batch, weighted",
    "gradient": "gradient (prototypes and agreement)",
    "Reinhard": "Reinhard's stain normalisation",
    SHUFFLED_BANK: "control: gradient, prototypes of shuffled labels",
    OTHER_ORGAN: "control: A+B, statistics of another organ",
}
_NORMS = {
    NONE: "none",
    SITE: "site (served)",
    "stat": "moments, by the norms",
    "tent": "TENT",
    "sar": "SAR",
    "ema": "slow teacher (after CoTTA)",
}


def adaptation(found: Results, name: str) -> list[str]:
    """E5: a table a centre; then where adaptation hurts, and what the guards do."""
    there, norms = found.by_centre("modes"), found.by_centre("norms")
    lines = [
        "## Adaptation at each centre",
        "",
        "Mean over five heads, at each head's own source operating point. Gains are against none on bags of the same "
        "classes in the same order: the same bags where a mode looks at the same pictures, and bags dealt anew of what "
        "is found there, with other cells and shares, where it maps colours before the detector (`colour`, `site`, "
        "A+B, Reinhard, the other organ). "
        "`class right`: share of bags whose named category is theirs (served head). `turned normal`: abnormal calls of "
        "the served head that the mode alone would turn normal, in brackets those of truly abnormal bags. All but "
        "`site` are research, and not served.",
        "",
        f"    {_EVALUATE} modes {SHIPPED} --out {name}",
        f"    {_EVALUATE} norms {SHIPPED} --centres 'stain B' scanner --out {name}",
        "",
    ]
    if not there:
        lines += [f"{NOT_RUN.capitalize()}.", ""]
    for centre, told in there.items():
        best = told["states"][told["best"]]
        verdicts = ", ".join(sorted({state["verdict"] for state in told["states"]}))
        mapped = "" if best["distance_coloured"] is None else f", {best['distance_coloured']:.3f} with colours mapped"
        raw = "not told" if best["distance_raw"] is None else f"{best['distance_raw']:.3f}"
        gate = "–" if best["gate"] is None else f"{best['gate']:.3f}"
        lines += [
            f"### {centre}",
            "",
            f"{told['bags']} test bags, {told['abnormal']} abnormal; {told['detected']['raw']:,} cells of the unseen "
            f"fields detected as they are, {told['detected']['coloured']:,} with colours mapped. The sites of "
            f"{len(told['states'])} heads: {verdicts}; the served one's distance is "
            f"{raw}{mapped}, its gate {gate}.",
            "",
            *_modes_table(told, _MODES, right=True),
        ]
        if centre in norms:
            of = norms[centre]
            tuned = {mode: row for mode, row in of["modes"].items() if "steps" in row}
            lines += [
                "The encoder's norms tuned on the centre's validation bags, then left as they are for its "
                f"{of['bags']} "
                "test bags, served head. Steps of the optimiser: "
                + "; ".join(_steps(mode, row) for mode, row in tuned.items())
                + ". What is published of TENT, SAR and CoTTA rests on hundreds of updates and more: what so few do is "
                "their beginning, and too short to judge them by.",
                "",
                *_modes_table(of, _NORMS, right=False),
            ]
        else:
            lines += [f"The encoder's norms tuned (TENT, SAR, slow teacher, moments): {NOT_RUN}.", ""]
    for centre, reason in found.failed.get(("modes", SHIPPED), {}).items():
        lines += [f"### {centre}", "", f"Nothing can be measured: {reason}", ""]
    lines += _hurts(there)
    different = found.by_centre("different")
    lines += ["### A really different set", ""]
    if not different:
        return [*lines, f"{NOT_RUN.capitalize()}: no such set at hand (`{_EVALUATE} different {SHIPPED}`).", ""]
    for centre, told in different.items():
        lines += [f"`{centre}`, annotated cells:", "", *_modes_table(told, _MODES, right=True)]
    return lines


def _steps(mode: str, row: Row) -> str:
    anew = f", begun anew {row['begun_anew']} times" if row["begun_anew"] else ""
    return f"{_NORMS[mode]} {row['steps']}, of {row['slides_together']} slides{anew}"


def _modes_table(told: Row, titles: Mapping[str, str], *, right: bool) -> list[str]:
    rows = []
    for mode, title in titles.items():
        row = told["modes"].get(mode)
        if row is None:
            rows.append((title, NOT_RUN, *[""] * (6 if right else 5)))
            continue
        own = row["served"]
        rows.append(
            (
                title,
                shown(row["auc"], digits=3),
                shown(row["auc_gain"], sign=True, digits=3),
                shown(row["sensitivity"]),
                shown(row["sensitivity_gain"], sign=True),
                shown(row["specificity"]),
                *([f"{row['right_class']:.2f}"] if right else []),
                f"{own['turned_normal']} ({own['turned_normal_of_abnormal']})",
            )
        )
    head = (
        "mode",
        "AUC",
        "AUC gain",
        "sensitivity",
        "its gain",
        "specificity",
        *(["class right"] if right else []),
        "turned normal",
    )
    return table(head, rows)


def _hurts(there: Mapping[str, Row]) -> list[str]:
    """By intervals: where a mode is worse than none; and what becomes of it, and of `site`, by the deciding rule."""
    if not there:
        return []
    worse = [
        f"{centre}, {_MODES[mode]}: {'; '.join(found)}"
        for centre, told in there.items()
        for mode, row in told["modes"].items()
        if not mode.startswith("control")
        for found in [list(_losses(row))]
        if found
    ]
    lines = ["### Where adaptation hurts, and what the guards then do", ""]
    lines += (
        ["By its whole interval worse than none:", "", *(f"- {each}" for each in worse), ""]
        if worse
        else ["Nowhere by its whole interval.", ""]
    )
    rows = [
        (centre, "none", *_sides(told["modes"][NONE]["served"]), "", "", "", "")
        if mode == NONE
        else (centre, _MODES[mode], *_sides(row["served"]), *_guarded(row["served"]))
        for centre, told in there.items()
        for mode, row in told["modes"].items()
        if mode in (NONE, SITE) or (not mode.startswith("control") and list(_losses(row)))
    ]
    return [
        *lines,
        "The served head under `site`, and under the modes that hurt, before and after the guards of the deciding "
        "rule: a call that adaptation would turn normal (in brackets: of truly abnormal bags) stays abnormal, and is "
        "flagged; at a site out of scope no normal call is made. Where nothing would turn normal, the guards show "
        "nothing.",
        "",
        *table(
            (
                "centre", "mode", "sensitivity", "specificity", "turned normal", "stopped", "sensitivity with guards",
                "specificity with guards",
            ),
            rows,
        ),
        *_by_grade(there),
    ]  # fmt: skip


def _sides(row: Row) -> tuple[str, str]:
    return shown(row["sensitivity"]), shown(row["specificity"])


def _guarded(own: Row) -> tuple[str, ...]:
    turned, guarded = f"{own['turned_normal']} ({own['turned_normal_of_abnormal']})", own["guarded"]
    withheld = f", {guarded['withheld']} withheld" if guarded["withheld"] else ""
    return turned, f"{guarded['stopped']}{withheld}", *_sides(guarded)


def _by_grade(there: Mapping[str, Row]) -> list[str]:
    """What else is told of the source's bags, at each centre."""
    rows = []
    for centre, told in there.items():
        for mode in (NONE, SITE):
            own = told["modes"][mode]["served"]
            numbers = (
                own[key]
                for key in ("sensitivity_high_grade", "specificity_at_95", "balanced_accuracy", "calibration_error")
            )
            recalls = (own["recall"][kind] for kind in NAMES)
            rows.append((centre, mode, *("–" if each is None else f"{each:.2f}" for each in (*numbers, *recalls))))
    return [
        "The served head besides: high-grade bags (ASC-H, HSIL, SCC) that are called abnormal, specificity where 95 % "
        "of the centre's abnormal bags would be found, balanced accuracy and calibration error of the classes, and "
        "recall by class (of SCC, of the cells of a smear or two):",
        "",
        *table(
            (
                "centre", "adaptation", "sensitivity, high-grade", "specificity at 95 % sensitivity",
                "balanced accuracy", "calibration error", *NAMES,
            ),
            rows,
        ),
    ]  # fmt: skip


def _losses(row: Row) -> Iterator[str]:
    for key, what in (("auc_gain", "AUC"), ("sensitivity_gain", "sensitivity"), ("specificity_gain", "specificity")):
        if row[key]["high"] < 0:
            yield f"{what} {shown(row[key], sign=True, digits=3)}"


def commissioning(told: Row | None, name: str) -> list[str]:
    """E6."""
    asked = f"{_EVALUATE} prevalence {SHIPPED} --out {name}"
    lines = ["## Prevalence in commissioning, and a sorted stream", ""]
    if told is None:
        return [*lines, f"{NOT_RUN.capitalize()}:", "", f"    {asked}", ""]
    lines += [
        "A+B without the gate, its features fitted to bags of which a share is abnormal (its colours, as ever, to all "
        "validation fields of the centre); `anchored`: cells weighed by how surely they are NILM. Gain of AUC over "
        "none on the test bags, mean over heads.",
        "",
        f"    {asked}",
        "",
    ]
    shares = {row["share"]: None for of in told["by_centre"].values() for row in of["fits"].values()}
    rows = []
    for centre, of in told["by_centre"].items():
        for kind in dict.fromkeys(row["fit"] for row in of["fits"].values()):
            gains = {row["share"]: row["auc_gain"] for row in of["fits"].values() if row["fit"] == kind}
            title = kind if kind == "anchored" else f"control: {kind}"
            rows.append((centre, title, *(shown(gains[share], sign=True, digits=3) for share in shares)))
    lines += table(("centre", "fit", *(f"{share:.0%} abnormal" for share in shares)), rows)
    stream = told["sorted_stream"]
    lines += [f"Moments of a batch of {stream['batch']}, on a stream of the source; gain of AUC over none:", ""]
    lines += table(
        ("stream", "plain (the control)", "weighted"),
        (
            (order, *(shown(row[mode]["auc_gain"], sign=True, digits=3) for mode in ("batch", "batch, anchored")))
            for order, row in stream["streams"].items()
        ),
    )
    return lines


def gates(told: Row | None, name: str) -> list[str]:
    """E7."""
    asked = f"{_EVALUATE} gate {SHIPPED} --out {name}"
    lines = ["## The gate", ""]
    if told is None:
        return [*lines, f"{NOT_RUN.capitalize()}:", "", f"    {asked}", ""]
    third = told["third_source_set"]
    rows = [("source, test bags", *_sets(third), third["verdict"])]
    for centre, of in told["shifts"].items():
        rows += [(centre, *_sets(of["raw"]), ""), (f"{centre}, colours mapped", *_sets(of["coloured"]), "")]
    for what, of in told["strangers"].items():
        far = (f"{of[key]:.3f}" if of[key] is not None else "–" for key in ("distance_raw", "distance_coloured"))
        rows.append((f"control: {what}", "–", "; with colours mapped ".join(far), f"{of['gate']:.3f}", of["verdict"]))
    same = "to the bit those without" if third["same_bits"] else "not those without"
    return [
        *lines,
        "Distance of moments of 200 sets of 32 test bags from the source, served head. The gate is chosen on "
        f"validation bags; the source's test bags are a third set. Fitted to all of these, the answers are {same}.",
        "",
        f"    {asked}",
        "",
        *table(("sets of", "within the gate", "distance: median (least to greatest)", "gate", "verdict"), rows),
        "The gate was chosen on the source's validation bags, so that a site fitted to these is like the source by "
        "construction, and `site` at the source is none. Sites that show one block of the source's test smears alone, "
        "32 bags of its cells, may be found unlike it; gain of AUC over none on the test bags of all blocks, served "
        "head:",
        "",
        *table(
            ("block", "verdict", "distance", "with colours mapped", "AUC gain"),
            (_block(block, of) for block, of in told["one_block"].items()),
        ),
        "Bags of one block's cells alone, as the smears of one laboratory would be, without a state and with that of "
        "the site, served head. The odds are the median log odds of abnormal over NILM bags: where they lie apart from "
        "block to block by more than the classes do within one, no operating point can hold for both, however well "
        "bags are told apart within each. A site is asked here of the cells that it was fitted to, which flatters it. "
        "Intervals are over bags inside the block and say nothing of another:",
        "",
        *table(
            ("block", "adaptation", "AUC", "AUC gain", "sensitivity", "specificity", "odds of NILM bags"),
            (row for block, of in told["one_block"].items() for row in _own(block, of["own"])),
        ),
    ]


def _own(block: str, own: Row | None) -> Iterator[tuple[str, ...]]:
    for mode, row in (own or {}).items():
        gain = "" if mode == NONE else shown(row["auc_gain"], sign=True, digits=3)
        told = (shown(row[key]) for key in ("sensitivity", "specificity"))
        yield f"`{block}`", mode, shown(row["auc"], digits=3), gain, *told, f"{row['odds_of_nilm']:.1f}"


def _block(block: str, of: Row) -> tuple[str, ...]:
    if "auc_gain" not in of:
        return f"`{block}`", f"{of['verdict']}: {of['reason']}", "", "", ""
    far = ("–" if of[key] is None else f"{of[key]:.3f}" for key in ("distance_raw", "distance_coloured"))
    return f"`{block}`", of["verdict"], *far, shown(of["auc_gain"], sign=True, digits=3)


def _sets(of: Row) -> tuple[str, str, str]:
    spread = f"{of['median']:.3f} ({of['least']:.3f} to {of['greatest']:.3f})"
    return f"{of['within']:.0%}", spread, f"{of['gate']:.3f}"


def orders(order: Row | None, forgetting: Row | None, norms: Mapping[str, Row], name: str) -> list[str]:
    """E8."""
    asked = f"{_EVALUATE} order {SHIPPED} --out {name}"
    lines = ["## Order, batch size, and forgetting", ""]
    if order is None:
        lines += [f"{NOT_RUN.capitalize()}:", "", f"    {asked}", ""]
    else:
        rows = []
        for centre, of in order["by_centre"].items():
            for mode, row in of["modes"].items():
                title = mode if mode == SITE else f"control: {mode}"
                changes = (f"{change:.1e}" for change in row["greatest_change_by_batch"].values())
                areas = (shown(area, digits=3) for area in row["auc_by_batch"].values())
                crops = "; ".join(f"{change:.1e}" for change in row.get("greatest_change_by_crops", {}).values())
                order_ = f"{row['greatest_change_by_order']:.1e}"
                rows.append((centre, title, *areas, "; ".join(changes), order_, crops or "–"))
        sizes = ("1", "4", "16")
        few = next(iter(order["by_centre"].values()))["fewer"]
        lines += [
            "AUC of the served head by how many slides come at once, and the greatest change of a probability: against "
            "batches of 16; and, for another order, of the slides and, of `site`, of those that it is fitted to anew, "
            "and of their cells; of `site` also where 1, 4 or 16 crops are encoded at once. That slides come one by "
            "one "
            "or in another order cannot change a state that is fitted once; what is measured is whether its fit and "
            "the encoder hang on it.",
            "",
            f"    {asked}",
            "",
            *table(
                (
                    "centre", "mode", *(f"batch {size}" for size in sizes), "change at 1; 4; 16", "change by order",
                    "crops at once: 1; 4; 16",
                ),
                rows,
            ),
            f"Which slides a site is fitted to does change it: {few['sets']} sets of {few['slides']} of the validation "
            "bags, of one centre, AUC of the test bags.",
            "",
            *table(
                ("centre", "all of them", "sets: least to greatest", "greatest change of a probability", "verdicts"),
                (
                    (
                        centre,
                        f"{of['fewer']['auc']:.3f}",
                        f"{of['fewer']['least']:.3f} to {of['fewer']['greatest']:.3f}",
                        f"{of['fewer']['greatest_change']:.2f}",
                        ", ".join(of["fewer"]["verdicts"]),
                    )
                    for centre, of in order["by_centre"].items()
                ),
            ),
        ]  # fmt: skip
    asked = f"{_EVALUATE} forgetting {SHIPPED} --out {name}"
    lines += [f"Forgetting: {NOT_RUN}:", "", f"    {asked}", ""] if forgetting is None else _again(forgetting, asked)
    left = [
        (target, _NORMS[mode], *(shown(row["source"][key], digits=3) for key in ("before", "after")),
         shown(row["source"]["change"], sign=True, digits=3), str(row["steps"]))
        for target, of in norms.items()
        for mode, row in of["modes"].items()
        if "source" in row
    ]  # fmt: skip
    if left:
        head = ("norms tuned at", "mode", "AUC on the source before", "after", "change", "steps")
        lines += ["What tuned norms then do on the source's test bags:", "", *table(head, left)]
    return lines


def _again(told: Row, asked: str) -> list[str]:
    rows = (
        (target, "yes" if row["same_states"] else "no", f"{row['greatest_change']:.1e}")
        for target, row in told["by_target"].items()
    )
    return [
        "`site` on the source, then a target centre, where norms are tuned too, then both again: whether states fitted "
        "anew are the same bits, and the greatest change of a probability, a few bags encoded anew. A state belongs "
        "to its site and is frozen: only a fault of the code could change it.",
        "",
        f"    {asked}",
        "",
        *table(("target", "same states", "greatest change of a probability"), rows),
    ]


def recalibration(told: Row | None, name: str) -> list[str]:
    """Step C of the specification's adaptation, as an option measured against none."""
    asked = f"{_EVALUATE} recalibrated {SHIPPED} --out {name}"
    lines = ["## A site's own operating point", ""]
    if told is None:
        return [*lines, f"{NOT_RUN.capitalize()}:", "", f"    {asked}", ""]
    rows = []
    for centre, of in told["by_centre"].items():
        for mode, row in of["modes"].items():
            cells = (shown(row[point][key]) for point in ("source", "own") for key in ("sensitivity", "specificity"))
            rows.append((centre, mode, *cells, str(row["heads"])))
    first = next(iter(told["by_centre"].values()))
    return [
        *lines,
        f"An option, not served: temperature and threshold from the centre's own labelled validation bags "
        f"({first['abnormal']} abnormal, {first['nilm']} NILM; at least 30 and 100 are asked for, else the source's "
        "stay). The centre's point is that of all its bags, the source's the lowest of single blocks. Mean over heads "
        "on test bags.",
        "",
        f"    {asked}",
        "",
        *table(
            (
                "centre", "adaptation", "sensitivity, source's point", "specificity", "sensitivity, own point",
                "specificity", "heads recalibrated",
            ),
            rows,
        ),
    ]  # fmt: skip
