"""A built encoder: tiles in, vectors out, and everything that has to be said of them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from training.pathbench.encoders.cards import Profile, Toolkit
from training.pathbench.encoders.errors import EncoderInvalid
from training.pathbench.encoders.transforms import Transform


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderMeta:
    """What feature files, cells and cards record. Features whose records differ are never mixed.

    `checksum`: sha256 of the weights. `licences`: its own and those of all that it inherits from. `pretraining`: what
    it was trained on. `random`: its weights were drawn, not learned. `run`: the recipe of an encoder of ours.
    `field_um`: side of the tissue that a tile shows in this profile; `tile_px`: the network's input side; `mpp`: their
    ratio. `dense`: whether it gives a map as well.
    """

    id: str
    title: str
    dim: int
    checksum: str
    licence: str
    licences: tuple[str, ...]
    gated: bool
    commercial_ok: bool
    derivatives_ok: bool
    inherits_from: tuple[str, ...]
    pretraining: tuple[str, ...]
    random: bool
    run: str | None
    profile: Profile
    toolkit: Toolkit
    transform: str
    embedding: str
    dtype: str
    tile_px: int
    field_um: float
    dense: bool

    @property
    def mpp(self) -> float:
        return self.field_um / self.tile_px


@dataclass(frozen=True, slots=True)
class Batch:
    """Prepared pixels, and the transform that prepared them."""

    pixels: Tensor
    transform: str


@dataclass(frozen=True, slots=True)
class Encoder:
    """`network` takes pixels as `transform` gives them; `module` takes only batches of this encoder's own transform."""

    meta: EncoderMeta
    transform: Transform
    network: nn.Module

    def batch(self, images: Iterable[np.ndarray]) -> Batch:
        """Images (H,W,3) uint8 RGB of any sizes, prepared."""
        return Batch(torch.stack([self.transform(image) for image in images]), self.meta.transform)

    def module(self, batch: Batch) -> Tensor:
        """(B,D) float32. Raises EncoderInvalid for a batch that another transform has prepared."""
        self._demand_own(batch)
        with torch.inference_mode():
            return self.network(batch.pixels).float()

    def embed(self, images: Iterable[np.ndarray], batch: int = 16) -> np.ndarray:
        """(N,D) float32, in the images' order."""
        parts = [self.module(self.batch(chunk)).numpy() for chunk in _chunks(images, batch)]
        return np.concatenate(parts) if parts else np.zeros((0, self.meta.dim), np.float32)

    def dense(self, images: Iterable[np.ndarray], batch: int = 16) -> np.ndarray:
        """(N,h,w,C) float32: patch tokens, or the last map. Raises EncoderInvalid for an encoder without one."""
        if not self.meta.dense:
            raise EncoderInvalid(f"{self.meta.id} gives one vector an image and no map.")
        with torch.inference_mode():
            return np.concatenate(
                [self.network.dense(self.batch(chunk).pixels).float().numpy() for chunk in _chunks(images, batch)]
            )

    def _demand_own(self, batch: Batch) -> None:
        if batch.transform != self.meta.transform:
            raise EncoderInvalid(
                f"The batch was prepared as “{batch.transform}”, {self.meta.id} takes “{self.meta.transform}”. "
                "Prepare it with this encoder's own transform."
            )


def _chunks(images: Iterable[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    images = iter(images)
    while chunk := list(islice(images, size)):
        yield chunk
