"""Which objects a slide's answer rests on: what the slide's model loses where an object is blurred.

PathSegmentor (arXiv 2506.20988), interpretability: of the tiles that weigh most, the pixels under an object's mask are
blurred, the tiles are encoded again, and the bag is asked again. The importance of the object is the loss of that
answer, of the loss before; that of random areas of tissue of the same size is told beside it. On one slide the truth is
not known: the loss is the cross-entropy of the class that the model itself finds most probable.

Each answer is a row on disk, in a fixed order: as it was; then of each object that was found the blurred one and the
repeats of its control. What is on disk is not asked again.
"""

import asyncio
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from gateway.analyses import tiles
from gateway.analyses.bags import BagAnswer, said_of
from gateway.analyses.batches import run_batches
from gateway.analyses.blending import presence_rules
from gateway.analyses.kept_arrays import kept
from gateway.analyses.object_fields import TileField, field_of, masks_on
from gateway.analyses.prompt_texts import Asked, asked, distinct, prompt_findings, repeated_findings
from gateway.analyses.random_areas import elsewhere, tissue_under
from gateway.analyses.slide_bag import SlideBag
from gateway.analyses.slide_half import Engine, ServedModel
from gateway.analyses.tiles import TileStore
from gateway.domain.codes import Code
from gateway.domain.explanation import ClassChange, ExplainedObject, Explanation, Importance, Interval
from gateway.domain.prompts import code_of
from gateway.domain.report import Finding, FindingKind, SlideClassification
from gateway.domain.tables import finding_code
from gateway.operations.disk import disk_errors, written_whole
from gateway.operations.errors import ModelRefused, ResolutionTooCoarse, RowsOutdated
from gateway.slides import TileBatch, find_tissue, stream_tiles
from gateway.slides.windows import WindowPlan

