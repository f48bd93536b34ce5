"""Labelled tiles for the experts that learn from labels, and tiles that nothing has learned from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from training.data.common import Source
from training.data.corpus import HE_SETS, TILE_PX, he_corpus
from training.data.dataset import load
from training.data.seen import Seen
from training.data.split import held_out
from training.errors import DataMissing


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """Tiles of several sets, each with the phrase that says what it shows ("breast, fibroadenoma").

    images_NHWC uint8; labels_N int64: an index into `phrases`; sets_C int64: the set of each phrase, an index into
    `sets`.
    """

    sets: tuple[str, ...]
    phrases: tuple[str, ...]
    sets_C: np.ndarray
    images_NHWC: np.ndarray
    labels_N: np.ndarray
    sources: tuple[Source, ...]
    seen: Seen

    def draw(self, rng: np.random.Generator, count: int) -> tuple[list[np.ndarray], np.ndarray]:
        """`count` tiles and their labels: a phrase is drawn with the root of its size, a tile within it evenly, so that
        the rarest are not worn out and the commonest do not drown the others."""
        sizes_C = np.bincount(self.labels_N, minlength=len(self.phrases)).astype(np.float64)
        shares_C = np.sqrt(sizes_C) / np.sqrt(sizes_C).sum()
        labels_B = rng.choice(len(sizes_C), count, p=shares_C)
        tiles_B = [int(rng.choice(np.flatnonzero(self.labels_N == label))) for label in labels_B]
        return [np.array(self.images_NHWC[tile]) for tile in tiles_B], labels_B


def labelled(sets: Sequence[str]) -> Labelled:
    """The corpus's labelled tiles of some sets: their train parts. Raises DataMissing."""
    corpus = he_corpus(sets)
    chosen = [index for index, label in enumerate(corpus.labels) if label]
    if not chosen:
        raise DataMissing(f"No tile of the sets {', '.join(sets)} has a label. Name sets that have.")
    kinds_N = [(sets.index(corpus.sets_N[index]), str(corpus.labels[index])) for index in chosen]
    kinds = sorted(set(kinds_N))
    places = {kind: place for place, kind in enumerate(kinds)}
    return Labelled(
        sets=tuple(sets),
        phrases=tuple(phrase for _, phrase in kinds),
        sets_C=np.array([number for number, _ in kinds]),
        images_NHWC=corpus.images_NHWC[chosen],
        labels_N=np.array([places[kind] for kind in kinds_N]),
        sources=corpus.sources,
        seen=corpus.seen,
    )


def validation(name: str, phrases: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Middle tiles (K,224,224,3) uint8 of a set's validation part whose kind is among `phrases`, and which (K,)."""
    dataset = load(name)
    tiles, labels = [], []
    for index in held_out(dataset, allow_missing=True).indices("validation").tolist():
        stratum = int(dataset.strata_N[index])
        phrase = f"{dataset.organ}, {dataset.strata[stratum]}" if stratum >= 0 else ""
        if phrase in phrases:
            tiles.append(middle(dataset.read(index)))
            labels.append(phrases.index(phrase))
    return np.array(tiles, np.uint8), np.array(labels, np.int64)


def unseen(limit: int, names: Sequence[str] = ()) -> tuple[np.ndarray, np.ndarray]:
    """About `limit` middle tiles (K,224,224,3) uint8 of the validation parts of the corpus's sets among `names` (none:
    of all), the sets having equal shares as far as they go; and the group of each (K,). No run learns from these parts.
    Images of both stains of dsb2018 are among them. Raises DataMissing."""
    sets = [load(name) for name in HE_SETS if not names or name in names]
    tiles, groups = [], []
    for dataset in sets:
        chosen = held_out(dataset, allow_missing=True).indices("validation")
        step = max(len(chosen) * len(sets) // limit, 1)
        tiles += [middle(dataset.read(int(index))) for index in chosen[::step]]
        groups += [f"{dataset.name} {dataset.groups_N[index]}" for index in chosen[::step]]
    if not tiles:
        raise DataMissing("The recipe's sets have no validation part to measure on. Name a set that has one.")
    return np.array(tiles, np.uint8), np.array(groups)


def middle(image_HWC: np.ndarray) -> np.ndarray:
    """The middle (224,224,3) of an image."""
    top, left = (image_HWC.shape[0] - TILE_PX) // 2, (image_HWC.shape[1] - TILE_PX) // 2
    return image_HWC[top : top + TILE_PX, left : left + TILE_PX]


def resized(tiles_NHWC: np.ndarray, side_px: int) -> np.ndarray:
    """(N,side,side,3) uint8: whole tiles at a crop's size, by the crops' own antialiased bicubic."""
    size, kind = (side_px, side_px), Image.Resampling.BICUBIC
    return np.array([np.asarray(Image.fromarray(tile).resize(size, kind)) for tile in tiles_NHWC], np.uint8)
