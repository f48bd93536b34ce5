"""Protocol `segmentation`: where on an H&E slide is what the order asks for in words.

Triton answers windows (`pathseg`: image UINT8 [B,S,S,3] and the vectors of P prompts -> mask_logits FP32 [B,P,S,S],
presence_logit FP32 [B,P]); the slide half here blends them into masks, splits masks into objects and measures both.
All prompts of one resolution are answered together; what is finished lies on disk, so no step is done twice.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from gateway.analyses.batches import run_batches, windows_a_request
from gateway.analyses.blending import presence_of
from gateway.analyses.intended_use import Use, compare
from gateway.analyses.mask_file import MaskFile
from gateway.analyses.mask_store import MaskStore, WindowAnswers
from gateway.analyses.object_splitting import Splitter
from gateway.analyses.prompt_texts import Texts, text_vectors
from gateway.analyses.readings import reading_of, seen_findings
from gateway.analyses.segment_group import Group, groups_of
from gateway.analyses.segment_pictures import pictures_of
from gateway.analyses.segment_plan import SegmentPlan
from gateway.analyses.segment_result import findings_of, result_of
from gateway.analyses.slide_half import Engine, SlideOutcome, SlideTask
from gateway.analyses.work import Work
from gateway.domain.report import SlideReading
from gateway.operations.errors import InferenceError
from gateway.operations.threads import to_the_end
from gateway.slides import quality
from gateway.slides.window_stream import stream_windows

_IN_FLIGHT = 3
"""One more than instances of the engines on two cores: so small a request would leave one waiting for the next, while
an answer is blended."""
_FOCUS_MPP = 0.5
"""What `gateway.slides.quality` calls blurred was set at this resolution."""


class Segmentation:
    """The slide half of `segmentation`."""

    def plan(self, task: SlideTask) -> SegmentPlan:
        return SegmentPlan.of_task(task)

    async def infer(
        self,
        task: SlideTask,
        plan: SegmentPlan,
        engine: Engine,
        *,
        progress: Callable[[int], None],
        cancelled: Callable[[], bool],
    ) -> None:
        before = 0
        for group in groups_of(task, plan):
            await _answer(group, engine, _onward(progress, before), cancelled)
            before += len(group.plan)

    def outcome(self, task: SlideTask) -> SlideOutcome:
        plan = SegmentPlan.of_task(task)
        groups = groups_of(task, plan)
        use = compare(task.specimen, task.slide.header, task.card)
        reading = _reading(task, plan, groups, use)
        result = result_of(groups, exploratory=use.exploratory)
        return SlideOutcome(
            level=plan.finest.level,
            reading=reading,
            findings=(*use.findings, *seen_findings(task, reading), *findings_of(task, plan, groups, result, use.site)),
            segmentation=result,
            masks=() if use.wrong_stain else tuple(group.masks for group in groups),
            pictures=pictures_of(task, () if use.wrong_stain else groups, result),
        )


def _onward(progress: Callable[[int], None], before: int) -> Callable[[int], None]:
    return lambda done: progress(before + done)


async def _answer(group: Group, engine: Engine, progress: Callable[[int], None], cancelled: Callable[[], bool]) -> None:
    """Every window through the model, then every mask into objects; on from where the file ends."""
    task, plan = group.task, group.plan
    texts = await text_vectors(task.models[0], [each.triple for each in group.prompts], engine)
    masks, prompts = group.masks, len(group.prompts)
    region = None if task.order.region is None else group.inside
    work = Work()  # no thread may be left with the file

    def stopped() -> bool:
        return work.stopped() or cancelled()

    with MaskFile.writing(masks.path, masks.belongs_to, prompts) as file:
        store = await work.done(lambda: MaskStore(file, plan, group.presence, region))
        splitter = await work.done(lambda: Splitter(file, plan, group.splittings))
        progress(store.done)
        if store.done < len(plan):
            batch = windows_a_request(task.models[-1].contract, prompts=prompts)
            windows = stream_windows(task.slide, plan, batch=batch, first=store.done, cancelled=cancelled)
            async with _splitting_behind(splitter, progress, cancelled) as told:
                await run_batches(
                    windows,
                    _asker(group, texts, engine),
                    store,
                    progress=told,
                    cancelled=cancelled,
                    in_flight=_IN_FLIGHT,
                )
        await work.done(lambda: splitter.run(len(plan), stopped))


@asynccontextmanager
async def _splitting_behind(
    splitter: Splitter, progress: Callable[[int], None], cancelled: Callable[[], bool]
) -> AsyncIterator[Callable[[int], None]]:
    """What can be split already is split in a thread beside the work in the block, which tells how far it is."""
    behind: list[asyncio.Task[None]] = []
    stop = threading.Event()

    def split(done: int) -> None:
        splitter.run(done, lambda: stop.is_set() or cancelled())

    def told(done: int) -> None:
        progress(done)
        if behind and behind[0].done():
            behind.pop().result()
        if not behind:
            behind.append(asyncio.create_task(to_the_end(lambda: split(done), stop.set)))

    try:
        yield told
    except BaseException:
        stop.set()
        raise
    finally:
        ended = await asyncio.gather(*behind, return_exceptions=True)  # no thread may be left with the file
    for each in ended:
        if each is not None:
            raise each


def _asker(
    group: Group, texts: Texts, engine: Engine
) -> Callable[[npt.NDArray[np.uint8]], Coroutine[Any, Any, WindowAnswers]]:
    model, rules = group.task.models[-1], group.presence
    shape = len(group.prompts), group.plan.side_px, group.plan.side_px

    async def ask(images_BHWC: npt.NDArray[np.uint8]) -> WindowAnswers:
        batch = {"image": images_BHWC, **texts.repeated(len(images_BHWC))}
        answer, figures_BF = await asyncio.gather(
            engine.infer(model.folder, batch), asyncio.to_thread(_figures, images_BHWC, group.plan.mpp)
        )
        logits_BPSS, presence_BP = answer["mask_logits"], answer["presence_logit"]
        if logits_BPSS.shape[1:] != shape:
            raise InferenceError(f"The model {model.folder} answers with masks of another size than its card says.")
        if not (np.isfinite(logits_BPSS.sum()) and np.isfinite(presence_BP).all()):
            raise InferenceError(f"The model {model.folder} answered with what is no finite number.")
        return WindowAnswers(logits_BPSS, presence_of(rules, presence_BP), figures_BF)

    return ask


def _figures(images_BHWC: npt.NDArray[np.uint8], mpp: float) -> npt.NDArray[np.float32]:
    """The windows' figures of quality, at the resolution that these are meant for where the windows are finer."""
    side_px = round(images_BHWC.shape[1] * mpp / _FOCUS_MPP)
    if side_px >= images_BHWC.shape[1]:
        return quality.measure(images_BHWC)
    reduced = [cv2.resize(image, (side_px, side_px), interpolation=cv2.INTER_AREA) for image in images_BHWC]
    return quality.measure(np.asarray(np.stack(reduced), np.uint8))


def _reading(task: SlideTask, plan: SegmentPlan, groups: Sequence[Group], use: Use) -> SlideReading:
    """Quality is that of the finest resolution; a frame that is missed at several is one."""
    missing: set[tuple[int, int, int]] = set()
    for group in groups:
        with group.finished() as file:
            missing |= {(group.plan.level, *frame) for frame in file.missing()}
    with groups[0].finished() as file:
        figures_NF = file.figures()
    reading = reading_of(task, plan.planned, use, figures_NF, len(missing))
    return reading if groups[0].plan.mpp < _FOCUS_MPP * 1.1 else replace(reading, quality=None)
