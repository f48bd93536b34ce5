"""Bags of tiles: what a slide, a field or a patient is to a head; composed ones say of what they are made."""

from dataclasses import dataclass

import numpy as np

from training.data.dataset import Dataset
from training.errors import TaskInvalid
from training.pathbench.tasks import Composition


@dataclass(frozen=True, slots=True, eq=False)
class Bag:
    """`rows_N` point into the features of the items it was made from, in their order."""

    name: str
    label: int
    group: str
    rows_N: np.ndarray

    def __post_init__(self) -> None:
        if len(self.rows_N) == 0:
            raise TaskInvalid(f"The bag {self.name} holds no tile: none of its images can be read. Leave the case out.")


def whole(dataset: Dataset, indices_M: np.ndarray, groups_M: np.ndarray, what: str, kept_M: np.ndarray) -> list[Bag]:
    """All items of one "group" or one "image" as a bag each, in the items' order; rows count the kept items.

    A bag is of the highest class among its items: a field with one abnormal cell is abnormal, and a patient whose items
    have one class is of that class. Raises TaskInvalid for a bag of which nothing can be read.
    """
    files = [source.file for source in dataset.sources]
    names_M = np.array([files[k] for k in indices_M]) if what == "image" else groups_M
    rows_M = np.cumsum(kept_M) - 1
    bags = []
    for name in dict.fromkeys(names_M.tolist()):
        inside = np.flatnonzero(names_M == name)
        label = int(dataset.labels_N[indices_M[inside]].max())
        bags.append(Bag(str(name), label, str(groups_M[inside[0]]), rows_M[inside[kept_M[inside]]]))
    return bags


def compose(labels_M: np.ndarray, target: int, how: Composition, count: int, seed: int) -> list[Bag]:
    """`count` bags of tiles drawn from one part, half of them (label 1) with a share of `target`'s tiles.

    A bag holds a tile twice only where there are fewer tiles than it needs. Raises TaskInvalid where a part has no
    tile of the target class, or none of the others.
    """
    pools = np.flatnonzero(labels_M != target), np.flatnonzero(labels_M == target)
    if not all(len(pool) for pool in pools):
        raise TaskInvalid("A part of the split lacks the tiles that its bags are composed of. Split again.")
    rng = np.random.default_rng(seed)
    bags = []
    for place in range(count):
        label, size = place % 2, int(rng.integers(how.tiles[0], how.tiles[1] + 1))
        wanted = max(1, round(float(rng.choice(how.shares)) * size)) if label else 0
        rows = [
            rng.choice(pool, number, replace=number > len(pool))
            for pool, number in zip(pools, (size - wanted, wanted), strict=True)
        ]
        bags.append(Bag(f"composed {place}", label, f"composed {place}", rng.permutation(np.concatenate(rows))))
    return bags
