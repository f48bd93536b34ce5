"""The crops and masks of a step: many views of each tile, as DINOv2 makes them (arXiv 2304.07193, appendix B.1).

Everything that a step sees is a function of the recipe's seed and of the iteration alone, whatever the number of
processes: no random state need be saved, and a resumed run goes on with the very crops that it would have seen.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from training.errors import TrainingError
from training.ssl.masks import sample
from training.ssl.recipe import Augment, SelfDistillationRecipe

_ORDER, _CROPS, _MASKS, _AGAIN = range(4)
"""What a random stream is for."""
_LOG_ASPECT = math.log(4 / 3)
_SOLARISE = np.array([value if value < 128 else 255 - value for value in range(256)], np.uint8)


class Corpus(Protocol):
    """Tiles without labels."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> np.ndarray:
        """(H,W,3) uint8 RGB. Raises TrainingError where the tile cannot be read."""
        ...

    def name(self, index: int) -> str:
        """What a log calls the tile."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """What one process sees in one step of B images.

    globals_GHWC uint8 (all first crops, then all second ones); locals_LHWC uint8 (all first, all second, …); mask_GN
    bool, or None where nothing is masked; index_B: the tiles' places in the corpus; `skipped`: unreadable tiles.
    """

    globals_GHWC: Tensor
    locals_LHWC: Tensor
    mask_GN: Tensor | None
    index_B: Tensor
    skipped: tuple[str, ...] = ()

    def to(self, device: torch.device) -> "Views":
        """The same on another device."""
        return replace(
            self,
            globals_GHWC=self.globals_GHWC.to(device, non_blocking=True),
            locals_LHWC=self.locals_LHWC.to(device, non_blocking=True),
            mask_GN=None if self.mask_GN is None else self.mask_GN.to(device, non_blocking=True),
        )


class Steps(Dataset[Views]):
    """The views of a run by iteration, for one process of several.

    `grid`: rows of patch tokens of a global crop. Raises ValueError where the processes cannot share the batch evenly.
    """

    def __init__(
        self, corpus: Corpus, recipe: SelfDistillationRecipe, grid: int, *, rank: int = 0, processes: int = 1
    ) -> None:
        self._corpus, self._recipe, self._grid = corpus, recipe, grid
        if recipe.data.batch % processes:
            raise ValueError(f"a batch of {recipe.data.batch} cannot be shared by {processes} processes")
        share = recipe.data.batch // processes
        self._mine = range(rank * share, (rank + 1) * share)
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __getitem__(self, iteration: int) -> Views:
        recipe, crops = self._recipe, self._recipe.crops
        count = len(self._mine)
        globals_2BHWC = np.empty((2, count, crops.global_px, crops.global_px, 3), np.uint8)
        locals_JBHWC = np.empty((crops.local_count, count, crops.local_px, crops.local_px, 3), np.uint8)
        indices, skipped = [], []
        for place, row in enumerate(self._mine):
            position = iteration * recipe.data.batch + row
            index, tile = self._read(position, skipped)
            indices.append(index)
            rng = self._rng(_CROPS, position)
            for number in range(2):
                view = random_crop(tile, crops.global_px, crops.global_scale, rng)
                globals_2BHWC[number, place] = augmented(view, recipe.augment, number, rng)
            for number in range(crops.local_count):
                view = random_crop(tile, crops.local_px, crops.local_scale, rng)
                locals_JBHWC[number, place] = augmented(view, recipe.augment, 2, rng)
        return Views(
            globals_GHWC=torch.from_numpy(globals_2BHWC).flatten(0, 1),
            locals_LHWC=torch.from_numpy(locals_JBHWC).flatten(0, 1),
            mask_GN=self._masks(iteration),
            index_B=torch.tensor(indices),
            skipped=tuple(skipped),
        )

    def _rng(self, stream: int, *numbers: int) -> np.random.Generator:
        return np.random.default_rng((self._recipe.seed, stream, *numbers))

    def _masks(self, iteration: int) -> Tensor | None:
        """The masks of this process's crops, out of those of the whole step."""
        ibot = self._recipe.ibot
        if ibot is None:
            return None
        mask_GN = sample(self._rng(_MASKS, iteration), 2 * self._recipe.data.batch, self._grid, ibot)
        mask_2BN = mask_GN.reshape(2, self._recipe.data.batch, -1)[:, self._mine.start : self._mine.stop]
        return torch.from_numpy(mask_2BN.reshape(2 * len(self._mine), -1))

    def _read(self, position: int, skipped: list[str]) -> tuple[int, np.ndarray]:
        """The tile of a place in the endless, shuffled sequence; another one where it is unreadable."""
        epoch, place = divmod(position, len(self._corpus))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._rng(_ORDER, epoch).permutation(len(self._corpus))
        index = int(self._order[place])
        again = None
        while True:
            try:
                return index, self._corpus.read(index)
            except TrainingError:
                skipped.append(self._corpus.name(index))
                if len(skipped) > len(self._mine):
                    raise
            again = again or self._rng(_AGAIN, position)
            index = 0 if self._recipe.data.on_error == "substitute" else int(again.integers(len(self._corpus)))


