"""What is said of the prompts of one slide: how much of each there is, how many, and what the reader must know."""

from collections.abc import Iterator, Sequence

import numpy as np

from gateway.analyses.blending import reaches
from gateway.analyses.measurements import figures_of
from gateway.analyses.prompt_texts import Asked, asked, prompt_findings, repeated_findings
from gateway.analyses.segment_group import Group
from gateway.analyses.segment_plan import SegmentPlan
from gateway.analyses.slide_half import SlideTask
from gateway.domain.codes import Code
from gateway.domain.prompts import code_of
from gateway.domain.report import Finding, FindingKind, SegmentationResult, Segmented
from gateway.domain.tables import finding_code
from gateway.operations.errors import NoTissue
from gateway.reports.wording import presence

_COLORS = (
    "#e6194b",
    "#3cb44b",
    "#4363d8",
    "#f58231",
    "#911eb4",
    "#42d4f4",
    "#f032e6",
    "#bfef45",
    "#469990",
    "#9a6324",
    "#808000",
    "#000075",
)
_FULL_SCALE = 255
_RIM = 1.05
"""The edge of the tissue is known to 8 µm only: so many times its area a mask may have and count as one on it."""


def result_of(groups: Sequence[Group], *, exploratory: bool) -> SegmentationResult:
    """What was found of every prompt that could be answered, in the order's order; of the tissue that was read its area
    under the finest windows. Raises RowsOutdated, StateError."""
    segments = [segment for group in groups for segment in _segments(group)]
    return SegmentationResult(
        series=groups[0].task.slide.header.series_uid,
        exploratory=exploratory,
        segments=tuple(sorted(segments, key=lambda segment: segment.index)),
        area_mm2=groups[0].read_mm2,
    )


def findings_of(
    task: SlideTask, plan: SegmentPlan, groups: Sequence[Group], result: SegmentationResult, site: Code | None
) -> Iterator[Finding]:
    """What the reader must know of the prompts and of how they were answered. `site`: the slide's, where known."""
    series = result.series

    def finding(kind: FindingKind, key: str, text: str) -> Finding:
        return Finding(kind=kind, code=finding_code(key), text=text, series=series)

    prompts = asked(task.order.prompts, task.card)
    answered = {segment.index for segment in result.segments}
    for group in groups:
        if group.plan.pixel_px < 1:
            level = task.slide.levels[group.plan.level]
            yield finding(
                FindingKind.QUALITY,
                "coarser-than-model",
                f"The finest image has {level.mpp:.3f} µm per pixel; prompts of the {_levels(group.prompts)} are "
                f"answered at {task.card.mpp_by_level[group.prompts[0].triple.level]:g}. It was enlarged.",
            )
    for each in prompts:
        mpp = task.card.mpp_by_level[each.triple.level]
        if each.index in answered:
            continue
        why = f"the slide's finest image has {task.slide.levels[0].mpp:.3g} µm per pixel, and it is asked at {mpp:.3g}"
        if plan.left_out[mpp] == NoTissue.reason:
            why = f"no window of {mpp * task.card.tile_px:.0f} µm holds enough of the tissue that is asked for"
        yield finding(
            FindingKind.QUALITY,
            "cannot-answer",
            f"“{each.triple.text}” cannot be answered at this resolution: {why}. Nothing is said of it.",
        )
    yield from repeated_findings(prompts, series, answered="each is answered")
    yield from prompt_findings(prompts, task.card, site, series)
    tissue_mm2 = {each.index: group.read_mm2 for group in groups for each in group.prompts}
    for segment in result.segments:
        if segment.area_mm2 > _RIM * tissue_mm2[segment.index]:
            yield finding(
                FindingKind.QUALITY,
                "mask-beyond-tissue",
                f"The mask of “{segment.triple}” has {segment.area_mm2:.3g} mm²; where it was looked for, "
                f"{tissue_mm2[segment.index]:.3g} mm² were taken for tissue. Its share of the tissue and its number "
                "per mm² mean nothing.",
            )
        if not segment.present:
            reached, least = presence(segment.presence, segment.min_presence)
            yield finding(
                FindingKind.CONFIDENCE,
                "object-absent",
                f"“{segment.triple}” was not found: no pixel that was asked for reaches a probability of one half."
                if reaches(segment.presence, segment.min_presence)
                else f"“{segment.triple}” was not found: its probability to be there reaches {reached} at the most, "
                f"{least} count as an answer.",
            )
    if any(segment.objects is not None for segment in result.segments):
        yield finding(
            FindingKind.CONFIDENCE,
            "counts-approximate",
            "Objects that touch are told apart by their shape alone: counts and sizes of single objects are "
            "approximate.",
        )


def _segments(group: Group) -> Iterator[Segmented]:
    plan, masks, tissue_mm2 = group.plan, group.masks, group.read_mm2
    with group.finished() as file:
        presence_P = np.max([presence_nP.max(axis=0) for presence_nP in file.presence()], axis=0)
        extents = [file.extent(number) for number in range(len(group.prompts))]
    counted, rules = group.splittings, group.presence
    for number, each in enumerate(group.prompts):
        area_px, total = extents[number]
        category, code = code_of(each.triple)
        area_mm2 = area_px * plan.mpp_x * plan.mpp_y / 1e6
        yield Segmented(
            index=each.index,
            prompt=each.prompt,
            triple=each.triple.text,
            category=category,
            code=code,
            color=_COLORS[each.index % len(_COLORS)],
            supported=each.supported,
            present=area_px > 0,
            presence=float(presence_P[number]),
            min_presence=rules[number].threshold,
            mpp=plan.mpp,
            area_mm2=area_mm2,
            # Of what reaches farther than over the tissue's edge `findings_of` tells.
            area_fraction=min(1.0, area_mm2 / tissue_mm2),
            mean_probability=total / area_px / _FULL_SCALE if area_px else None,
            objects=figures_of(masks.outlines(each.index), tissue_mm2) if area_px and number in counted else None,
            val_dice=None if each.entry is None else each.entry.dice,
        )


def _levels(prompts: Sequence[Asked]) -> str:
    """Such as "levels cell and nuclei"."""
    levels = sorted({each.triple.level.value for each in prompts})
    return f"level{'s' if len(levels) > 1 else ''} {' and '.join(levels)}"
