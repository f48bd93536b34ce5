"""The split over all sets of segmentation: each set's own (training.data.split), and no picture on two sides of it.

Where pictures of two sets are alike, their whole groups go to the part among theirs that is farthest from training.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np

from training.data.common import data_root
from training.data.dataset import Dataset, load
from training.data.hashes import SAME_IMAGE_BITS, joined, near_pairs
from training.data.split import held_out
from training.pathsegmentor.sets import EXTERNAL, SETS

PARTS = ("train", "val", "test", "external")
"""From nearest to training to farthest."""

_OF_SPLIT = {"train": 0, "validation": 1, "test": 2}


@cache
def dataset_of(root: Path, name: str) -> Dataset:
    """A set, its tables read once. `root` is the data folder, so that another folder's set is not taken for it."""
    return load(name)


@cache
def parts(root: Path) -> Mapping[str, np.ndarray]:
    """(N,) str by set: the part of each of its items. Raises DataMissing."""
    numbers, hashes, groups, of_set = [], [], [], []
    for name in (*SETS, *EXTERNAL):
        dataset = dataset_of(root, name)
        split = held_out(dataset, allow_missing=True)
        numbers += [PARTS.index("external") if name in EXTERNAL else _OF_SPLIT[part] for part in split.parts_N.tolist()]
        groups += [f"{name}/{group}" for group in split.groups_N]
        of_set += [name] * len(dataset)
        hashes.append(dataset.hashes())
    whole = farthest(np.array(numbers), np.array(groups), np.concatenate(hashes))
    set_N = np.array(of_set)
    return {name: np.array(PARTS)[whole[set_N == name]] for name in (*SETS, *EXTERNAL)}


def farthest(numbers_N: np.ndarray, groups_N: np.ndarray, hashes_N: np.ndarray) -> np.ndarray:
    """(N,) int64: each item's place in PARTS, once groups that share a picture have gone to the farthest of theirs."""
    names, group_N = np.unique(groups_N, return_inverse=True)
    together_N = joined(len(names), group_N[near_pairs(hashes_N, hashes_N, SAME_IMAGE_BITS)])[group_N]
    found = np.zeros(together_N.max() + 1, np.int64)
    np.maximum.at(found, together_N, numbers_N)
    return found[together_N]


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two sets: pairs of their pictures that are one as far as hashes tell, and groups (patients) that are in both."""

    first: str
    second: str
    pictures: int
    groups: int


def overlaps() -> tuple[Overlap, ...]:
    """Every two sets of segmentation. Raises DataMissing."""
    sets = {name: dataset_of(data_root(), name) for name in (*SETS, *EXTERNAL)}
    hashes = {name: np.unique(dataset.hashes()) for name, dataset in sets.items()}
    groups = {name: set(dataset.groups_N.tolist()) for name, dataset in sets.items()}
    return tuple(
        Overlap(
            first,
            second,
            len(near_pairs(hashes[first], hashes[second], SAME_IMAGE_BITS)),
            len(groups[first] & groups[second]),
        )
        for first, second in combinations(hashes, 2)
    )