def batches(steps: Steps, first: int, last: int, workers: int) -> Iterator[Views]:
    """The views of iterations `first` to `last` - 1, made ahead by `workers` processes where there are any."""
    cv2.setNumThreads(1)
    return iter(
        DataLoader(steps, batch_size=None, sampler=range(first, last), num_workers=workers, collate_fn=_as_it_is)
    )


def _as_it_is(views: Views) -> Views:
    return views


def random_crop(tile_HWC: np.ndarray, side_px: int, scale: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """(side,side,3): a random part of the tile of an aspect from 3/4 to 4/3, resized by antialiased bicubic."""
    height, width = tile_HWC.shape[:2]
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(-_LOG_ASPECT, _LOG_ASPECT))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            break
    else:
        w = h = min(height, width)
    top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    part_HWC = np.ascontiguousarray(tile_HWC[top : top + h, left : left + w])
    # The same values as Pillow's filter, but for rounding, in a third of its time. Of a part that lies in one piece it
    # takes and gives the channels last; of another it would make planes, and they would have to be put together again.
    part_1CHW = torch.from_numpy(part_HWC).permute(2, 0, 1)[None]
    side_1CHW = functional.interpolate(part_1CHW, (side_px, side_px), mode="bicubic", antialias=True)
    return np.ascontiguousarray(side_1CHW[0].permute(1, 2, 0).numpy())


def augmented(crop_HWC: np.ndarray, augment: Augment, place: int, rng: np.random.Generator) -> np.ndarray:
    """The crop flipped, jittered, greyed, blurred and solarised by chance; `place` is 0, 1 (global) or 2 (local)."""
    flip, jitter, grey, blur, solarise = rng.random(5)
    if flip < augment.flip_p:
        crop_HWC = cv2.flip(crop_HWC, 1)
    if jitter < augment.jitter_p:
        crop_HWC = colour_jittered(crop_HWC, augment.jitter, rng)
    if grey < augment.grey_p:
        crop_HWC = cv2.cvtColor(cv2.cvtColor(crop_HWC, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if blur < augment.blur_p[place]:
        sigma_px, side = rng.uniform(*augment.blur_sigma_px), augment.blur_kernel_px
        crop_HWC = cv2.GaussianBlur(crop_HWC, (side, side), sigma_px, borderType=cv2.BORDER_REFLECT_101)
    if solarise < augment.solarise_p[place]:
        crop_HWC = cv2.LUT(crop_HWC, _SOLARISE)
    return crop_HWC


def colour_jittered(
    image_HWC: np.ndarray, strength: tuple[float, float, float, float], rng: np.random.Generator
) -> np.ndarray:
    """Brightness, contrast, saturation and hue, each changed by chance and in random order."""
    brightness, contrast, saturation = (rng.uniform(max(0.0, 1 - width), 1 + width) for width in strength[:3])
    turn = rng.uniform(-strength[3], strength[3])
    for kind in rng.permutation(4):
        if kind == 0:
            image_HWC = _blended(image_HWC, 0.0, brightness)
        elif kind == 1:
            grey = cv2.mean(cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY))[0]
            image_HWC = _blended(image_HWC, grey, contrast)
        elif kind == 2:
            grey_HWC = cv2.cvtColor(cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
            image_HWC = cv2.addWeighted(image_HWC, saturation, grey_HWC, 1 - saturation, 0)
        elif strength[3]:  # by way of 8-bit hues nothing comes back quite as it was
            hsv_HWC = cv2.cvtColor(image_HWC, cv2.COLOR_RGB2HSV_FULL)
            hsv_HWC[..., 0] += np.uint8(round(turn * 255) % 256)
            image_HWC = cv2.cvtColor(hsv_HWC, cv2.COLOR_HSV2RGB_FULL)
    return image_HWC


def _blended(image_HWC: np.ndarray, value: float, factor: float) -> np.ndarray:
    """factor · image + (1 - factor) · value."""
    return cv2.addWeighted(image_HWC, factor, image_HWC, 0, value * (1 - factor))
