"""The words of what a cervical slide was read as: the same on every page.

Outside the intended use a class goes by its neutral name alone, and nothing here is a word of diagnosis.
"""

from dataclasses import dataclass

from gateway.domain.bethesda import CLASSES, NAMES, NILM
from gateway.domain.codes import Code
from gateway.domain.report import Report, SlideReading
from gateway.domain.screened import ORDERS_POINT, ScreeningClass, ScreeningResult
from gateway.reports.case_call import case_call
from gateway.reports.wording import THUMBNAIL, percent, presence, slide_name

NO_CATEGORY, ABNORMAL_ONLY = "No category is given.", "Abnormal, but no category is given."
_CELL_MAP = (
    "cell-map",
    "Cells that were found: one colour a class, as in the table; the rarer a class, the larger its dots",
    "The slide in grey with a dot for each cell that was found, coloured by class as in the table below",
)
NOTHING_FOUND = "No candidate cell was found, so the slide's model had nothing to look at: there are no probabilities."
HEADING = ("Class", "May be named", "Probability", "Without adaptation", "Cells found")
GALLERY_TITLE = "Cells that the answer rests on"
GALLERY_HEADING = ("Cell", "Class", "Score", "Contribution", "Towards", "x, µm", "y, µm", "Size, µm")
GALLERY_WORDS = (1, 2, 5)
"""The columns of that table, from 1, that hold words and no figures."""
GALLERY_CAPTION = (
    "The heaviest first. Score: how sure the detector was of the cell's class. Contribution: what the cell adds to the "
    "logit of the class named beside it. Position: the middle of the cell, in micrometres from the slide image's top "
    "left corner."
)
ADAPTATION_TITLE = "Adaptation to the site"
_OUTSIDE_LABELS = (
    "Adenocarcinoma (also in situ), organisms and reactive changes are none of the classes: the model does not look "
    "for them, and this report says nothing of them."
)
_OUTSIDE_PATTERNS = "Whatever else a slide may show is none of these patterns: the model does not look for it."
_MOST_UNSEEN = 0.001


@dataclass(frozen=True, slots=True)
class Said:
    """What must not be overlooked, and what belongs to it. `given`: false where there is no category."""

    head: str
    rest: str
    given: bool = True


def case_words(report: Report) -> Said | None:
    """What a reader must see first: the case's category, or that it has none; then which slide says so, and why. None
    where nothing was screened."""
    call = case_call(report)
    if call is None:
        return None
    speaker = slide_name(report, call.slide.series)
    if call.category is None:
        return Said(_no_category(call.slide), f"{speaker}: {_reasons(call.slide, call.withheld)}", given=False)
    return Said(f"{class_title(call.slide, call.category)}.", f"{speaker}. {_beside(call.slide)}".strip())


def call_words(result: ScreeningResult) -> Said:
    """What a slide was read as, and the figure that decides; or that it has no category, and why."""
    category, decisive = result.category, _decisive(result)
    if category is None:
        rest = f"{_reasons(result, result.withheld)} {decisive}".strip()
        return Said(_no_category(result), rest, given=False)
    return Said(f"{class_title(result, category)}.", f"{_beside(result)} {decisive}".strip())


def adequacy_words(result: ScreeningResult) -> Said:
    """Whether the slide can be judged, and the figures; with the reasons where it cannot."""
    adequacy = result.adequacy
    figures = (
        f"About {adequacy.squamous_cells:,} squamous cells (at least {adequacy.least_cells:,} are asked for); of the "
        f"stained area {percent(adequacy.obscured_share)} % is obscured, {percent(adequacy.blurred_share)} % is out of "
        "focus."
    )
    reasons = "".join(f"{code.display}. " for code in adequacy.reasons)
    return Said(f"{adequacy.code.display}.", reasons + figures)


def class_title(result: ScreeningResult, each: ScreeningClass) -> str:
    """A class with its abbreviation; outside the intended use as it may be shown."""
    return each.code.display if result.exploratory else f"{NAMES[each.index]}: {each.code.display}"


def outside_labels(result: ScreeningResult) -> str:
    """What the model does not look for."""
    return _OUTSIDE_PATTERNS if result.exploratory else _OUTSIDE_LABELS


def caption(result: ScreeningResult) -> str:
    """Over the table of classes."""
    named = (
        ""
        if all(each.supported for each in result.classes)
        else (
            f" A class that may not be named still counts: 1 - p({_short(result, NILM)}) is held against the operating "
            "point."
        )
    )
    return (
        "Probability of each class for the slide as a whole, as served, and without the adaptation to the slide's site."
        f"{named} The slide's model saw {result.bag} of the {sum(result.detected)} cells that were found."
    )


