"""What a task is made of: the items of its set by part, and the cohorts that it is measured on."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import cv2
import numpy as np

from training.data.dataset import Dataset, load
from training.data.hashes import JOIN_BITS, near_pairs
from training.data.split import Split, digest, held_out, joined_groups
from training.errors import DataMissing, TaskInvalid
from training.files import sha256_bytes
from training.pathbench.cache import Items
from training.pathbench.leakage import require_disjoint
from training.pathbench.tasks import TaskCard

_log = logging.getLogger(__name__)
T = TypeVar("T")
INTERNAL = "internal"
_SEED = 2026


@dataclass(frozen=True, slots=True, eq=False)
class Cohort:
    """Items on which a task is measured, after all choices, and the split that holds them out; `notes` say what was
    left out."""

    name: str
    dataset: Dataset
    split: Split
    indices_M: np.ndarray
    notes: tuple[str, ...] = ()

    @property
    def groups(self) -> np.ndarray:
        """(M,) str: what resamples keep together."""
        return self.split.groups_N[self.indices_M]


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """A set with its split; `train_M` and `validation_M` are indices of items that have a class."""

    dataset: Dataset
    split: Split
    train_M: np.ndarray
    validation_M: np.ndarray
    cohorts: tuple[Cohort, ...]

    @property
    def sha256(self) -> str:
        """Digest of every item's content, class, group and part."""
        parts = [("train", self.dataset, self.train_M), ("validation", self.dataset, self.validation_M)]
        parts += [(cohort.name, cohort.dataset, cohort.indices_M) for cohort in self.cohorts]
        lines = [
            f"{name} {digest} {dataset.labels_N[k]} {dataset.groups_N[k]}"
            for name, dataset, indices_M in parts
            for k, digest in zip(indices_M, digests(dataset, indices_M), strict=True)
        ]
        return sha256_bytes("\n".join(lines).encode())


def gather(card: TaskCard) -> Material:
    """A task's items. Raises DataMissing, SplitInvalid, and TaskInvalid where a cohort has none."""
    dataset, skipped = readable(load(card.dataset))
    dataset = dataset.merge(card.classes) if card.classes else dataset
    split = held_out(dataset, allow_missing=card.kind == "segmentation")
    require_disjoint(dataset, split)
    # Masks label the pixels of every item; classes label some items.
    usable_N = np.ones(len(dataset), bool) if card.kind == "segmentation" else dataset.labels_N >= 0
    usable_N &= _within_limit(dataset, card.limit)
    parts = {part: np.flatnonzero(usable_N & (split.parts_N == part)) for part in ("train", "validation", "test")}
    cohorts = []
    for name in card.cohorts or (INTERNAL,):
        chosen_M = parts["test"]
        if card.cohorts:
            if dataset.cohort_N is None:
                raise TaskInvalid(f"The set {card.dataset} has no cohorts. Remove them from the task's card.")
            chosen_M = chosen_M[dataset.cohort_N[chosen_M] == name]
        cohorts.append(Cohort(name, dataset, split, chosen_M, skipped))
    known_M = np.concatenate([parts["train"], parts["validation"]])
    cohorts += [_external(name, card, dataset, known_M) for name in card.external]
    for cohort in cohorts:
        if len(cohort.indices_M) == 0:
            raise TaskInvalid(f"The cohort {cohort.name} of the set {card.dataset} has no items to measure on.")
    return Material(dataset, split, parts["train"], parts["validation"], tuple(cohorts))


def _external(name: str, card: TaskCard, internal: Dataset, known_M: np.ndarray) -> Cohort:
    """All items of another set with the same classes, but those whose group, or a near-duplicate of whose image, is in
    the training or validation part."""
    other, skipped = readable(load(name))
    other = other.merge(card.classes) if card.classes else other
    if other.classes != internal.classes:
        raise TaskInvalid(f"The set {name} has other classes than {internal.name}, and cannot be its external cohort.")
    usable_N = other.labels_N >= 0 if card.kind != "segmentation" else np.ones(len(other), bool)
    shared_N = np.isin(other.groups_N, np.unique(internal.groups_N[known_M]))
    shared_N[near_pairs(other.hashes(), internal.hashes()[known_M], JOIN_BITS)[:, 0]] = True
    count = int((usable_N & shared_N).sum())
    notes = (f"{count} items of groups or images that {internal.name} trains on are left out",) if count else ()
    groups_N, parts_N = joined_groups(other), np.full(len(other), "test")
    split = Split(other.name, parts_N, groups_N, digest(other, groups_N, parts_N))
    return Cohort(name, other, split, np.flatnonzero(usable_N & ~shared_N), (*skipped, *notes))


