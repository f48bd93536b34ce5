"""What a slide of the cervix is called, from what lies on disk of it: classes, category or why there is none, cells."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from gateway.analyses.intended_use import NOTHING_DRAWN, Use
from gateway.analyses.screening_adequacy import Judged
from gateway.analyses.screening_bag import BagSaid
from gateway.analyses.screening_site import SiteUsed
from gateway.analyses.screening_stain import StainSaid, said_of
from gateway.analyses.slide_half import SlideTask
from gateway.analyses.specimen import Declared
from gateway.domain.bethesda import ABNORMAL, CLASSES, NAMES, NILM, class_of
from gateway.domain.codes import Code
from gateway.domain.model import ModelCard, OperatingPoint
from gateway.domain.report import Finding, FindingKind
from gateway.domain.screened import ORDERS_POINT, Adaptation, ScreenedCell, ScreeningClass, ScreeningResult
from gateway.domain.screening import NOT_SUPPORTED, TURNED_NORMAL, Call, Decision, ScreeningPoint, decided
from gateway.domain.slide import Level
from gateway.domain.tables import adequacy_code, finding_code
from gateway.operations.errors import InvalidSetting
from gateway.reports.wording import presence
from gateway.slides.cells import Cells
from gateway.slides.pap_stain import StainVerdict

GALLERY = 12
"""Cells that are shown, at most."""
_CHANCE = 1 / len(CLASSES)
"""The probability of a class where nothing tells them apart."""


@dataclass(frozen=True, slots=True, eq=False)
class Looked:
    """One look at the slide: the cells that were found, those that the slide's model was given, and what it said of
    them; None where there are none."""

    found: Cells
    chosen: Cells
    said: BagSaid | None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Evidence:
    """All that a slide is called by. `adapted`: as its site's state shows it, `unadapted`: without; the cells of both
    are the same where that state maps no colours. `level`: the one that was read; `scale`: by how much its pixels were
    enlarged for the detector (below 1: reduced)."""

    task: SlideTask
    level: Level
    scale: float
    use: Use
    specimen: Declared
    stain: StainVerdict
    judged: Judged
    site: SiteUsed
    adapted: Looked
    unadapted: Looked

    @property
    def stain_is_wrong(self) -> bool:
        """By what order and header say, or as it was measured."""
        return self.use.wrong_stain or self.stain.verdict == "other"

    @property
    def stain_said(self) -> StainSaid | None:
        """What there is to say of the colours that were measured."""
        return said_of(self.stain)

    @property
    def stain_refused(self) -> bool:
        """Whether these colours keep a category back, or nobody at all says what the stain is."""
        return self.stain_said is not None and (self.stain_said.refused or self.use.stain is None)

    @property
    def exploratory(self) -> bool:
        return self.use.exploratory or self.stain_is_wrong or not self.specimen.cervical


@dataclass(frozen=True, slots=True, eq=False)
class Called:
    """The result, what the reader must know of it, the `cells` of the look that the call rests on, all that were found,
    and those of the result's gallery, in its order. None of these where nothing may be drawn."""

    result: ScreeningResult
    findings: tuple[Finding, ...]
    cells: Cells | None
    gallery: Cells | None


