"""Masks of one region at once: its frames through the cache, its features kept, every prompt decoded over its windows.

Windows, blending and the rule of presence are those of a whole slide's analysis.
"""

from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gateway.analyses.batches import windows_a_request
from gateway.analyses.blending import blend, presence_of, presence_rules, speaks
from gateway.analyses.feature_cache import FeatureCache, RegionFeatures, RegionKey
from gateway.analyses.identity import unreleased
from gateway.analyses.intended_use import Use, compare
from gateway.analyses.ledger.choices import Choices
from gateway.analyses.prompt_texts import Asked, asked, prompt_findings, text_vectors
from gateway.analyses.segment_engine import SegmentEngine, SegmentModels
from gateway.analyses.shown_mask import png_of, polygons_of
from gateway.analyses.work import Work, in_order
from gateway.archive import Access, SeriesEntry, Wanted, open_archive
from gateway.archive.cache import FrameCache
from gateway.archive.partial import is_partial
from gateway.domain.identity import Problem
from gateway.domain.model import ModelCard
from gateway.domain.order import Order, RegionUm
from gateway.domain.prompts import code_of
from gateway.domain.report import Finding, FindingKind
from gateway.domain.segment import PromptMask, SegmentAnswer, SegmentAsk
from gateway.domain.slide import SlideHeader
from gateway.domain.tables import finding_code
from gateway.inference import TritonEngine
from gateway.operations.errors import IdentityMismatch, InferenceError, InvalidOrder, ResolutionTooCoarse
from gateway.operations.settings import Settings
from gateway.slides import Slide, frames_of
from gateway.slides.window_stream import stream_windows
from gateway.slides.windows import WindowPlan, inside, picture_of, plan_windows, region_px

MOST_SIDE_PX = 1536
"""Greatest side of a region, in pixels of the resolution that a prompt is answered at."""
FEATURE_BYTES = 512 * 2**20
_IN_FLIGHT = 2
_PROMPTS = 4
"""Prompts that are decoded together: their logits are in memory at once."""

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Field:
    """A region at one resolution: its windows, and the mask pixels under it."""

    plan: WindowPlan
    rows: slice
    columns: slice
    inside_HW: npt.NDArray[np.bool_]

    @property
    def pixel_um(self) -> tuple[float, float]:
        return self.plan.mpp_x, self.plan.mpp_y

    @property
    def corner_um(self) -> tuple[float, float]:
        return self.columns.start * self.pixel_um[0], self.rows.start * self.pixel_um[1]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Request:
    """One request at work. `partial`: only headers of the slide are there so far."""

    ask: SegmentAsk
    slide: Slide
    partial: bool
    use: Use
    models: SegmentModels
    engine: TritonEngine
    work: Work


