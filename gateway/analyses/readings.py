"""What every protocol says of a slide that it has read: how it was read, how well it can be seen, how it is stained."""

import numpy as np
import numpy.typing as npt

from gateway.analyses.intended_use import Use
from gateway.analyses.planned import Planned
from gateway.analyses.slide_half import SlideTask
from gateway.domain.report import BoxPx, Finding, FindingKind, SlideQuality, SlideReading, StainFigures
from gateway.domain.slide import Level, TileGrid
from gateway.domain.tables import finding_code
from gateway.slides import quality
from gateway.slides.stain import stain_figures

COARSER_TOLERANCE = 1.02
MOSTLY_BLURRED = 0.25
"""Far from sharp slides, of whose tiles under 1 % are below `quality.BLURRED`, and from blurred ones (over half)."""
PEN_MM2 = 1.0
"""Set by judgement: about a dot of a felt pen."""
STAIN_OD = (0.12, 0.6)
"""Mean optical density of either stain. Groups of ten images from six public sets of H&E lie in 0.14 to 0.40, as do two
public slides; faded to a quarter of their density these fall below, doubled they exceed it. Of two further sets one has
a group of 0.11, and the other's eosin is 0.52 to 0.72."""
_TILES_ENOUGH = 16
"""Of fewer tiles the pixels may be too few for figures, however well they are stained."""
FAR_DEG = 25.0
"""Groups of images from one laboratory lie within 3° of their mean; the medians of four other sets from 11° to 23°."""


def reading_of(
    task: SlideTask, planned: Planned, use: Use, figures_NF: npt.NDArray[np.float32] | None, missing: int
) -> SlideReading:
    """The slide as it was read. `figures_NF`: the tiles' rows of `gateway.slides.quality`, None where its limits were
    not measured for such slides; `missing`: frames."""
    header, level = task.slide.header, task.slide.levels[planned.plan.grid.level]
    stain = None
    if figures_NF is not None and "HE" in task.card.intended_use.stains and not use.wrong_stain:
        stain = stain_figures(quality.colours(figures_NF), task.card.stain_reference)
    return SlideReading(
        study=header.study_uid,
        series=header.series_uid,
        read=True,
        header=header,
        container=header.container_id or task.specimen.container,
        stain=use.stain,
        site=use.site,
        grid=planned.plan.grid,
        level_mpp=level.mpp,
        level_width_px=level.width_px,
        level_height_px=level.height_px,
        sop_instance_uids=level.sop_instance_uids,
        tissue_area_mm2=planned.tissue_area_mm2,
        tiles_read=len(planned.plan),
        frames_missing=missing,
        quality=None if figures_NF is None else quality.summarise(figures_NF, planned.pen_area_mm2),
        stain_figures=stain,
    )


def findings_of(task: SlideTask, reading: SlideReading) -> tuple[Finding, ...]:
    """What the reader must know of how the slide was read, whatever the protocol found on it."""
    assert reading.grid is not None
    if reading.grid.mpp <= task.eye.card.mpp * COARSER_TOLERANCE:
        return seen_findings(task, reading)
    coarser = Finding(
        kind=FindingKind.QUALITY,
        code=finding_code("coarser-than-model"),
        text=f"The finest image has {reading.level_mpp:.3f} µm per pixel; the model was made for "
        f"{task.eye.card.mpp:g}. It was read as it is, not enlarged.",
        series=reading.series,
    )
    return (coarser, *seen_findings(task, reading))


def seen_findings(task: SlideTask, reading: SlideReading) -> tuple[Finding, ...]:
    """What the reader must know of the slide and its pixels, at whatever resolution they were read."""
    found: list[Finding] = []

    def add(kind: FindingKind, key: str, text: str) -> None:
        found.append(Finding(kind=kind, code=finding_code(key), text=text, series=reading.series))

    for remark in task.slide.remarks:
        add(FindingKind.QUALITY, remark.key, remark.text)
    if reading.frames_missing:
        add(
            FindingKind.QUALITY,
            "frames-missing",
            f"{reading.frames_missing} image frames are missing; they were read as background.",
        )
    if reading.quality is not None:
        for key, text in _of_quality(reading.quality):
            add(FindingKind.QUALITY, key, text)
    if reading.stain_figures is not None:
        for key, text in _of_stain(reading.stain_figures):
            add(FindingKind.QUALITY, key, text)
    elif "HE" in task.card.intended_use.stains and reading.stain == "HE" and reading.tiles_read >= _TILES_ENOUGH:
        add(FindingKind.QUALITY, "stain-faint", "The tissue is too faintly stained for its stains to be measured.")
    if task.order.region is not None:
        add(FindingKind.SETTING, "region-only", "Only the region named in the order was read.")
    return tuple(found)


def _of_quality(seen: SlideQuality) -> list[tuple[str, str]]:
    found = []
    if seen.blurred_share > MOSTLY_BLURRED:
        found.append(("out-of-focus", f"{100 * seen.blurred_share:.0f} % of the tiles are out of focus."))
    return [*found, *of_pen(seen.pen_area_mm2)]


def of_pen(area_mm2: float) -> list[tuple[str, str]]:
    """What is to be said of pen marks of that area: a finding's key and its text, where it is more than a dot."""
    if area_mm2 <= PEN_MM2:
        return []
    return [("pen-marks", f"Pen marks cover {area_mm2:.1f} mm² of the slide; they were not read.")]


def _of_stain(stain: StainFigures) -> list[tuple[str, str]]:
    found = []
    least, most = STAIN_OD
    for name, density in (("Haematoxylin", stain.haematoxylin_od), ("Eosin", stain.eosin_od)):
        if not least <= density <= most:
            word = "pale" if density < least else "dark"
            found.append(
                (
                    f"{name.lower()}-{word}",
                    f"{name} is {word}: a mean optical density of {density:.2f}; {least:g} to {most:g} is usual.",
                )
            )
    if stain.distance_deg is not None and stain.distance_deg > FAR_DEG:
        found.append(
            (
                "stain-unlike",
                f"The stains' colours differ by {stain.distance_deg:.0f}° from those that the model was trained on.",
            )
        )
    return found


def box_of(grid: TileGrid, row: int, column: int) -> BoxPx:
    """A tile's box in pixels of the level that the grid lies on."""
    field = grid.field_px
    return BoxPx(x_px=column * field, y_px=row * field, width_px=field, height_px=field)


def corner_um(box: BoxPx, level: Level) -> tuple[float, float]:
    """Where a box's top left corner lies, in µm from the slide image's top left corner."""
    return box.x_px * level.mpp_x, box.y_px * level.mpp_y
