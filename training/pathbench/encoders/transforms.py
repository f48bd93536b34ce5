"""From a tile of any size to what a network takes, exactly as the toolkits do it: Pillow's filters, which average over
the source area when they shrink, then the network's own mean and deviation."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from training.pathbench.encoders.errors import EncoderInvalid

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True, slots=True, kw_only=True)
class Transform:
    """How one toolkit prepares a tile.

    `fit`: "squash" resizes to side × side whatever the tile's shape; "crop" brings the shorter side to `resize_px`,
    keeps the shape and cuts the centre. Without `mean` the pixels stay uint8, for a network that scales them itself.
    """

    side_px: int
    fit: Literal["squash", "crop"]
    interpolation: Literal["bilinear", "bicubic"]
    resize_px: int
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def __call__(self, image_HWC: np.ndarray) -> Tensor:
        """(H,W,3) uint8 RGB to (3,side,side) float32, or to (side,side,3) uint8 where the network scales itself.

        Raises EncoderInvalid for anything else than such an image.
        """
        if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[2] != 3 or 0 in image_HWC.shape:
            raise EncoderInvalid(
                f"An encoder takes tiles (height, width, 3) of uint8 RGB, not {image_HWC.dtype} {image_HWC.shape}."
            )
        pixels_HWC = self._resized(image_HWC)
        if self.mean is None or self.std is None:
            return torch.from_numpy(pixels_HWC)
        scaled_HWC = (pixels_HWC.astype(np.float32) / 255 - np.float32(self.mean)) / np.float32(self.std)
        return torch.from_numpy(np.ascontiguousarray(scaled_HWC.transpose(2, 0, 1)))

    def _resized(self, image_HWC: np.ndarray) -> np.ndarray:
        height, width = image_HWC.shape[:2]
        if self.fit == "squash":
            target = (self.side_px, self.side_px)
        else:
            short = min(height, width)
            target = (width * self.resize_px // short, height * self.resize_px // short)
        image = Image.fromarray(image_HWC)
        if target != (width, height):
            image = image.resize(target, _FILTERS[self.interpolation])
        # Half-pixel margins go as torchvision rounds them: to the even side.
        left, top = round((target[0] - self.side_px) / 2), round((target[1] - self.side_px) / 2)
        return np.array(image)[top : top + self.side_px, left : left + self.side_px]

    def __str__(self) -> str:
        """What feature files and cells record; equal strings give equal pixels."""
        scale = "uint8" if self.mean is None else f"mean {_text(self.mean)} std {_text(self.std)}"
        return f"{self.size}; Pillow {self.interpolation}; {scale}"

    @property
    def size(self) -> str:
        """How a tile comes to the network's side, in words."""
        if self.fit == "squash":
            return f"squash to {self.side_px}"
        return f"shorter side to {self.resize_px}, centre {self.side_px}"


def _text(values: tuple[float, float, float] | None) -> str:
    return " ".join(f"{value:g}" for value in values or ())