def call(seen: Evidence) -> Called:
    """The one call of a slide, by the rule of `gateway.domain.screening`."""
    point = operating_point(seen.task.card, seen.task.options)
    # A look without cells has no answer: what the other one says is then all there is.
    adapted, unadapted = (
        one.said or other.said for one, other in ((seen.adapted, seen.unadapted), (seen.unadapted, seen.adapted))
    )
    decision: Decision | None = None
    classes: tuple[ScreeningClass, ...] = ()
    if adapted is not None and unadapted is not None:
        decision, classes = _decided(seen, point, adapted, unadapted)
    # Where the call without the adaptation stands, the cells that it rests on are shown.
    turned = decision is not None and TURNED_NORMAL in decision.findings
    shown = seen.unadapted if turned or seen.adapted.said is None else seen.adapted
    blocked = tuple(_blocked(seen, decision))
    given = None if blocked or decision is None else decision.call
    unnamed = given is not None and not given.categories
    towards = _towards(decision, classes)
    drawn = seen.specimen.cervical and not seen.stain_is_wrong
    heaviest = _heaviest(shown, towards) if drawn else np.zeros(0, np.int64)
    result = ScreeningResult(
        series=seen.task.slide.header.series_uid,
        exploratory=seen.exploratory,
        adequacy=seen.judged.adequacy,
        abnormal=None if given is None else given.abnormal,
        categories=() if given is None else given.categories,
        withheld=(finding_code("class-not-supported-screening"),) if unnamed else blocked,
        classes=classes,
        operating_point=point.name,
        abnormal_from=point.min_probability,
        adaptation=_adaptation(seen.site),
        detected=tuple(int((shown.found.classes_N == column).sum()) for column in range(len(ABNORMAL))),
        bag=len(shown.chosen),
        gallery=tuple(_shown_cell(seen.level, shown, int(cell), towards) for cell in heaviest),
        scale=seen.scale,
    )
    findings = (*_stain_findings(seen), *seen.judged.findings, *_unsatisfactory_findings(seen, result))
    findings += tuple(_cell_findings(seen, decision))
    if decision is not None and drawn:
        findings += tuple(_call_findings(seen, decision, classes, point, given))
    findings += tuple(_improbable_findings(seen, result))
    findings += (*_site_findings(seen), *_model_findings(seen))
    if not drawn:
        return Called(result, findings, None, None)
    return Called(result, findings, shown.found, shown.chosen.chosen(heaviest))


def operating_point(card: ModelCard, options: Mapping[str, float | None]) -> OperatingPoint:
    """The card's operating point, or the order's own: the least 1 - p(NILM) of an abnormal slide. Raises InvalidSetting
    where the order's is the higher one: it would call slides negative that the model was made to find."""
    own, changed = card.operating_points[0], options["operating_point.abnormal_from"]
    if changed is None:
        return own
    if changed > own.min_probability:
        raise InvalidSetting(
            f"The setting operating_point.abnormal_from is {changed:g}, above the model's own operating point "
            f"({own.min_probability:g}): slides that are abnormal there would be called negative. Give at most "
            "that, or leave it out."
        )
    return OperatingPoint(name=ORDERS_POINT, min_probability=changed, origin="set by the order")


def _decided(
    seen: Evidence, point: OperatingPoint, adapted: BagSaid, unadapted: BagSaid
) -> tuple[Decision, tuple[ScreeningClass, ...]]:
    rule = seen.task.card.screening
    assert rule is not None
    with_C, without_C = (each.probabilities(rule).tolist() for each in (adapted, unadapted))
    logits_C, plain_C = (each.logits_C.tolist() for each in (adapted, unadapted))
    labels = sorted(seen.task.card.labels, key=lambda label: label.index)
    decision = decided(
        with_C,
        without_C,
        ScreeningPoint(point.min_probability, tuple(label.supported for label in labels)),
        out_of_scope=seen.site.state.verdict == "out of scope",
    )
    classes = tuple(
        ScreeningClass(
            index=label.index,
            name=NAMES[label.index],
            code=label.exploratory if seen.exploratory else label.code,
            supported=label.supported,
            probability=with_C[label.index],
            probability_unadapted=without_C[label.index],
            logit=logits_C[label.index],
            logit_unadapted=plain_C[label.index],
        )
        for label in labels
    )
    return decision, classes


def _blocked(seen: Evidence, decision: Decision | None) -> Iterator[Code]:
    """Why no category may be given, whatever the probabilities are."""
    if not seen.specimen.cervical:
        yield finding_code("specimen-not-cervical")
    if seen.use.wrong_stain:
        yield from (finding.code for finding in seen.use.findings)
    if seen.stain_said is not None and seen.stain_refused:
        yield finding_code(seen.stain_said.key)
    if not seen.judged.adequacy.satisfactory:
        yield adequacy_code("unsatisfactory")
    if decision is None:
        yield finding_code("no-candidate-cells")
    elif decision.call is None:
        yield finding_code("site-out-of-scope")


def _towards(decision: Decision | None, classes: tuple[ScreeningClass, ...]) -> int:
    """The class whose cells are shown: the category of an abnormal slide; of any other its most probable abnormal
    class, so that the cells that speak most against the call are seen."""
    if decision is not None and decision.call is not None and decision.call.abnormal and decision.call.categories:
        return decision.call.categories[0]
    abnormal = [each for each in classes if each.index != NILM]
    return max(abnormal, key=lambda each: each.probability).index if abnormal else class_of(0)


