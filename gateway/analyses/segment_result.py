"""What is said of the prompts of one slide: how much of each there is, how many, and what the reader must know."""

from collections import Counter
from collections.abc import Iterator, Sequence

from gateway.analyses.measurements import figures_of
from gateway.analyses.prompt_texts import Asked, asked, prompt_findings
from gateway.analyses.segment_group import Group
from gateway.analyses.slide_half import SlideTask
from gateway.domain.codes import Code
from gateway.domain.prompts import code_of
from gateway.domain.report import Finding, FindingKind, SegmentationResult, Segmented
from gateway.domain.tables import finding_code

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


def result_of(groups: Sequence[Group], tissue_mm2: float, *, exploratory: bool) -> SegmentationResult:
    """What was found of every prompt that could be answered, in the order's order. `tissue_mm2`: the tissue read.

    Raises RowsOutdated, StateError.
    """
    segments = [segment for group in groups for segment in _segments(group, tissue_mm2)]
    return SegmentationResult(
        series=groups[0].task.slide.header.series_uid,
        exploratory=exploratory,
        segments=tuple(sorted(segments, key=lambda segment: segment.index)),
        area_mm2=tissue_mm2,
        min_presence=groups[0].min_presence,
    )


def findings_of(
    task: SlideTask, groups: Sequence[Group], result: SegmentationResult, site: Code | None
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
        if each.index not in answered:
            yield finding(
                FindingKind.QUALITY,
                "cannot-answer",
                f"“{each.triple.text}” cannot be answered at this resolution: the slide's finest image has "
                f"{task.slide.levels[0].mpp:.3g} µm per pixel, and it is asked at "
                f"{task.card.mpp_by_level[each.triple.level]:.3g}. Nothing is said of it.",
            )
    for triple, times in Counter(each.triple for each in prompts).items():
        if times > 1:
            yield finding(
                FindingKind.SETTING,
                "prompt-repeated",
                f"{times} prompts are understood as “{triple.text}”; each is answered.",
            )
    yield from prompt_findings(prompts, task.card, site, series)
    for segment in result.segments:
        if not segment.present:
            yield finding(
                FindingKind.CONFIDENCE,
                "object-absent",
                f"“{segment.triple}” was not found: its probability to be there reaches {segment.presence:.2f} at the "
                f"most, {result.min_presence:.2f} count as an answer."
                if segment.presence < result.min_presence
                else f"“{segment.triple}” was not found: no pixel reaches a probability of one half.",
            )
    if any(segment.objects is not None for segment in result.segments):
        yield finding(
            FindingKind.CONFIDENCE,
            "counts-approximate",
            "Objects that touch are told apart by their shape alone: counts and sizes of single objects are "
            "approximate.",
        )


def _segments(group: Group, tissue_mm2: float) -> Iterator[Segmented]:
    plan, masks = group.plan, group.masks
    with group.finished() as file:
        presence_NP, _ = file.answers()
        extents = [file.extent(number) for number in range(len(group.prompts))]
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
            presence=float(presence_NP[:, number].max()),
            mpp=plan.mpp,
            area_mm2=area_mm2,
            # The edge of the tissue is known to 8 µm only: a mask may reach over it.
            area_fraction=min(1.0, area_mm2 / tissue_mm2),
            mean_probability=total / area_px / _FULL_SCALE if area_px else None,
            objects=figures_of(masks.outlines(each.index), tissue_mm2) if number in group.splittings else None,
            val_dice=None if each.entry is None else each.entry.dice,
        )


def _levels(prompts: Sequence[Asked]) -> str:
    """Such as "levels cell and nuclei"."""
    levels = sorted({each.triple.level.value for each in prompts})
    return f"level{'s' if len(levels) > 1 else ''} {' and '.join(levels)}"
