"""Slides composed of real tiles, for want of public slides with labels.

A composed slide is a bag of tiles of one part of a split. What it shows besides the target, and how much of it, is
drawn for each slide (classes by a flat Dirichlet distribution, of each class a random subset of its tiles), so that
slides differ although tiles are few; every tile stands in one of its views (orientations, in training mild stain jitter
too). There is no spatial pattern: tiles stand in random order.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from training.data.views import VIEWS
from training.errors import DataMissing
from training.mil.recipe import Slides

_TEST = 0.3


@dataclass(frozen=True, slots=True, eq=False)
class ComposedSlide:
    """Tiles (N,) of the library in some of their views (N,); `label` 1 where any `target_N` is true."""

    tiles_N: np.ndarray
    views_N: np.ndarray
    target_N: np.ndarray

    @property
    def label(self) -> int:
        return int(self.target_N.any())

    def features(self, features_NVD: np.ndarray) -> np.ndarray:
        """(N,D) float32."""
        rows: np.ndarray = features_NVD[self.tiles_N, self.views_N]
        return rows


def split_tiles(labels_N: np.ndarray, groups_N: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the tiles for training and for test: of each class about 70 % of the groups, and the others.

    A group is whole; its first tile says to which class it counts. Raises DataMissing for a class of one group.
    """
    test: list[np.ndarray] = []
    for members in _shuffled_groups(labels_N, groups_N, seed):
        count = max(1, round(_TEST * len(members)))
        if count == len(members):
            raise DataMissing("A class has one group of tiles only and cannot stand on both sides of a split.")
        test.append(members[:count])
    in_test_N = np.isin(groups_N, np.concatenate(test))
    return np.flatnonzero(~in_test_N), np.flatnonzero(in_test_N)


def folds_of(labels_N: np.ndarray, groups_N: np.ndarray, part_M: np.ndarray, count: int, seed: int) -> list[np.ndarray]:
    """Some of the tiles in `count` folds, groups whole and each class in every fold.

    Raises DataMissing for a class of fewer groups than folds.
    """
    held: list[list[np.ndarray]] = [[] for _ in range(count)]
    for members in _shuffled_groups(labels_N[part_M], groups_N[part_M], seed):
        if len(members) < count:
            raise DataMissing("A class has fewer groups of tiles than the recipe has inner folds.")
        for fold, groups in zip(held, np.array_split(members, count), strict=True):
            fold.append(groups)
    return [part_M[np.isin(groups_N[part_M], np.concatenate(fold))] for fold in held]


def _shuffled_groups(labels_N: np.ndarray, groups_N: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Class by class, its groups in random order."""
    rng = np.random.default_rng(seed)
    groups, firsts = np.unique(groups_N, return_index=True)
    for label in np.unique(labels_N):
        yield rng.permutation(groups[labels_N[firsts] == label])


def compose(
    labels_N: np.ndarray,
    part_N: np.ndarray,
    target: int,
    count: int,
    slides: Slides,
    rng: np.random.Generator,
    *,
    most_tiles: int,
    jitter: bool,
) -> Iterator[ComposedSlide]:
    """`count` slides of a part's tiles, with and without the target in turn."""
    for number in range(count):
        tiles = round(float(np.exp(rng.uniform(0, np.log(most_tiles)))))
        share = float(np.exp(rng.uniform(np.log(slides.least_share), 0)))
        targets = max(1, round(share * tiles)) if number % 2 else 0
        yield one_slide(labels_N, part_N, target, (targets, tiles - targets), rng, jitter=jitter)


def one_slide(
    labels_N: np.ndarray,
    part_N: np.ndarray,
    target: int,
    counts: tuple[int, int],
    rng: np.random.Generator,
    *,
    jitter: bool = False,
) -> ComposedSlide:
    """A slide of so many tiles with the target and so many without, in random order."""
    classes = [part_N[labels_N[part_N] == label] for label in np.unique(labels_N[part_N])]
    members = [_some(tiles, rng) for tiles in classes if labels_N[tiles[0]] != target]
    shares = rng.dirichlet(np.ones(len(members)))
    kinds = rng.choice(len(members), counts[1], p=shares)
    others = np.array([rng.choice(members[kind]) for kind in kinds], np.int64)
    targets = rng.choice(_some(part_N[labels_N[part_N] == target], rng), counts[0])
    tiles_N = rng.permutation(np.concatenate([targets, others]))
    views = VIEWS["orientations+jitter" if jitter else "orientations"]
    return ComposedSlide(tiles_N, rng.integers(0, views, len(tiles_N)), labels_N[tiles_N] == target)


def _some(tiles: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.choice(tiles, rng.integers(1, len(tiles) + 1), replace=False)