def _heaviest(shown: Looked, towards: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The cells that add most to a class's logit, the heaviest first; of equals the surest."""
    if shown.said is None:
        return np.zeros(0, np.int64)
    return np.argsort(-shown.said.parts_NC[:, towards], kind="stable")[:GALLERY].astype(np.int64)


def _shown_cell(level: Level, shown: Looked, cell: int, towards: int) -> ScreenedCell:
    assert shown.said is not None
    left, top, right, bottom = shown.chosen.boxes_N4[cell].tolist()
    return ScreenedCell(
        index=class_of(int(shown.chosen.classes_N[cell])),
        score=float(shown.chosen.scores_N[cell]),
        towards=towards,
        contribution=float(shown.said.parts_NC[cell, towards]),
        x_um=(left + right) / 2 * level.mpp_x,
        y_um=(top + bottom) / 2 * level.mpp_y,
        width_um=(right - left) * level.mpp_x,
        height_um=(bottom - top) * level.mpp_y,
    )


def _adaptation(site: SiteUsed) -> Adaptation:
    state = site.state
    return Adaptation(
        site=state.site,
        version=state.version,
        verdict=state.verdict,
        digest=state.digest,
        applied=not state.changes_nothing,
        features_mapped=state.maps_features,
        distance_raw=state.distance_raw,
        distance_coloured=state.distance_coloured,
        gate=state.gate,
        signed_by=site.signed_by,
    )


def _finding(seen: Evidence, kind: FindingKind, key: str, text: str) -> Finding:
    return Finding(kind=kind, code=finding_code(key), text=text, series=seen.task.slide.header.series_uid)


def _stain_findings(seen: Evidence) -> Iterator[Finding]:
    said = seen.stain_said
    if said is None:
        return
    if not seen.stain_refused:
        rest = "It is taken to be what the order or the image header states."
    elif not said.refused:
        rest = "Neither the order nor the image header states it. No category is given. State the stain in the order."
    elif seen.stain.verdict == "colourless":
        rest = "No category is given. Stain the slide, or scan it in colour."
    else:
        rest = f"No category is given. {NOTHING_DRAWN}"
    yield _finding(seen, FindingKind.INTENDED_USE, said.key, f"{said.text} {rest}")


def _unsatisfactory_findings(seen: Evidence, result: ScreeningResult) -> Iterator[Finding]:
    """Where a slide that cannot be judged reaches the operating point all the same. The Bethesda System (2014), chapter
    1: any specimen with abnormal cells is satisfactory. Ours is not classified, and must not lie unread for that: said
    whatever the colours are, as thick blood alone makes them unlike Papanicolaou's."""
    if result.adequacy.satisfactory or result.deciding is None or result.deciding < result.abnormal_from:
        return
    negative = next(each for each in result.classes if each.index == NILM)
    reached, least = presence(result.deciding, result.abnormal_from)
    there = (
        "Cells of another pattern may be there: look at the slide."
        if result.exploratory
        else "Abnormal cells may be there, and The Bethesda System (2014) calls any specimen that has them "
        "satisfactory: look at the slide."
    )
    yield _finding(
        seen,
        FindingKind.CONFIDENCE,
        "unsatisfactory-yet-reached",
        f"The slide is unsatisfactory, so no category is given, yet 1 - p({_short(result, negative)}) is {reached} and "
        f"reaches the operating point “{result.operating_point}” ({least}). {there}",
    )


def _cell_findings(seen: Evidence, decision: Decision | None) -> Iterator[Finding]:
    without = [name for name, look in (("with", seen.adapted), ("without", seen.unadapted)) if look.said is None]
    if not without:
        return
    if decision is None:
        text = (
            "No cell of an abnormal class was found, so the slide's model was not asked. That is no negative result: a "
            "pathologist must look at the slide."
        )
    else:
        text = f"No cell was found {without[0]} the adaptation to the site; both answers are those of the other look."
    yield _finding(seen, FindingKind.CONFIDENCE, "no-candidate-cells", text)


def _call_findings(
    seen: Evidence,
    decision: Decision,
    classes: tuple[ScreeningClass, ...],
    point: OperatingPoint,
    given: Call | None,
) -> Iterator[Finding]:
    """Why the call is not simply that of the adapted probabilities. `given`: the one that the report says, if any."""
    turned = TURNED_NORMAL in decision.findings
    if turned:
        negative = next(each for each in classes if each.index == NILM)
        yield _finding(
            seen,
            FindingKind.CONFIDENCE,
            "adaptation-turned-normal",
            f"Without the adaptation to the site the slide is abnormal (1 - p(NILM) = "
            f"{1 - negative.probability_unadapted:.2f}), with it it is not ({1 - negative.probability:.2f}; abnormal "
            f"from {point.min_probability:.2f}). {'The stricter call is given.' if given else 'No category is given.'}",
        )
    if NOT_SUPPORTED in decision.findings:
        # Of the call that stands: the adaptation's, unless it would turn the slide normal.
        shares = {each.index: each.probability_unadapted if turned else each.probability for each in classes}
        best = max((each for each in classes if each.index != NILM), key=lambda each: shares[each.index])
        rest = ""
        if given is not None:
            rest = (
                " The category is the most probable of the others."
                if given.categories
                else " Of the others none may be named either: the slide is abnormal, and no category is given."
            )
        yield _finding(
            seen,
            FindingKind.CONFIDENCE,
            "class-not-supported-screening",
            f"The most probable abnormal class, {best.code.display} ({shares[best.index]:.2f}), is one that the model "
            f"was not measured for. It counts towards abnormal.{rest}",
        )


def _improbable_findings(seen: Evidence, result: ScreeningResult) -> Iterator[Finding]:
    """Of each class that is named though it is not the likelier one: the rule holds 1 - p(NILM) against the operating
    point, and does not ask which class is the most probable."""
    for number in result.categories:
        named, negative = (next(each for each in result.classes if each.index == index) for index in (number, NILM))
        others = [each for each in result.classes if each.supported and (each.index == NILM) != (number == NILM)]
        rival = max(others, key=result.standing, default=named)
        own, other = result.standing(named), result.standing(rival)
        printed, printed_other = presence(own, other)
        reasons = [
            *([f"less than that of {_short(result, rival)} ({printed_other})"] if own < other else []),
            *([f"less than by chance (1 of {len(CLASSES)})"] if own < _CHANCE else []),
        ]
        if not reasons:
            continue
        reached, least = presence(1 - result.standing(negative), result.abnormal_from)
        yield _finding(
            seen,
            FindingKind.CONFIDENCE,
            "category-improbable",
            f"The probability of {_short(result, named)}, which is named, is {printed}: {' and '.join(reasons)}. It is "
            f"named by the deciding rule alone: 1 - p({_short(result, negative)}) is {reached}, and "
            f"{'reaches' if result.abnormal else 'does not reach'} the operating point “{result.operating_point}” "
            f"({least}). Look at the probabilities of all classes before relying on it.",
        )


def _short(result: ScreeningResult, each: ScreeningClass) -> str:
    """A class's abbreviation; outside the intended use the neutral name alone."""
    return each.code.display if result.exploratory else each.name


def _site_findings(seen: Evidence) -> Iterator[Finding]:
    state = seen.site.state
    if state.verdict == "not commissioned":
        other = "all signed states of it were fitted to another model"
        yield _finding(
            seen,
            FindingKind.CONFIDENCE,
            "site-not-commissioned",
            f"The model was not adapted to the slide's site ({state.site}): "
            f"{other if seen.site.other_model else 'no state of it is signed'}. How often it is right there is not "
            "known. Fit the site and sign its state.",
        )
    if state.verdict == "out of scope":
        yield _finding(
            seen,
            FindingKind.CONFIDENCE,
            "site-out-of-scope",
            f"The slide's site ({state.site}) lies too far from what the model learned from, even with its colours "
            "mapped. A negative category is not given.",
        )


def _model_findings(seen: Evidence) -> Iterator[Finding]:
    if seen.task.card.composed:
        yield _finding(
            seen,
            FindingKind.CONFIDENCE,
            "composed-training",
            "The slide's model was trained and measured on synthetic bags of cells, never on a patient's whole slide: "
            "how often it is right on one is not known.",
        )