def class_rows(result: ScreeningResult) -> list[list[str]]:
    """The classes under HEADING, in Bethesda's order."""
    return [
        [
            class_title(result, each),
            "yes" if each.supported else "no",
            exact(each.probability),
            exact(each.probability_unadapted),
            "–" if each.index == NILM else str(result.detected[each.index - 1]),
        ]
        for each in result.classes
    ]


def color(index: int) -> str:
    """The colour of a class's cells, #RRGGBB."""
    return CLASSES[index].color


def adaptation_facts(result: ScreeningResult) -> list[tuple[str, str]]:
    """The state of the slide's site: label and value."""
    state = result.adaptation
    distances = [(state.distance_raw, "before"), (state.distance_coloured, "after colours were mapped")]
    measured = ", ".join(f"{value:.2f} {when}" for value, when in distances if value is not None)
    gate = "" if state.gate is None else f" (limit {state.gate:.2f})"
    return [
        ("Site", state.site),
        ("Verdict", state.verdict),
        ("State", f"version {state.version}" if state.version else "none was fitted"),
        ("Applied", "yes" if state.applied else "no: probabilities are those without adaptation"),
        ("Distance from the model's source", f"{measured}{gate}" if measured else "not measured"),
        ("Operating point", f"“{result.operating_point}”, {point_of(result)}"),
        ("Released by", state.signed_by or "nobody"),
        ("Digest, sha256", state.digest),
    ]


def point_of(result: ScreeningResult) -> str:
    """Whose operating point a slide is held against. No site has one of its own."""
    whose = "the order" if result.operating_point == ORDERS_POINT else "the model's source"
    return f"that of {whose}, not the site's own"


def scaled_by(result: ScreeningResult, slide: SlideReading) -> str | None:
    """By how much a slide was scaled for the detector: above 1 where its pixels were enlarged. None of a report from
    before that was recorded."""
    if result.scale is None or slide.level_mpp is None:
        return None
    return f"{result.scale:.3f}, from {slide.level_mpp:.3f} to {slide.level_mpp / result.scale:.3f} µm per pixel"


def pictures(report: Report, result: ScreeningResult) -> list[tuple[str, str, str]]:
    """The pictures of a slide, as `wording.TISSUE_PICTURES`; nothing is drawn on one that is none of the model's."""
    drawn = any((picture.series, picture.role) == (result.series, _CELL_MAP[0]) for picture in report.pictures)
    return [THUMBNAIL, _CELL_MAP] if drawn else [THUMBNAIL]


def gallery_pictures(result: ScreeningResult) -> list[tuple[str, str, str]]:
    """The cells that the answer rests on, likewise."""
    return [
        (
            f"cell-{rank}",
            f"{rank}: {row[1]}, score {row[2]}, {row[3]} towards {row[4]}",
            f"Cell {rank} in its surroundings, taken for {row[1]}",
        )
        for rank, row in enumerate(gallery_rows(result), 1)
    ]


def gallery_rows(result: ScreeningResult) -> list[list[str]]:
    """The same cells under GALLERY_HEADING."""
    return [
        [
            str(rank),
            _short(result, cell.index),
            exact(cell.score),
            f"{cell.contribution:+.3f}",
            _short(result, cell.towards),
            f"{cell.x_um:.0f}",
            f"{cell.y_um:.0f}",
            f"{cell.width_um:.0f} × {cell.height_um:.0f}",
        ]
        for rank, cell in enumerate(result.gallery, 1)
    ]


def exact(value: float) -> str:
    """A probability with three decimals; what is there is never 0."""
    return f"<{_MOST_UNSEEN}" if 0 < value < _MOST_UNSEEN / 2 else f"{value:.3f}"


def _short(result: ScreeningResult, index: int) -> str:
    if result.exploratory:
        return next(each.code.display for each in result.classes if each.index == index)
    return NAMES[index]


def _beside(result: ScreeningResult) -> str:
    others = [each for number in result.categories[1:] for each in result.classes if each.index == number]
    return "".join(f"Beside it {class_title(result, each)}." for each in others)


def _decisive(result: ScreeningResult) -> str:
    """The figure that is held against the operating point, and that it alone decides; nothing where no cell was
    found."""
    if result.deciding is None:
        return ""
    reached, least = presence(result.deciding, result.abnormal_from)
    without = " without the adaptation" if result.turned else ""
    return (
        f"1 - p({_short(result, NILM)}) is {reached}{without}; operating point “{result.operating_point}”: {least}. "
        "Whether it is reached decides, not which class is the most probable."
    )


def _no_category(result: ScreeningResult) -> str:
    return ABNORMAL_ONLY if result.abnormal and not result.exploratory else NO_CATEGORY


def _reasons(result: ScreeningResult, withheld: tuple[Code, ...]) -> str:
    """Why there is no category: what withholds it, and where the slide cannot be judged, what is wrong with it."""
    codes = [*withheld, *result.adequacy.reasons]
    return f"{'; '.join(dict.fromkeys(code.display for code in codes or [result.adequacy.code]))}."