def readable(dataset: Dataset) -> tuple[Dataset, tuple[str, ...]]:
    """The set without the items whose image cannot be read, and a note that counts and names those images.

    They are left out before the split, which has another digest then; nothing stands in for them.
    """
    firsts = {source.file: place for place, source in reversed(list(enumerate(dataset.sources)))}
    broken = set()
    for name, place in firsts.items():
        try:
            dataset.read(place)
        except (DataMissing, ValueError) as error:
            _log.warning("%s is skipped, it cannot be read: %s", name, error)
            broken.add(name)
    if not broken:
        return dataset, ()
    kept_K = np.array([place for place, source in enumerate(dataset.sources) if source.file not in broken], np.int64)
    arrays = {name: getattr(dataset, name) for name in ("labels_N", "strata_N", "groups_N", "boxes_N4", "cohort_N")}
    whole = replace(
        dataset,
        sources=tuple(dataset.sources[place] for place in kept_K),
        masks=tuple(dataset.masks[place] for place in kept_K) if dataset.masks else (),
        **{name: None if array is None else array[kept_K] for name, array in arrays.items()},
    )
    return whole, unreadable_notes(sorted(broken))


def _within_limit(dataset: Dataset, limit: int | None) -> np.ndarray:
    """(N,) bool: at most `limit` items of each group and finest class, drawn by seed."""
    kept_N = np.ones(len(dataset), bool)
    if limit is None:
        return kept_N
    order_N = np.random.default_rng(_SEED).permutation(len(dataset))
    seen: dict[tuple[str, int], int] = {}
    for place in order_N:
        key = str(dataset.groups_N[place]), int(dataset.strata_N[place])
        seen[key] = seen.get(key, 0) + 1
        kept_N[place] = seen[key] <= limit
    return kept_N


def digests(dataset: Dataset, indices_M: np.ndarray) -> list[str]:
    """Each item's content: its file's digest, its box and the side to which that is resized."""
    boxes = [()] * len(dataset) if dataset.boxes_N4 is None else dataset.boxes_N4.tolist()
    return [f"{dataset.sources[k].sha256} {boxes[k]} {dataset.tile_px}" for k in indices_M]


def items(dataset: Dataset, indices_M: np.ndarray) -> Items:
    """Items of a set as the feature cache takes them."""
    return Items(
        digests=digests(dataset, indices_M),
        read=lambda place: dataset.read(int(indices_M[place])),
        names=[dataset.sources[k].file for k in indices_M],
    )


def windows(dataset: Dataset, indices_M: np.ndarray, side: int) -> Items:
    """Each item cut into side × side equal windows, in reading order; all of an item's before the next item's."""
    last: dict[int, np.ndarray] = {}

    def read(place: int) -> np.ndarray:
        index = int(indices_M[place // side**2])
        if index not in last:
            last.clear()
            last[index] = dataset.read(index)
        row, column = divmod(place % side**2, side)
        height, width = (size // side for size in last[index].shape[:2])
        return last[index][row * height : (row + 1) * height, column * width : (column + 1) * width]

    whole = digests(dataset, indices_M)
    return Items(
        digests=[f"{digest} window {k}/{side}" for digest in whole for k in range(side**2)],
        read=read,
        names=[dataset.sources[k].file for k in indices_M for _ in range(side**2)],
    )


def join_windows(maps_Whwc: np.ndarray, side: int) -> np.ndarray:
    """Maps of windows (N·side², h, w, C) as one map an item (N, side·h, side·w, C)."""
    count, height, width, channels = maps_Whwc.shape
    grid = maps_Whwc.reshape(count // side**2, side, side, height, width, channels)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(-1, side * height, side * width, channels)


def shares(mask_HW: np.ndarray, categories: int, height: int, width: int) -> np.ndarray:
    """(height, width, categories + 1): what share of each cell of a grid belongs to each category, background first."""
    planes = [(mask_HW == category).astype(np.float32) for category in range(categories + 1)]
    return np.stack([cv2.resize(plane, (width, height), interpolation=cv2.INTER_AREA) for plane in planes], -1)


class Sealed(Generic[T]):
    """What a cohort's truth is (classes, masks, times), opened once, after every choice; a second look is refused."""

    def __init__(self, truth: T) -> None:
        self._truth = truth
        self.reads = 0

    def open(self) -> T:
        """The truth. Raises TaskInvalid when they were opened before."""
        if self.reads:
            raise TaskInvalid(
                "The labels of a test cohort were read twice: what is chosen on them is no test any more."
            )
        self.reads += 1
        return self._truth


def unreadable_notes(names: Sequence[str]) -> tuple[str, ...]:
    """One note that counts and names what was skipped."""
    listed = sorted({name.rsplit("/", 1)[-1] for name in names})
    return (f"{len(listed)} unreadable images were skipped: {', '.join(listed)}",) if listed else ()
