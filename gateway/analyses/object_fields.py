"""Where the objects of prompts lie on single tiles: windows of the model of masks over each tile, blended as over a
whole slide, and read off at the tile's own pixels."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gateway.analyses.batches import run_batches, windows_a_request
from gateway.analyses.blending import blend, presence_of, presence_rules, speaks
from gateway.analyses.prompt_texts import Asked, text_vectors
from gateway.analyses.readings import box_of, corner_um
from gateway.analyses.slide_half import Engine, ServedModel
from gateway.domain.order import RegionUm
from gateway.domain.slide import TileGrid
from gateway.operations.errors import InferenceError
from gateway.slides import Slide
from gateway.slides.window_stream import stream_windows
from gateway.slides.windows import WindowPlan, plan_windows, region_px

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class TileField:
    """One tile, where it lies, and the windows over it at the resolution of some prompts."""

    region: RegionUm
    plan: WindowPlan


def field_of(slide: Slide, grid: TileGrid, row: int, column: int, *, mpp: float, side_px: int) -> TileField:
    """A tile of the grid as the model of masks sees it. Raises ResolutionTooCoarse."""
    level, box = slide.levels[grid.level], box_of(grid, row, column)
    x_um, y_um = corner_um(box, level)
    region = RegionUm(x_um, y_um, box.width_px * level.mpp_x, box.height_px * level.mpp_y)
    return TileField(region, plan_windows(slide, None, mpp=mpp, side_px=side_px, region=region))


async def masks_on(
    tile: TileField,
    tile_px: int,
    prompts: Sequence[Asked],
    text: ServedModel,
    masks: ServedModel,
    slide: Slide,
    engine: Engine,
    *,
    cancelled: Callable[[], bool],
) -> tuple[npt.NDArray[np.bool_], Array, set[tuple[int, int, int]]]:
    """The prompts' masks on the tile's own pixels (P, tile_px, tile_px), False beyond the slide's edge; each one's
    greatest presence in a window (P,); and (level, row, column) of the image frames that were missing under the
    windows. Raises SlideError, FramesNotFetched, InferenceError, ModelRefused, Cancelled."""
    triples = [each.triple for each in prompts]
    rules = presence_rules(masks.card, triples)
    texts = await text_vectors(text, triples, engine)
    shape = len(prompts), tile.plan.side_px, tile.plan.side_px

    async def ask(images_BHWC: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        answer = await engine.infer(masks.folder, {"image": images_BHWC, **texts.repeated(len(images_BHWC))})
        if answer["mask_logits"].shape[1:] != shape:
            raise InferenceError(f"The model {masks.folder} answers with masks of another size than its card says.")
        if not (np.isfinite(answer["mask_logits"].sum()) and np.isfinite(answer["presence_logit"]).all()):
            raise InferenceError(f"The model {masks.folder} answered with what is no finite number.")
        return answer

    batch = windows_a_request(masks.contract, prompts=len(prompts))
    windows, heard = stream_windows(slide, tile.plan, batch=batch, cancelled=cancelled), _Heard()
    await run_batches(windows, ask, heard, progress=lambda done: None, cancelled=cancelled)
    logits_NPSS, presence_logit_NP = (
        np.concatenate([answer[name] for answer in heard.answers]) for name in ("mask_logits", "presence_logit")
    )
    presence_NP = presence_of(rules, presence_logit_NP)
    spoken_NP = speaks(rules, presence_NP)
    rows, columns = region_px(tile.plan, tile.region)
    blended_PHW = await asyncio.to_thread(blend, tile.plan, logits_NPSS, spoken_NP, rows, columns)
    missing = {(tile.plan.level, *frame) for frame in heard.missing}
    return _read_off(blended_PHW >= 0.5, tile, rows, columns, tile_px), presence_NP.max(axis=0), missing


@dataclass(slots=True, eq=False)
class _Heard:
    """The answers to a tile's few windows, in memory."""

    answers: list[dict[str, npt.NDArray[Any]]] = field(default_factory=list)
    missing: list[tuple[int, int]] = field(default_factory=list)
    done: int = 0

    def append(self, answer: dict[str, npt.NDArray[Any]], missing: Sequence[tuple[int, int]], /) -> None:
        self.answers.append(answer)
        self.missing += missing
        self.done += len(answer["mask_logits"])


def _read_off(
    mask_PHW: npt.NDArray[np.bool_], tile: TileField, rows: slice, columns: slice, tile_px: int
) -> npt.NDArray[np.bool_]:
    """A mask of the rows and columns of mask pixels, at the centres of the tile's pixels."""
    centres = (np.arange(tile_px) + 0.5) / tile_px
    region, plan = tile.region, tile.plan
    y = np.floor((region.y_um + centres * region.height_um) / plan.mpp_y).astype(np.int64) - rows.start
    x = np.floor((region.x_um + centres * region.width_um) / plan.mpp_x).astype(np.int64) - columns.start
    inside_y, inside_x = (y >= 0) & (y < mask_PHW.shape[1]), (x >= 0) & (x < mask_PHW.shape[2])
    found = np.zeros((len(mask_PHW), tile_px, tile_px), np.bool_)
    found[:, np.ix_(inside_y, inside_x)[0], np.ix_(inside_y, inside_x)[1]] = mask_PHW[
        :, y[inside_y][:, None], x[inside_x]
    ]
    return found
