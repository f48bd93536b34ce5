"""Painted smears whose cells are known, and a task of protocol `cervical-screening` on one."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from gateway.analyses.protocols import protocol_named
from gateway.analyses.screening import CervicalScreening
from gateway.analyses.slide_half import Engine, SlideOutcome, SlideTask
from gateway.domain.codes import Code
from gateway.domain.order import RegionUm
from gateway.slides.phantom_dicom import Identity
from gateway.slides.phantom_given import write_given
from tests.support.screening_models import paint
from tests.support.slide_tasks import slide_task

CERVIX = Code("71252005", "SCT", "Cervix uteri structure")
PROTOCOL = protocol_named("cervical-screening")
PAP = (
    Code("12710003", "SCT", "hematoxylin stain"),
    Code("54221006", "SCT", "orange G stain"),
)
_GLASS = (243, 243, 244)
_CYTOPLASM = ((150, 208, 214), (240, 176, 120))
"""Blue-green and orange, as Papanicolaou's counterstains leave cells; far from every colour that is a class's."""
_CYTOPLASM_UM = 44.0

Cell = tuple[int, float, float]
"""A painted cell: its Bethesda number, and its middle in µm from the slide's left and top edge."""


def smear(cells: Sequence[Cell], size_um: float = 600.0, mpp: float = 0.25) -> npt.NDArray[np.uint8]:
    """A picture of a smear: glass under sheets of cytoplasm in both colours, and cells painted on them."""
    side = round(size_um / mpp)
    image = np.full((side, side, 3), _GLASS, np.uint8)
    step = 50.0
    for row, y in enumerate(np.arange(step, size_um - step, step)):
        for column, x in enumerate(np.arange(step, size_um - step, step)):
            place = round(x / mpp), round(y / mpp)
            cv2.circle(image, place, round(_CYTOPLASM_UM / 2 / mpp), _CYTOPLASM[(row + column) % 2], -1, cv2.LINE_AA)
    for number, x_um, y_um in cells:
        paint(image, number, x_um / mpp, y_um / mpp, mpp)
    return image


def write_smear(
    out: Path,
    image_HW3: npt.NDArray[np.uint8],
    *,
    mpp: float = 0.25,
    organ: Code | None = CERVIX,
    stains: tuple[Code, ...] = PAP,
    root: str = "smear",
) -> Path:
    """The picture as a slide of DICOM images, without loss; its folder."""
    identity = Identity().completed(root, "cytology", stains, organ)
    height, width = image_HW3.shape[:2]
    write_given(
        out,
        lambda left, top, across, down: image_HW3[top : top + down, left : left + across],
        width_px=width,
        height_px=height,
        mpp=mpp,
        identity=identity,
        encoding="uncompressed",
    )
    return out


def screening(
    slide_folder: Path,
    models: Path,
    folder: Path,
    *,
    stain: str | None = None,
    kind: Code | None = None,
    site: Code | None = None,
    region: RegionUm | None = None,
    state_folder: Path | None = None,
    **settings: str,
) -> AbstractContextManager[SlideTask]:
    """The task of one slide. `settings`: with `__` for the dot; ten squamous cells are enough where nothing is said."""
    return slide_task(
        PROTOCOL,
        slide_folder,
        models,
        folder,
        stain=stain,
        kind=kind,
        site=site,
        region=region,
        state_folder=state_folder,
        settings={"adequacy__min_cells": "10"} | settings,
    )


async def screened(task: SlideTask, engine: Engine) -> SlideOutcome:
    """The outcome of a task, from plan to result."""
    half = CervicalScreening()
    await half.infer(task, half.plan(task), engine, progress=lambda done: None, cancelled=lambda: False)
    return half.outcome(task)
