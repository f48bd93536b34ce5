"""Does importance find the object that a label hangs on? Slides are made, so that the answer is known:

    python -m training.pathsegmentor.explain --out docs/results/pathsegmentor/explain.json

A made slide is a bag of small pictures with disks of five colours, the objects; each disk is plain or striped. The
label says only whether the causal object is mostly striped; the others are striped by chance, and a tenth of the labels
is wrong. Features are a fixed random convolution's. Nothing here says anything of real slides.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training import command
from training.files import json_bytes, write_atomic
from training.nn.mil import ABMIL
from training.pathbench.statistics import Units, kendall_tau
from training.pathsegmentor.object_mil import ObjectMIL, blurred, elsewhere, importance, object_features
from training.pathsegmentor.pairs import auroc
from training.repeatable import repeatable

OBJECTS = ("red", "green", "blue", "yellow", "violet")
_COLOURS_O3 = np.array([(200, 70, 70), (70, 180, 90), (70, 90, 200), (200, 190, 60), (160, 70, 190)], np.float32)
PLAIN, OBJECT_AWARE, CONTROL = "attention pooling", "object-aware", "object-aware, masks of another slide"
_SIDE_PX, _CELL_PX, _WIDTH = 32, 4, 24
_WRONG_LABELS, _STRIPED = 0.1, (0.15, 0.85)


@dataclass(frozen=True, slots=True)
class Setting:
    """How much is made and learned."""

    seeds: int = 5
    train: int = 200
    test: int = 100
    patches: int = 10
    epochs: int = 60


@dataclass(frozen=True, slots=True, eq=False)
class Slide:
    """images (N,32,32,3) float32 in 0..255, masks (N,O,32,32) bool, label 0 or 1."""

    images_NHW3: np.ndarray
    masks_NOHW: np.ndarray
    label: int


def make(setting: Setting, count: int, causal: int, rng: np.random.Generator) -> list[Slide]:
    """Slides whose label hangs on object number `causal` alone."""
    return [_slide(setting.patches, causal, rng) for _ in range(count)]


def _slide(patches: int, causal: int, rng: np.random.Generator) -> Slide:
    label = int(rng.integers(2))
    striped_O = rng.choice(_STRIPED, len(OBJECTS))
    striped_O[causal] = _STRIPED[label]
    images = rng.normal(225, 6, (patches, _SIDE_PX, _SIDE_PX, 3)).astype(np.float32)
    masks = np.zeros((patches, len(OBJECTS), _SIDE_PX, _SIDE_PX), bool)
    rows, columns = np.mgrid[:_SIDE_PX, :_SIDE_PX]
    for image, mask in zip(images, masks, strict=True):
        for number in rng.permutation(len(OBJECTS))[:3]:
            row, column = rng.integers(8, _SIDE_PX - 8, 2)
            disk = ((rows - row) ** 2 + (columns - column) ** 2 <= 60) & ~mask.any(0)
            mask[number] = disk
            stripes = 45 * np.sign(np.sin(np.pi * (rows + 0.5) / 2)) if rng.random() < striped_O[number] else 0 * rows
            image[disk] = (_COLOURS_O3[number] + stripes[..., None])[disk] + rng.normal(0, 6, (int(disk.sum()), 3))
    return Slide(images, masks, label ^ int(rng.random() < _WRONG_LABELS))


class _Patches(nn.Module):
    """A fixed random convolution: (N,32,32,3) to a map (N,24,8,8)."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        stream = torch.Generator().manual_seed(seed)
        kernel = torch.randn(_WIDTH, 3, 5, 5, generator=stream)
        self.register_buffer(
            "kernel", kernel - kernel.mean((2, 3), keepdim=True) * (torch.arange(_WIDTH) % 2)[:, None, None, None]
        )

    @torch.no_grad()
    def forward(self, images_NHW3: np.ndarray) -> Tensor:
        x = torch.from_numpy(np.ascontiguousarray(images_NHW3)).permute(0, 3, 1, 2) / 255 - 0.5
        return F.avg_pool2d(F.relu(F.conv2d(x, self.kernel, padding=2)), _CELL_PX)


def _cells(masks_NOHW: np.ndarray) -> Tensor:
    """Masks at the features' resolution: a cell belongs to the object that covers half of it."""
    return (F.avg_pool2d(torch.from_numpy(masks_NOHW).float(), _CELL_PX) >= 0.5).float()