BLUR_UM = 8.0
"""Standard deviation of the blur: about a nucleus, so that neither its texture nor its outline is left."""
_SEED = 20
_LEAST_LOSS = 1e-100
"""Smaller losses count as this, so that no ratio is without bounds: of logits that lie 230 apart."""
_MASKS, _ROWS = "objects.npz", "importance.bin"
_VERSION = 3
"""Of how objects are found, blurred and moved by chance: raised with every change of the rules, so that no rows are
begun by one and ended by another."""


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """Where the P prompts' objects lie on the K explained tiles, where tissue does (False where no object was found),
    how surely each object is on any of them, and (level, row, column) of the image frames that were missing where
    objects were looked for."""

    masks_KPHW: npt.NDArray[np.bool_]
    tissue_KHW: npt.NDArray[np.bool_]
    presence_P: npt.NDArray[np.float32]
    missing_F3: npt.NDArray[np.int64]

    @property
    def numbers(self) -> tuple[int, ...]:
        """The prompts that were found."""
        return tuple(np.flatnonzero(self.masks_KPHW.any(axis=(0, 2, 3))).tolist())

    @property
    def packed(self) -> dict[str, npt.NDArray[np.uint8]]:
        """The masks and the tissue, eight pixels a byte."""
        return {"masks": np.packbits(self.masks_KPHW, axis=-1), "tissue": np.packbits(self.tissue_KHW, axis=-1)}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Explaining:
    """The explanation of one slide's answer. `places_K`: the explained tiles' places in the bag, in the plan's order.
    `prompts`, each once, can be answered on this slide, `too_coarse` not; `fields`: the tiles at the resolutions of the
    former."""

    bag: SlideBag
    answer: BagAnswer
    places_K: npt.NDArray[np.int64]
    prompts: tuple[Asked, ...]
    too_coarse: tuple[Asked, ...]
    fields: Mapping[float, tuple[TileField, ...]]

    @classmethod
    def of(cls, bag: SlideBag, answer: BagAnswer) -> "Explaining":
        """The tiles that weigh most, and the windows over them. Raises PromptInvalid, ModelRefused."""
        task, plan, card = bag.task, bag.plan, bag.task.models[2].card
        every = distinct(asked(task.order.prompts, card))
        if missing := {each.triple.level.value for each in every} - card.mpp_by_level.keys():
            raise ModelRefused(
                f"The model {task.models[2].folder} does not say at which resolution it answers {sorted(missing)[0]} "
                "prompts. Promote another version."
            )
        heaviest_K = np.argsort(-answer.weights_M, kind="stable")[: tiles_explained(bag)]
        places_K = heaviest_K[np.argsort(bag.picked_M[heaviest_K])]
        places = bag.picked_M[places_K]
        cells = list(zip(plan.rows_N[places].tolist(), plan.columns_N[places].tolist(), strict=True))
        fields: dict[float, tuple[TileField, ...]] = {}
        for mpp in sorted({card.mpp_by_level[each.triple.level] for each in every}):
            try:
                fields[mpp] = tuple(
                    field_of(task.slide, plan.grid, row, column, mpp=mpp, side_px=card.tile_px) for row, column in cells
                )
            except ResolutionTooCoarse:
                continue
        answerable = [card.mpp_by_level[each.triple.level] in fields for each in every]
        return cls(
            bag=bag,
            answer=answer,
            places_K=places_K,
            prompts=tuple(each for each, can in zip(every, answerable, strict=True) if can),
            too_coarse=tuple(each for each, can in zip(every, answerable, strict=True) if not can),
            fields=fields,
        )

    @property
    def windows(self) -> tuple[WindowPlan, ...]:
        """All that is read of the slide for it besides the bag's tiles."""
        return tuple(tile.plan for fields in self.fields.values() for tile in fields)

    async def infer(self, engine: Engine, *, progress: Callable[[int], None], cancelled: Callable[[], bool]) -> None:
        """Find the objects, blur them, ask again; on from what is on disk. `progress` gets the tiles encoded.

        Raises SlideError, FramesNotFetched, InferenceError, ModelRefused, DiskFull, Cancelled.
        """
        task, bag = self.bag.task, self.bag
        found = await asyncio.to_thread(self._load)
        if found is None:
            found = await self._find(engine, cancelled)
            await asyncio.to_thread(self._save, found)
        images_KHW3 = await asyncio.to_thread(self._images, cancelled)
        features_MD, centres_M2 = await asyncio.to_thread(bag.features), bag.centres_um()

        async def ask(changed_KHW3: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
            answer = await engine.infer(task.eye.folder, {"image": changed_KHW3})
            changed_MD = features_MD.copy()
            changed_MD[self.places_K] = answer["embedding"]
            said = await said_of(task.models[-1], changed_MD, centres_M2, engine)
            return np.asarray(said["logits"].reshape(1, -1), np.float32)

        with TileStore.open(self._rows, belongs_to=self._rows_belong_to(found), width=len(task.card.labels)) as store:
            views = self._views(images_KHW3, found, store.done)
            await run_batches(
                views, ask, store, progress=lambda done: progress(done * len(self.places_K)), cancelled=cancelled
            )

    def result(self) -> Explanation:
        """The explanation, from what lies on disk. Raises RowsOutdated, StateError."""
        found = self._load()
        if found is None:
            raise RowsOutdated("The objects of the slide were looked for by other models. They are looked for anew.")
        width, rows = len(self.bag.task.card.labels), self._rows_of(found)
        logits_RC, _ = tiles.load(self._rows, belongs_to=self._rows_belong_to(found), width=width, rows=len(rows))
        target = int(self.answer.probabilities_C.argmax())
        log_RC = _log_probabilities(logits_RC)
        weights_K = self.answer.weights_M[self.places_K]
        share_KP = found.masks_KPHW.mean(axis=(2, 3))
        tiles_P = found.masks_KPHW.any(axis=(2, 3)).sum(axis=0)
        first = {number: row for row, (number, repeat) in enumerate(rows) if number is not None and repeat is None}
        objects = [
            ExplainedObject(
                index=each.index,
                prompt=each.prompt,
                triple=each.triple.text,
                category=code_of(each.triple)[0],
                code=code_of(each.triple)[1],
                supported=each.supported,
                val_dice=None if each.entry is None else each.entry.dice,
                presence=float(found.presence_P[p]),
                tiles=int(tiles_P[p]),
                area_share=float(share_KP[:, p].mean()),
                weight_share=min(1.0, float(weights_K @ share_KP[:, p] / weights_K.sum())),
                importance=(
                    importance_of(log_RC[0], log_RC[first[p] : first[p] + 1 + self._repeats], target)
                    if p in first
                    else None
                ),
            )
            for p, each in enumerate(self.prompts)
        ]
        return Explanation(
            target=target,
            loss=max(_LEAST_LOSS, float(-log_RC[0, target])),
            tiles=len(self.places_K),
            weight_share=min(1.0, float(weights_K.sum())),
            repeats=self._repeats,
            blur_um=BLUR_UM,
            objects=tuple(sorted(objects, key=lambda each: -each.importance.ratio if each.importance else 0)),
        )

    @property
    def frames_missing(self) -> int:
        """How many image frames were missing where objects were looked for, from what lies on disk."""
        found = self._load()
        return 0 if found is None else len(found.missing_F3)

    async def _find(self, engine: Engine, cancelled: Callable[[], bool]) -> _Found:
        task, tile_px, count = self.bag.task, self.bag.plan.grid.tile_px, len(self.prompts)
        text, masks = task.models[1:3]
        found_KPHW = np.zeros((len(self.places_K), count, tile_px, tile_px), np.bool_)
        presence_P = np.zeros(count, np.float32)
        missing: set[tuple[int, int, int]] = set()
        for mpp, fields in self.fields.items():
            here = [p for p, each in enumerate(self.prompts) if masks.card.mpp_by_level[each.triple.level] == mpp]
            prompts = [self.prompts[p] for p in here]
            for k, tile in enumerate(fields):
                found_KPHW[k, here], presence, lacking = await masks_on(
                    tile, tile_px, prompts, text, masks, task.slide, engine, cancelled=cancelled
                )
                presence_P[here] = np.maximum(presence_P[here], presence)
                missing |= lacking
        tissue_KHW = np.zeros((len(self.places_K), tile_px, tile_px), np.bool_)
        if found_KPHW.any():
            tissue = await asyncio.to_thread(find_tissue, task.slide)
            for k, tile in enumerate(next(iter(self.fields.values()))):
                tissue_KHW[k] = tissue_under(tissue, tile.region, tile_px)
        return _Found(found_KPHW, tissue_KHW, presence_P, np.array(sorted(missing), np.int64).reshape(-1, 3))

    def _images(self, cancelled: Callable[[], bool]) -> npt.NDArray[np.uint8]:
        """The explained tiles (K, tile_px, tile_px, 3) as the encoder saw them."""
        part = self.bag.plan.part(self.bag.picked_M[self.places_K])
        batches = stream_tiles(self.bag.task.slide, part, batch=len(part), cancelled=cancelled)
        return np.concatenate([batch.images_BHWC for batch in batches])

    def _views(self, images_KHW3: npt.NDArray[np.uint8], found: _Found, done: int) -> Iterator[TileBatch]:
        """The tiles of every row from the row `done` on."""
        sigma_px = BLUR_UM / self.bag.plan.grid.mpp
        soft_KHW3 = np.stack([cv2.GaussianBlur(image, (0, 0), sigma_px) for image in images_KHW3])
        for row, (number, repeat) in list(enumerate(self._rows_of(found)))[done:]:
            changed_KHW3 = images_KHW3
            if number is not None:
                mask_KHW = found.masks_KPHW[:, number]
                if repeat is not None:
                    seed = _SEED, zlib.crc32(self.prompts[number].triple.text.encode()), repeat
                    mask_KHW = elsewhere(mask_KHW, found.tissue_KHW, seed)
                changed_KHW3 = np.where(mask_KHW[..., None], soft_KHW3, images_KHW3)
            yield TileBatch(row, changed_KHW3)

    def _rows_of(self, found: _Found) -> list[tuple[int | None, int | None]]:
        """What each row is of: the number of a prompt, None before anything is blurred; and the repeat of its control,
        None for the object itself."""
        blurred: list[tuple[int | None, int | None]] = [
            (number, repeat) for number in found.numbers for repeat in (None, *range(self._repeats))
        ]
        return [(None, None), *blurred]

    @property
    def _repeats(self) -> int:
        return int(self.bag.task.option("explain.repeats"))

    @property
    def _rows(self) -> Path:
        return self.bag.task.folder / _ROWS

    @property
    def _of(self) -> dict[str, str]:
        """All that decides the masks."""
        rules = presence_rules(self.bag.task.models[2].card, [each.triple for each in self.prompts])
        document = {
            **self.bag.of,
            "models": [_version(model) for model in self.bag.task.models[1:3]],
            "presence": [astuple(rule) for rule in rules],
            "prompts": [each.triple.text for each in self.prompts],
            "tiles": self.places_K.tolist(),
            "rules": _VERSION,
        }
        return {"explanation": json.dumps(document, sort_keys=True)}

    def _rows_belong_to(self, found: _Found) -> dict[str, str]:
        """All that decides the rows: the masks and the tissue themselves, too."""
        blurred = {
            **{name: hashlib.sha256(packed.tobytes()).hexdigest() for name, packed in found.packed.items()},
            "repeats": self._repeats,
            "blur_um": BLUR_UM,
        }
        return {**self._of, "blurred": json.dumps(blurred, sort_keys=True)}

    def _save(self, found: _Found) -> None:
        with disk_errors(), written_whole(self.bag.task.folder / _MASKS) as out:
            packed: dict[str, Any] = {"presence": found.presence_P, "missing": found.missing_F3, **found.packed}
            np.savez(out, of=json.dumps(self._of), **packed)

    def _load(self) -> _Found | None:
        """The masks on disk; None where there are none, or they are damaged, or belong to anything else."""

        def read(data: Mapping[str, npt.NDArray[Any]]) -> _Found | None:
            if json.loads(str(data["of"])) != self._of:
                return None
            masks, tissue = (
                np.unpackbits(data[name], axis=-1, count=self.bag.plan.grid.tile_px).view(np.bool_)
                for name in ("masks", "tissue")
            )
            return _Found(masks, tissue, data["presence"], data["missing"])

        return kept(self.bag.task.folder / _MASKS, read)


def tiles_explained(bag: SlideBag) -> int:
    """In how many tiles of a bag objects are looked for and blurred."""
    return min(int(bag.task.option("explain.tiles")), len(bag.picked_M))


def tiles_encoded(bag: SlideBag) -> int:
    """How many tiles an explanation has encoded anew, at most: where every object is found."""
    prompts = distinct(asked(bag.task.order.prompts, bag.task.models[2].card))
    rows = 1 + len(prompts) * (1 + int(bag.task.option("explain.repeats")))
    return rows * tiles_explained(bag)


def _version(model: ServedModel) -> list[str]:
    return [model.card.version.name, model.card.version.engine_sha256]


def _log_probabilities(logits_RC: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Without loss near a probability of 1."""
    shifted_RC = logits_RC.astype(np.float64) - logits_RC.max(axis=1, keepdims=True)
    others_RC = np.exp(shifted_RC)
    others_RC[np.arange(len(logits_RC)), logits_RC.argmax(axis=1)] = 0
    result: npt.NDArray[np.float64] = shifted_RC - np.log1p(others_RC.sum(axis=1, keepdims=True))
    return result


def importance_of(before_C: npt.NDArray[np.float64], log_RC: npt.NDArray[np.float64], target: int) -> Importance:
    """Of log probabilities before, and (1 + repeats, C) with the object and with random areas blurred.

    The control's bounds are repeats themselves, no more than 2.5 % of them beyond either: of fewer than 41 the least
    and the greatest.
    """
    ratio_R = np.maximum(-log_RC[:, target], _LEAST_LOSS) / max(-before_C[target], _LEAST_LOSS)
    low = np.percentile(ratio_R[1:], 2.5, method="lower")
    high = np.percentile(ratio_R[1:], 97.5, method="higher")
    change_RC = np.exp(log_RC) - np.exp(before_C)
    return Importance(
        ratio=float(ratio_R[0]),
        control=Interval(mean=float(ratio_R[1:].mean()), low=float(low), high=float(high)),
        exceeds=bool(ratio_R[0] > high),
        changes=tuple(
            ClassChange(index=index, change=float(change_RC[0, index]), control=float(change_RC[1:, index].mean()))
            for index in range(len(before_C))
        ),
    )


def explanation_findings(explaining: Explaining, classes: SlideClassification, site: Code | None) -> Iterator[Finding]:
    """What the reader must know of the objects and of what they are said to matter to. `site`: the slide's, where
    known."""
    bag, explanation, series = explaining.bag, classes.explanation, classes.series
    assert explanation is not None
    card = bag.task.models[2].card

    def finding(kind: FindingKind, key: str, text: str) -> Finding:
        return Finding(kind=kind, code=finding_code(key), text=text, series=series)

    if classes.answer is None:
        yield finding(
            FindingKind.CONFIDENCE,
            "not-the-answer",
            "The slide has no answer; the importance of objects is that to its most probable class, "
            f"“{classes.classes[explanation.target].code.display}”.",
        )
    if missing := explaining.frames_missing:
        yield finding(
            FindingKind.QUALITY,
            "frames-missing",
            f"{missing} image frames are missing where objects were looked for; they were read as background.",
        )
    for each in explaining.too_coarse:
        yield finding(
            FindingKind.QUALITY,
            "cannot-answer",
            f"“{each.triple.text}” cannot be found at this resolution: the slide's finest image has "
            f"{bag.task.slide.levels[0].mpp:.3g} µm per pixel, and it is looked for at "
            f"{card.mpp_by_level[each.triple.level]:.3g}. Its importance is not known.",
        )
    yield from repeated_findings(asked(bag.task.order.prompts, card), series, answered="they are answered once")
    yield from prompt_findings((*explaining.prompts, *explaining.too_coarse), card, site, series)
    for found in explanation.objects:
        if found.importance is None:
            yield finding(
                FindingKind.CONFIDENCE,
                "object-absent",
                f"“{found.triple}” was not found on the {explanation.tiles} tiles that weigh most (its probability to "
                f"be there reaches {found.presence:.2f}). Its importance is not known.",
            )
