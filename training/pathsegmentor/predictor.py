"""A network's answers on whole images, as they are served: in windows, blended, each prompt alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import cv2
import numpy as np
import torch
from scipy.special import expit
from torch.nn import functional as F

from gateway.domain.prompts import LEVEL_AT, OBJECT_AT, PATHOLOGY_AT, REGION_AT, Triple, token_ids
from training.pathsegmentor.model import PathSegmentor

WINDOW_PX = 256
STEP_PX = 192
"""A quarter of a window overlaps its neighbour."""
WORDS_AT = {"level": LEVEL_AT, "object": OBJECT_AT, "region": REGION_AT, "constant": PATHOLOGY_AT}
_PROMPTS_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt, and the words (of `WORDS_AT`) that are kept from the network."""

    triple: Triple
    without: tuple[str, ...] = ()


Said = tuple[np.ndarray, np.ndarray, np.ndarray | None]
"""Of a window: mask logits (P,H,W), presence logits (P,), and all queries' masks (P,Q,H,W) bool, or None."""


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """What one window said of P prompts: where it lies in the image, its weight there (h,w), logits of masks (P,h,w)
    and of presence (P,)."""

    place: tuple[slice, slice]
    weight_TT: np.ndarray
    logits_PTT: np.ndarray
    presence_P: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Predicted:
    """Of P prompts on one image: probabilities (P,H,W) float32 of the masks as they are drawn, whatever is said of
    presence; logits of presence (P,), an object being as present as where it is most; what each window said; and, where
    they were asked for and the image is one window, the masks of all queries (P,Q,H,W) bool: in several windows each
    may have another query."""

    probabilities_PHW: np.ndarray
    presence_P: np.ndarray
    windows: tuple[Window, ...]
    queries_PQHW: np.ndarray | None = None

    def served(self, speaks: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """(P,H,W) bool: the masks as they are served: a window does not speak for a prompt whose presence there is too
        small for `speaks` (logits (P,) to bool), and where none speaks nothing is drawn."""
        return _logits(self.windows, self.probabilities_PHW.shape[1:], speaks)[0] > 0


def _logits(
    windows: Sequence[Window], shape: tuple[int, ...], speaks: Callable[[np.ndarray], np.ndarray] | None
) -> tuple[np.ndarray, np.ndarray]:
    """The windows' weighted logits (P,H,W), of those that speak for a prompt, and the weights of all (H,W)."""
    sums_PHW = np.zeros((len(windows[0].presence_P), *shape), np.float32)
    weight_HW = np.zeros(shape, np.float32)
    for window in windows:
        spoken_P = np.ones(len(sums_PHW), bool) if speaks is None else speaks(window.presence_P)
        sums_PHW[spoken_P, *window.place] += window.logits_PTT[spoken_P] * window.weight_TT
        weight_HW[window.place] += window.weight_TT
    return sums_PHW, weight_HW


class Predictor(Protocol):
    """Answers prompts on an image (H,W,3) uint8 RGB of a set; `queries` asks for all queries' masks too."""

    def __call__(
        self, image_HW3: np.ndarray, asked: Sequence[Asked], dataset: str, *, queries: bool = False
    ) -> Predicted: ...


class TextPrompted:
    """One text-prompted network as a `Predictor`.

    Images larger than a window are read in windows of 256 px that overlap by a quarter; logits are blended with a
    raised cosine. Sides are mirrored up to the network's multiple.
    """

    def __init__(self, network: PathSegmentor, without: Sequence[str] = ()) -> None:
        """`without`: the words that the network has not learned from either."""
        self._network, self._without = network.eval(), tuple(without)

    def __call__(
        self, image_HW3: np.ndarray, asked: Sequence[Asked], dataset: str, *, queries: bool = False
    ) -> Predicted:
        text = self._text(asked)
        queries = queries and max(image_HW3.shape[:2]) <= WINDOW_PX
        return blended(image_HW3, lambda tile: self._window(tile, text, queries=queries))

    @torch.inference_mode()
    def _text(self, asked: Sequence[Asked]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ids_PL, mask_PL = token_ids([prompt.triple for prompt in asked])
        mask_PL = mask_PL.copy()
        for row, prompt in enumerate(asked):
            mask_PL[row, [WORDS_AT[word] for word in {*self._without, *prompt.without}]] = 0
        ids, mask = torch.from_numpy(ids_PL), torch.from_numpy(mask_PL)
        # One by one: the vector of a prompt must not hang on how many others are asked.
        parts = [self._network.text_encoder(ids[row : row + 1], mask[row : row + 1]) for row in range(len(asked))]
        return torch.cat([tokens for tokens, _ in parts]), torch.cat([whole for _, whole in parts]), mask

    @torch.inference_mode()
    def _window(
        self, tile_HW3: np.ndarray, text: tuple[torch.Tensor, torch.Tensor, torch.Tensor], *, queries: bool
    ) -> Said:
        height, width = tile_HW3.shape[:2]
        image = padded(tile_HW3, self._network.multiple)
        scales, features = self._network.image_encoder(image)
        masks, presences, every = [], [], []
        for start in range(0, len(text[0]), _PROMPTS_AT_ONCE):
            part = [values[start : start + _PROMPTS_AT_ONCE][None] for values in text]
            said = self._network.decode(scales, features, *part)
            masks.append(said.mask_logits_BPSS[0, :, :height, :width].numpy())
            presences.append(said.presence_logit_BP[0].numpy())
            if queries:
                logits = self._network.query_masks(said.layers[-1], features)
                whole = F.interpolate(logits, size=image.shape[2:], mode="bilinear", align_corners=False)
                every.append(whole[..., :height, :width].numpy() > 0)
        return np.concatenate(masks), np.concatenate(presences), np.concatenate(every) if queries else None


def blended(image_HW3: np.ndarray, answer: Callable[[np.ndarray], Said]) -> Predicted:
    """All windows of an image as one answer."""
    height, width = image_HW3.shape[:2]
    windows, queries_PQHW = [], None
    for top, left in product(starts(height), starts(width)):
        tile_HW3 = image_HW3[top : top + WINDOW_PX, left : left + WINDOW_PX]
        logits_PTT, presence_P, queries_PQHW = answer(tile_HW3)
        place = slice(top, top + tile_HW3.shape[0]), slice(left, left + tile_HW3.shape[1])
        weight_TT = np.outer(raised_cosine(tile_HW3.shape[0]), raised_cosine(tile_HW3.shape[1]))
        windows.append(Window(place, weight_TT, logits_PTT, presence_P))
    sums_PHW, weight_HW = _logits(windows, (height, width), None)
    presence_P = np.max([window.presence_P for window in windows], axis=0)
    return Predicted(
        expit(sums_PHW / weight_HW), presence_P, tuple(windows), queries_PQHW if len(windows) == 1 else None
    )


def padded(tile_HW3: np.ndarray, multiple: int) -> torch.Tensor:
    """(1,3,H,W) float 0-255, mirrored below and to the right up to multiples."""
    height, width = tile_HW3.shape[:2]
    whole = cv2.copyMakeBorder(tile_HW3, 0, -height % multiple, 0, -width % multiple, cv2.BORDER_REFLECT)
    return torch.from_numpy(whole).permute(2, 0, 1)[None].float()


def starts(length_px: int) -> list[int]:
    """Where windows begin along a side: every 192 px, the last one flush with the end."""
    last = max(length_px - WINDOW_PX, 0)
    return [*range(0, last, STEP_PX), last]


def raised_cosine(length_px: int) -> np.ndarray:
    """(length,) float32 in (0, 1]: 1 inside, falling over a quarter of a window towards both ends, never 0."""
    ramp_px = min(WINDOW_PX - STEP_PX, length_px // 2)
    if ramp_px == 0:
        return np.ones(length_px, np.float32)
    weight = np.ones(length_px, np.float32)
    rise = (1 - np.cos(np.pi * (np.arange(ramp_px) + 0.5) / ramp_px)) / 2
    weight[:ramp_px], weight[-ramp_px:] = rise, rise[::-1]
    return weight
