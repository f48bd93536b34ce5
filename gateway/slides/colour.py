"""Colours as the ICC profile of their optical path means them (PS3.3 C.11.15): to sRGB, by a table.

LittleCMS fills a table of all 2^24 colours once for each profile, so every pixel gets exactly what LittleCMS says of it
at several times its speed, and on all cores (Pillow holds Python's lock while it transforms).
"""

import io
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageCms
from pydicom.dataset import Dataset

Image = NDArray[np.uint8]
ToSrgb = Callable[[Image], Image]
"""(H, W, 3) uint8 RGB of the scanner to a new image in sRGB."""

_MAX_TABLES = 2
"""Profiles whose tables the process keeps: 64 MB each, and slides of one scanner share one."""
_WORTH_A_TABLE_PX = 1 << 23
_SAME = 1
"""A profile that moves no value of a grid of colours by more than this is sRGB in all but name: there is no work."""
_GRID = np.arange(0, 256, 15, dtype=np.int64).astype(np.uint8)


class UnusableProfile(Exception):
    """The profile is damaged, or not one of an RGB device. The message ends a sentence."""


def colours_of(header: Dataset, path: str | None) -> ToSrgb | None:
    """The transformation of an image's optical path (None = its only one), None where there is nothing to do.

    Raises UnusableProfile, also where there is none: then colours are taken as they are.
    """
    for item in header.get("OpticalPathSequence") or ():
        if path in (None, str(item.get("OpticalPathIdentifier") or "")) and item.get("ICCProfile"):
            return to_srgb(bytes(item.ICCProfile))
    if header.get("ICCProfile"):
        return to_srgb(bytes(header.ICCProfile))
    raise UnusableProfile("is missing")


@lru_cache(maxsize=_MAX_TABLES)
def to_srgb(profile: bytes) -> ToSrgb | None:
    """The transformation of a profile, None where there is nothing to do. Raises UnusableProfile.

    Perceptual intent: scanners that bring tables mean this one for viewing, and for the others it is the same as the
    relative colorimetric one.
    """
    transform = _transform(profile)
    grid = np.stack(np.meshgrid(_GRID, _GRID, _GRID, indexing="ij"), axis=-1).reshape(len(_GRID), -1, 3)
    moved = np.abs(_applied(transform, grid).astype(np.int16) - grid)
    if moved.max() <= _SAME:
        return None
    return _Table(transform)


def _transform(profile: bytes) -> ImageCms.ImageCmsTransform:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if space != "RGB":
            raise UnusableProfile(f"is of the colour space {space}, not RGB")
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), "RGB", "RGB", ImageCms.Intent.PERCEPTUAL)
    except (OSError, ImageCms.PyCMSError, ValueError, TypeError):
        raise UnusableProfile("is damaged") from None


def _applied(transform: ImageCms.ImageCmsTransform, image: Image) -> Image:
    return np.asarray(ImageCms.applyTransform(PillowImage.fromarray(image), transform))


@dataclass(slots=True, eq=False)
class _Table:
    """All colours of one profile: entry r + 256 g + 65536 b holds the sRGB bytes. Filled when it is worth it: a
    thumbnail or a small slide has fewer pixels than there are colours."""

    transform: ImageCms.ImageCmsTransform
    lock: threading.Lock = field(default_factory=threading.Lock)
    colours: NDArray[np.uint32] | None = None
    pixels: int = 0

    def __call__(self, image: Image) -> Image:
        if self.colours is None and self.pixels < _WORTH_A_TABLE_PX:
            self.pixels += image.shape[0] * image.shape[1]
            return _applied(self.transform, image)
        colours = self.colours if self.colours is not None else self._filled()
        keys = np.asarray(cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2RGBA), np.uint8)
        keys[..., 3] = 0
        found = colours.take(keys.view(np.uint32)[..., 0]).view(np.uint8).reshape(*image.shape[:2], 4)
        return np.asarray(cv2.cvtColor(found, cv2.COLOR_RGBA2RGB), np.uint8)

    def _filled(self) -> NDArray[np.uint32]:
        with self.lock:
            if self.colours is None:
                colours = np.empty((256, 256, 256, 4), np.uint8)
                colours[..., 3] = 0
                band = np.empty((256, 256, 3), np.uint8)
                band[..., 0], band[..., 1] = np.arange(256)[None, :], np.arange(256)[:, None]
                for blue in range(256):
                    band[..., 2] = blue
                    colours[blue, ..., :3] = _applied(self.transform, band)
                self.colours = colours.view(np.uint32).reshape(-1)
            return self.colours