class RegionMasks:
    """The archive, an engine that is kept open, and the features of the last regions; in one event loop."""

    def __init__(self, settings: Settings) -> None:
        """Raises InvalidSetting where the archive's address or access is not one."""
        self._archive = open_archive(settings.archive_address, Access.from_settings(settings))
        self._cache = FrameCache(settings.state / "cache", settings.cache_bytes)
        self._engine = SegmentEngine(settings)
        self._features = FeatureCache(FEATURE_BYTES)

    async def close(self) -> None:
        """Close the engine. No request may be under way."""
        await self._engine.close()

    async def answer(self, ask: SegmentAsk, choices: Choices) -> SegmentAnswer:
        """The masks, of the models that serve by these choices. Cancelling the task ends all that was begun for them.
        Raises as `Interactive.begin` says."""
        order, work = ask.order, Work()
        with ExitStack() as held:
            slide, partial = await work.done(lambda: held.enter_context(self._opened(ask, {}, work)))
            _demand_agreement(order, slide.header)
            async with self._engine.serving(choices) as (models, engine):
                use = compare(order.specimens[0], slide.header, models.card)
                request = _Request(
                    ask=ask, slide=slide, partial=partial, use=use, models=models, engine=engine, work=work
                )
                masks, findings = await self._masks(request, asked(order.prompts, models.card))
        return SegmentAnswer(
            study=ask.study,
            series=ask.series,
            region=ask.region,
            models=models.versions,
            findings=(*use.findings, *findings),
            masks=masks,
        )

    async def _masks(
        self, request: _Request, prompts: Sequence[Asked]
    ) -> tuple[tuple[PromptMask, ...], tuple[Finding, ...]]:
        """The mask of each prompt, and what was to be seen of the slide meanwhile."""
        card, work = request.models.card, request.work
        masks: dict[int, PromptMask] = {}
        missing: set[tuple[int, int, int]] = set()
        coarse: ResolutionTooCoarse | None = None
        scales = {each.index: card.mpp_by_level[each.triple.level] for each in prompts}
        for mpp in sorted(set(scales.values())):
            here = [each for each in prompts if scales[each.index] == mpp]
            try:
                field = await work.done(lambda mpp=mpp: _field(request.slide, request.ask.region, mpp, card.tile_px))  # type: ignore[misc]
            except ResolutionTooCoarse as error:
                coarse = error
                masks |= {each.index: _unanswered(request, each, mpp) for each in here}
                continue
            features = await self._seen(request, field.plan)
            missing |= {(field.plan.level, *frame) for frame in features.missing}
            for first in range(0, len(here), _PROMPTS):
                some = here[first : first + _PROMPTS]
                logits_NPSS, presence_NP = await _decoded(request, features, some)
                made = await work.done(
                    lambda field=field, some=some, logits_NPSS=logits_NPSS, presence_NP=presence_NP: list(  # type: ignore[misc]
                        _drawn(request, field, some, logits_NPSS, presence_NP)
                    )
                )
                masks |= zip((each.index for each in some), made, strict=True)
        if coarse is not None and not any(mask.width_px for mask in masks.values()):
            raise coarse
        series = request.ask.series
        findings = [_of_quality(series, remark.key, remark.text) for remark in request.slide.remarks]
        if missing:
            text = f"{len(missing)} image frames are missing; they were read as background."
            findings.append(_of_quality(series, "frames-missing", text))
        return tuple(masks[each.index] for each in prompts), tuple(findings)

    async def _seen(self, request: _Request, plan: WindowPlan) -> RegionFeatures:
        """What the image encoder makes of the windows: kept from an earlier request, or computed."""
        image, ask = request.models.image, request.ask
        key = RegionKey(ask.study, ask.series, plan.digest, image.card.version.engine_sha256)
        kept = self._features.get(key)
        if kept is not None:
            return kept
        work, missing = request.work, list[tuple[int, int]]()
        with ExitStack() as held:
            slide = request.slide
            if request.partial:
                wanted = frames_of(slide, plan.tiles)
                slide, _ = await work.done(lambda: held.enter_context(self._opened(ask, wanted, work)))
            # As they are encoded, so are they decoded.
            at_once = windows_a_request(image.contract, request.models.decoder.contract, prompts=_PROMPTS)
            windows = stream_windows(slide, plan, batch=at_once, cancelled=work.stopped)

            async def calls() -> AsyncIterator[Coroutine[Any, Any, dict[str, Array]]]:
                while (batch := await work.done(lambda: next(windows, None))) is not None:
                    missing.extend(batch.missing)
                    yield request.engine.infer(image.folder, {"image": batch.images_BHWC})

            try:
                batches = await in_order(calls(), _IN_FLIGHT)
            finally:
                windows.close()
        features = RegionFeatures(tuple(batches), tuple(missing))
        if not missing:  # they may be there for the next request
            self._features.put(key, features)
        return features

    @contextmanager
    def _opened(self, ask: SegmentAsk, wanted: Wanted, work: Work) -> Iterator[tuple[Slide, bool]]:
        """The slide with these frames, and whether others are not there; held in the cache.

        Raises ArchiveError, SlideError, DiskFull, StateError, Cancelled.
        """
        [entry] = self._archive.find_series(ask.study, (ask.series,), cancelled=work.stopped)
        entry = SeriesEntry(entry.study, entry.series)
        files = self._archive.fetch(entry, self._cache, wanted=wanted, cancelled=work.stopped).files
        with self._cache.hold(files), Slide.open(files) as slide:
            yield slide, any(map(is_partial, files))


def _demand_agreement(order: Order, header: SlideHeader) -> None:
    """Raise IdentityMismatch where an identifier that the request gives is not the header's."""
    claimed = (Problem.DIFFERS, Problem.NOT_IN_SLIDE)
    differences = unreleased(order, [(order.specimens[0], header)], ())
    if wrong := [each.attribute for each in differences if each.problem in claimed]:
        raise IdentityMismatch(
            f"The request and the slide do not agree ({', '.join(wrong)}), so nothing was read. Check which slide is "
            "meant."
        )


def _field(slide: Slide, region: RegionUm, mpp: float, side_px: int) -> _Field:
    """Raises ResolutionTooCoarse, InvalidOrder."""
    picture = picture_of(slide, mpp, side_px)
    rows, columns = region_px(picture, region)
    # Before windows are laid: of a whole slide they are hundreds of thousands.
    if max(rows.stop - rows.start, columns.stop - columns.start) > MOST_SIDE_PX:
        raise InvalidOrder(
            f"The region is too large to be answered at once: at {mpp:.3g} µm per pixel it may measure "
            f"{MOST_SIDE_PX * picture.mpp_x:.0f} × {MOST_SIDE_PX * picture.mpp_y:.0f} µm. Ask for a smaller one, or "
            "order an analysis."
        )
    plan = plan_windows(slide, None, mpp=mpp, side_px=side_px, region=region)
    inside_HW = inside(plan, region, rows, columns)
    if not inside_HW.any():
        raise InvalidOrder(
            "The region encloses nothing of the slide: its polygon has no area inside its box. Draw it again."
        )
    return _Field(plan=plan, rows=rows, columns=columns, inside_HW=inside_HW)


