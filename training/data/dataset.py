"""Labelled images of one public set, behind one interface: `load("oral")`.

A set is a module of this package with a `load() -> Dataset`; NAMES is the registry. An item is a whole image, or a box
of one (a cell of a smear, a quarter of a tile). What may stand on two sides of a split is said by `groups_N`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from training.data.common import (
    Source,
    data_root,
    manifest,
    read_image,
    read_mask,
    require_tier,
    sources_under,
)
from training.data.hashes import alike, difference_hash
from training.errors import DataMissing, TaskInvalid

NAMES = (
    "crc9",
    "oral",
    "breakhis",
    "osteosarcoma",
    "ebhi",
    "camelyon",
    "consep",
    "monuseg",
    "monusac",
    "cric_cells",
    "glomeruli",
    "dsb2018",
)

PATIENT_UNKNOWN = "patient-unknown"
"""The grouping of a set that does not tell its patients: near-duplicates stay together, nothing more is known."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dataset:
    """Items in a fixed order.

    sources: the image of each of N items; boxes_N4: int64 left, top, right, bottom of each item in its image (px, may
    reach beyond it: the border is mirrored), None where items are whole images; labels_N: int64, an index into
    `classes`, -1 where an item has none; strata_N: the finest labels (an index into `strata`, or -1), by which a split
    is balanced, so that every task made of one set has the same split; groups_N: (N,) str, what stays together;
    grouping: what a group is; known_as: names of public sets that hold these images, as others' encoders list what they
    learned from; mpp: µm per pixel, None where it is not known; tile_px: the side to which boxes are
    resized; cohort_N: (N,) str or None, a further column (magnification); masks: each item's mask file, whose number k
    is `categories[k - 1]`, 0 background.
    """

    name: str
    title: str
    sources: tuple[Source, ...]
    labels_N: np.ndarray
    strata_N: np.ndarray
    groups_N: np.ndarray
    classes: tuple[str, ...]
    strata: tuple[str, ...]
    grouping: str
    organ: str
    stain: str
    mpp: float | None
    known_as: tuple[str, ...]
    boxes_N4: np.ndarray | None = None
    tile_px: int | None = None
    cohort_N: np.ndarray | None = None
    masks: tuple[Source, ...] = ()
    categories: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def tier(self) -> str:
        """The least free licence tier among the items: only `A` may go into weights that ship."""
        return max(source.tier for source in self.sources)

    def hashes(self) -> np.ndarray:
        """(N,) uint64: the perceptual hash of each item's whole image."""
        return _hashes(self.sources)

    def read(self, index: int) -> np.ndarray:
        """Item `index`, (H,W,3) uint8 RGB. Raises DataMissing."""
        source = self.sources[index]
        if self.boxes_N4 is None:
            return read_image(data_root(), source, "AB")
        crop = cut(_decoded(data_root(), source), self.boxes_N4[index])
        if self.tile_px in (None, crop.shape[0]):
            return crop
        kind = cv2.INTER_AREA if crop.shape[0] > self.tile_px else cv2.INTER_CUBIC
        return cv2.resize(crop, (self.tile_px, self.tile_px), interpolation=kind)

    def images(self) -> np.ndarray:
        """(N,H,W,3) uint8 RGB: all items of a set whose items have one size. Raises DataMissing."""
        return np.stack([self.read(index) for index in range(len(self))])

    def read_mask(self, index: int) -> np.ndarray:
        """(H,W) uint8 category numbers of item `index`, at the image's own scale. Raises DataMissing, TaskInvalid."""
        if not self.masks:
            raise TaskInvalid(f"The set {self.name} has no masks. Name a set that has.")
        mask = read_mask(data_root(), self.masks[index], "AB")
        return mask if self.boxes_N4 is None else cut(mask, self.boxes_N4[index])

    def merge(self, classes: Mapping[str, Sequence[str]]) -> "Dataset":
        """The same items and split under coarser classes: new name to old names. Items of no named class have none.
        Raises TaskInvalid for an old name that the set does not have."""
        numbers = np.full(len(self.classes), -1, np.int64)
        for number, (name, members) in enumerate(classes.items()):
            for member in members:
                if member not in self.classes:
                    raise TaskInvalid(f"The class {name} names {member!r}, which the set {self.name} does not have.")
                numbers[self.classes.index(member)] = number
        return replace(self, classes=tuple(classes), labels_N=np.where(self.labels_N < 0, -1, numbers[self.labels_N]))


