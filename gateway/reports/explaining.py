"""The words of what objects mean to a slide's answer: two tables, the same on every page."""

from gateway.domain.explanation import ExplainedObject, Explanation
from gateway.domain.report import SlideClassification
from gateway.reports.wording import ABSENT, measured_for, percent, probability, segment_name

TITLE = "What the answer rests on"
IMPORTANCE_HEADING = ("Object", "Measured for", "Importance", "Random areas", "More than random")


def importance_caption(classes: SlideClassification, explanation: Explanation) -> str:
    """What was done, and how far it may be trusted."""
    target = classes.classes[explanation.target].code.display
    repeats = explanation.repeats
    above = repeats - -(-39 * (repeats - 1) // 40)  # repeats from the upper bound on: `numpy.percentile`, "higher"
    return (
        f"Importance: the model's loss on “{target}” with the object blurred ({explanation.blur_um:g} µm), of its loss "
        f"before ({explanation.loss:.3g}); 1 where the object does not matter. Random areas: the same with areas of "
        f"tissue of equal size, mean of {repeats} repeats and two bounds, beyond each of which lie at most 2.5 % of "
        f"them. More than random: above the upper one, where chance alone puts {above} in {repeats + 1} of objects "
        f"that mean nothing. Looked for on the {explanation.tiles} tiles that weigh most, which hold "
        f"{percent(explanation.weight_share)} % of the weights: where that is little, all of it is near 1. It says "
        "nothing of an object whose mask is bad, and names no cause; the objects' names are the order's own words."
    )


def importance_row(found: ExplainedObject) -> list[str]:
    """An object under IMPORTANCE_HEADING."""
    named = [segment_name(found), measured_for(found)]
    if found.importance is None:
        return [*named, ABSENT, "–", "–"]
    control = found.importance.control
    return [
        *named,
        _ratio(found.importance.ratio),
        f"{_ratio(control.mean)} ({_ratio(control.low)} to {_ratio(control.high)})",
        "yes" if found.importance.exceeds else "no",
    ]


def _ratio(value: float) -> str:
    return f"{value:.2f}" if 0.01 <= value < 1000 else f"{value:.3g}"


def biomarker_caption(explanation: Explanation) -> str:
    """What the second table's figures are parts of."""
    return (
        f"Part of the object in the area of the {explanation.tiles} tiles, and in their weights, a pixel weighing as "
        "much as its tile; enrichment is the one of the other. For each class: by how many percentage points its "
        "probability changes where the object is blurred."
    )


def biomarker_heading(classes: SlideClassification) -> list[str]:
    """With a column a class."""
    fixed = ["Object", "Tiles", "Area, %", "Weights, %", "Enrichment"]
    return [*fixed, *(each.code.display for each in classes.classes)]


def biomarker_row(found: ExplainedObject, classes: SlideClassification) -> list[str]:
    """An object under `biomarker_heading`."""
    changes = {each.index: each.change for each in found.importance.changes} if found.importance else {}
    return [
        segment_name(found),
        str(found.tiles),
        percent(found.area_share, digits=2),
        percent(found.weight_share, digits=2),
        probability(found.enrichment),
        *(_points(changes[each.index]) if each.index in changes else "–" for each in classes.classes),
    ]


def _points(change: float) -> str:
    """A change of a probability in percentage points, as it is printed: what changes is never 0."""
    sign = "+" if change > 0 else "-" if change < 0 else ""
    return f"{sign}{percent(abs(change), digits=2)}"