async def _decoded(request: _Request, features: RegionFeatures, prompts: Sequence[Asked]) -> tuple[Array, Array]:
    """Logits of the masks (N, P, S, S) and of the presence (N, P) in each window. Raises InferenceError."""
    triples = tuple(each.triple for each in prompts)
    texts = await text_vectors(request.models.text, triples, request.engine)
    folder = request.models.decoder.folder

    async def calls() -> AsyncIterator[Coroutine[Any, Any, dict[str, Array]]]:
        for batch in features.batches:
            windows = len(batch["mask_features"])
            yield request.engine.infer(folder, {**batch, **texts.repeated(windows)})

    answers = await in_order(calls(), _IN_FLIGHT)
    logits_NPSS = np.concatenate([each["mask_logits"] for each in answers])
    presence_NP = np.concatenate([each["presence_logit"] for each in answers])
    if not (np.isfinite(logits_NPSS).all() and np.isfinite(presence_NP).all()):
        raise InferenceError(f"The model {folder} answered with what is no finite number.")
    return logits_NPSS, presence_NP


def _drawn(
    request: _Request, field: _Field, prompts: Sequence[Asked], logits_NPSS: Array, presence_logit_NP: Array
) -> Iterator[PromptMask]:
    card = request.models.card
    rules = presence_rules(card, [each.triple for each in prompts])
    presence_NP = presence_of(rules, presence_logit_NP)
    probability_PHW = blend(field.plan, logits_NPSS, speaks(rules, presence_NP), field.rows, field.columns)
    for place, each in enumerate(prompts):
        mask_HW = (probability_PHW[place] >= 0.5) & field.inside_HW
        yield _mask(request, field, each, float(presence_NP[:, place].max()), mask_HW, card)


def _mask(
    request: _Request,
    field: _Field,
    prompt: Asked,
    presence: float,
    mask_HW: npt.NDArray[np.bool_],
    card: ModelCard,
) -> PromptMask:
    category, code = code_of(prompt.triple)
    pixels = int(np.count_nonzero(mask_HW))
    x_um, y_um = field.corner_um
    shown_HW = mask_HW & (not request.use.wrong_stain)
    polygons, tolerance_um = polygons_of(shown_HW, field.corner_um, field.pixel_um)
    height_px, width_px = mask_HW.shape
    return PromptMask(
        prompt=prompt.prompt,
        triple=prompt.triple.text,
        category=category,
        code=code,
        supported=prompt.supported,
        present=pixels > 0,
        presence=presence,
        mpp=field.plan.mpp,
        x_um=x_um,
        y_um=y_um,
        width_px=width_px,
        height_px=height_px,
        area_um2=pixels * field.pixel_um[0] * field.pixel_um[1],
        area_fraction=pixels / int(np.count_nonzero(field.inside_HW)),
        png=png_of(shown_HW),
        polygons=polygons,
        tolerance_um=tolerance_um,
        findings=(
            *_enlarged(request, field.plan),
            *prompt_findings((prompt,), card, request.use.site, request.ask.series),
        ),
    )


def _unanswered(request: _Request, prompt: Asked, mpp: float) -> PromptMask:
    """For a prompt that the slide is too coarse for, as an order says it: no pixels, and nothing is said of them."""
    category, code = code_of(prompt.triple)
    ask = request.ask
    text = (
        f"“{prompt.triple.text}” cannot be answered at this resolution: the slide's finest image has "
        f"{request.slide.levels[0].mpp:.3g} µm per pixel, and it is asked at {mpp:.3g}. Nothing is said of it."
    )
    return PromptMask(
        prompt=prompt.prompt,
        triple=prompt.triple.text,
        category=category,
        code=code,
        supported=prompt.supported,
        present=None,
        presence=None,
        mpp=mpp,
        x_um=ask.region.x_um,
        y_um=ask.region.y_um,
        width_px=0,
        height_px=0,
        area_um2=None,
        area_fraction=None,
        png=b"",
        polygons=(),
        tolerance_um=0.0,
        findings=(
            _of_quality(ask.series, "cannot-answer", text),
            *prompt_findings((prompt,), request.models.card, request.use.site, ask.series),
        ),
    )


def _enlarged(request: _Request, plan: WindowPlan) -> Iterator[Finding]:
    if plan.pixel_px < 1:
        level = request.slide.levels[plan.level]
        yield _of_quality(
            request.ask.series,
            "coarser-than-model",
            f"The finest image has {level.mpp:.3f} µm per pixel; the mask has {plan.mpp:.3f}. It was enlarged.",
        )


def _of_quality(series: str, key: str, text: str) -> Finding:
    return Finding(kind=FindingKind.QUALITY, code=finding_code(key), text=text, series=series)