def load(name: str) -> Dataset:
    """A set by its registry name. Raises TaskInvalid for another name, DataMissing where the data are not there."""
    if name not in NAMES:
        raise TaskInvalid(f"There is no data set {name!r}. Name one of: {', '.join(NAMES)}.")
    return import_module(f"training.data.{name}").load()


def images_of(folder: str, tiers: str = "A") -> list[Source]:
    """The images of a set's folder, sorted by path. Raises DataMissing where there are none, or one is of no tier of
    `tiers`."""
    sources = sources_under(data_root(), f"{folder}/images")
    if not sources:
        raise DataMissing(f"The data folder holds no {folder} set. Fetch the data again.")
    for source in sources:
        require_tier(source, tiers)
    return sources


def masks_of(sources: Sequence[Source], kind: Literal["masks", "instances"] = "masks") -> tuple[Source, ...]:
    """The mask beside each image (`masks/*.png` of categories, `instances/*.png`). Raises DataMissing."""
    rows = manifest(data_root())
    paths = [source.file.replace("/images/", f"/{kind}/").rsplit(".", 1)[0] + ".png" for source in sources]
    absent = [path for path in paths if path not in rows]
    if absent:
        raise DataMissing(f"MANIFEST.csv does not name {absent[0]}. Fetch the data again.")
    return tuple(rows[path] for path in paths)


def groups_of(sources: Sequence[Source]) -> np.ndarray:
    """(N,) str: the manifest's groups. Raises DataMissing where one is not named."""
    for source in sources:
        if not source.group:
            raise DataMissing(f"MANIFEST.csv names no group for {source.file}. Fetch the data again.")
    return np.array([source.group for source in sources])


def groups_by_likeness(sources: Sequence[Source]) -> np.ndarray:
    """(N,) str: near-duplicates together, named by their first file, for sets that do not tell their patients."""
    numbers_N = alike(_hashes(sources))
    first = np.unique(numbers_N, return_index=True)[1]
    return np.array([Path(sources[first[number]].file).stem for number in numbers_N])


def labels_from(values: Sequence[str], classes: tuple[str, ...]) -> np.ndarray:
    """(N,) int64 indices into `classes`; an empty value has none (-1). Raises DataMissing for an unknown one."""
    for value in values:
        if value and value not in classes:
            raise DataMissing(f"The label {value!r} is none of the set's classes. Fetch the data again.")
    return np.array([classes.index(value) if value else -1 for value in values], np.int64)


def cut(image: np.ndarray, box_4: np.ndarray) -> np.ndarray:
    """A box (left, top, right, bottom px) of an image or mask; beyond the border it is mirrored."""
    left, top, right, bottom = (int(edge) for edge in box_4)
    height, width = image.shape[:2]
    inside = image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    beyond = max(-top, 0), max(bottom - height, 0), max(-left, 0), max(right - width, 0)
    if not any(beyond):
        return inside.copy()
    return cv2.copyMakeBorder(inside, *beyond, borderType=cv2.BORDER_REFLECT_101)


@lru_cache(maxsize=2)
def _decoded(root: Path, source: Source) -> np.ndarray:
    """The last images that boxes were cut from: neighbours in a set's order are cut from one image."""
    return read_image(root, source, "AB")


def _hashes(sources: Sequence[Source]) -> np.ndarray:
    return np.array([_hash(data_root(), source) for source in sources], np.uint64)


@lru_cache(maxsize=1 << 14)
def _hash(root: Path, source: Source) -> np.uint64:
    return difference_hash(_decoded(root, source))