def _fit(model: nn.Module, bags: Sequence[Tensor], labels: Tensor, epochs: int, seed: int) -> nn.Module:
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=1e-4)
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        for batch in np.array_split(rng.permutation(len(labels)), max(len(labels) // 16, 1)):
            loss = F.cross_entropy(model(*(part[batch] for part in bags)), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model.eval()


def one_seed(setting: Setting, seed: int) -> dict[str, Any]:
    """Importance of every object to attention pooling of whole patches; and what object-aware pooling gains over it,
    with the slides' own masks and with those of another slide."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    causal = seed % len(OBJECTS)
    train, test = make(setting, setting.train, causal, rng), make(setting, setting.test, causal, rng)
    patches = _Patches(seed)
    maps, asked_maps = (torch.stack([patches(slide.images_NHW3) for slide in slides]) for slides in (train, test))
    scale = maps.std((0, 1, 3, 4)).clamp(min=1e-6)
    labels, truth = (torch.tensor([slide.label for slide in slides]) for slides in (train, test))

    pooled = _fit(ABMIL(_WIDTH, 2, 32, 32, dropout=0.0), [maps.mean((3, 4)) / scale], labels, setting.epochs, seed)

    @torch.inference_mode()
    def said(maps_SNDHW: Tensor) -> Tensor:
        return pooled(maps_SNDHW.mean((3, 4)) / scale)

    def loss(maps_SNDHW: Tensor) -> np.ndarray:
        return F.cross_entropy(said(maps_SNDHW), truth, reduction="none").numpy()

    def blurred_loss(masks_SNHW: Sequence[np.ndarray]) -> np.ndarray:
        images = (_blur(slide.images_NHW3, masks) for slide, masks in zip(test, masks_SNHW, strict=True))
        return loss(torch.stack([patches(image) for image in images]))

    loss_S, objects = loss(asked_maps), {}
    for number, name in enumerate(OBJECTS):
        own = [slide.masks_NOHW[:, number] for slide in test]
        moved = [np.stack([elsewhere(mask, rng) for mask in masks]) for masks in own]
        objects[name] = asdict(importance(loss_S, blurred_loss(own), blurred_loss(moved)))

    def object_auroc(order_train: np.ndarray, order_test: np.ndarray) -> float:
        torch.manual_seed(seed)
        model = _fit(
            ObjectMIL(_WIDTH, 2, len(OBJECTS)),
            _by_object(maps, train, order_train, scale),
            labels,
            setting.epochs,
            seed,
        )
        with torch.inference_mode():
            return _auroc(model(*_by_object(asked_maps, test, order_test, scale)), truth)

    as_made = np.arange(len(train)), np.arange(len(test))
    exchanged = rng.permutation(len(train)), rng.permutation(len(test))
    order = sorted(OBJECTS, key=lambda name: -objects[name]["imp"][0])
    return {
        "seed": seed,
        "causal": OBJECTS[causal],
        "causal_rank": order.index(OBJECTS[causal]) + 1,
        "objects": objects,
        "auroc": {
            PLAIN: _auroc(said(asked_maps), truth),
            OBJECT_AWARE: object_auroc(*as_made),
            CONTROL: object_auroc(*exchanged),
        },
    }


def _by_object(maps: Tensor, slides: Sequence[Slide], order: np.ndarray, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Every object's mean feature in every patch, under the masks of slide order[s]."""
    found = [
        object_features(maps[place] / scale[:, None, None], _cells(slides[other].masks_NOHW))
        for place, other in enumerate(order)
    ]
    return torch.stack([rows for rows, _ in found]), torch.stack([held for _, held in found])


def _blur(images_NHW3: np.ndarray, masks_NHW: np.ndarray) -> np.ndarray:
    return np.stack([blurred(image, mask, 3.0) for image, mask in zip(images_NHW3, masks_NHW, strict=True)])


def _auroc(logits: Tensor, truth: Tensor) -> float:
    return round(auroc((logits[:, 1] - logits[:, 0]).numpy(), truth.numpy() == 1), 4)


def experiment(setting: Setting) -> dict[str, Any]:
    """All seeds; how often the causal object ranks first; and Kendall's τ between seeds with one causal object."""
    runs = [one_seed(setting, seed) for seed in range(setting.seeds)]
    return {
        "setting": asdict(setting),
        "seeds": runs,
        "causal_first": sum(run["causal_rank"] == 1 for run in runs),
        "rank_agreement": _agreement(setting),
    }


def _agreement(setting: Setting) -> float:
    """Mean τ of importance over three trainings with the same causal object."""
    runs = [one_seed(setting, seed) for seed in (100, 105, 110)]
    ranks = [Units(OBJECTS, np.array([run["objects"][name]["imp"][0] for name in OBJECTS])) for run in runs]
    pairs = [(first, second) for place, first in enumerate(ranks) for second in ranks[place + 1 :]]
    return round(float(np.mean([kendall_tau(first, second) for first, second in pairs])), 4)


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 1 with one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m training.pathsegmentor.explain", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args(arguments)

    def work() -> None:
        repeatable()
        write_atomic(chosen.out, json_bytes(experiment(Setting())))

    return command.status(work, "The experiment")


if __name__ == "__main__":
    sys.exit(main())
