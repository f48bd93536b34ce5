"""Where the data lies, what MANIFEST.csv says of each file, and the tiles that every dataset module returns."""

import csv
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import simplejpeg

from training.errors import DataMissing
from training.files import sha256_bytes

_CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Source:
    """One data file as a run's manifest names it. `tier` A (CC0, CC BY, Apache, MIT) may go into weights that ship."""

    file: str
    dataset: str
    sha256: str
    licence: str
    tier: str
    label: str


@dataclass(frozen=True, slots=True)
class Tiles:
    """Labelled tiles of one dataset, in a fixed order.

    images_NHWC uint8 RGB; labels_N int64, an index into `classes`; groups_N int64, what must stay together in a split;
    `grouping` says in a word what a group is.
    """

    images_NHWC: np.ndarray
    labels_N: np.ndarray
    groups_N: np.ndarray
    classes: tuple[str, ...]
    grouping: str
    mpp: float
    sources: tuple[Source, ...]


def data_root() -> Path:
    """The data folder: PATHSERVE_DATA, or `shared/data` beside the checkout. Raises DataMissing."""
    root = Path(os.environ.get("PATHSERVE_DATA") or _CHECKOUT.parent / "shared" / "data")
    if not (root / "MANIFEST.csv").is_file():
        raise DataMissing(
            "The training data are not there: no MANIFEST.csv in the data folder. "
            "Set PATHSERVE_DATA to the folder that holds it and run again."
        )
    return root


@cache
def _manifest(root: Path) -> dict[str, Source]:
    with (root / "MANIFEST.csv").open(newline="", encoding="utf-8") as file:
        return {
            row["path"]: Source(
                row["path"], row["dataset"], row["sha256"], row["licence"], row["licence_tier"], row["label"]
            )
            for row in csv.DictReader(file)
        }


def sources_under(root: Path, folder: str) -> list[Source]:
    """The manifest's image rows below `folder`, sorted by path."""
    return sorted((row for path, row in _manifest(root).items() if path.startswith(f"{folder}/")), key=lambda r: r.file)


def read_source(root: Path, source: Source) -> bytes:
    """A data file's bytes. Raises DataMissing where it is absent, differs from its row, or is not tier A."""
    path = source.file
    if source.tier != "A":
        raise DataMissing(f"{path} is of licence tier {source.tier}; weights that ship are trained on tier A only.")
    try:
        data = (root / path).read_bytes()
    except OSError:
        raise DataMissing(f"{path} is named in MANIFEST.csv but cannot be read. Fetch the data again.") from None
    if sha256_bytes(data) != source.sha256:
        raise DataMissing(f"{path} differs from its sha256 in MANIFEST.csv. Fetch the data again.")
    return data


def decode_jpeg(data: bytes) -> np.ndarray:
    """(H,W,3) uint8 RGB, by the same decoder that serves slides."""
    return simplejpeg.decode_jpeg(data, colorspace="RGB")


def near_duplicate_groups(images: Iterable[np.ndarray], distance: int = 10) -> np.ndarray:
    """Group numbers (N,) of images that are one another's near-duplicates, by difference hash (64 bits, transitive).

    A bit says whether a cell of a 9 x 8 grid of mean grey values is brighter than its left neighbour; images whose
    hashes differ in at most `distance` bits share a group (unrelated tiles differ in about 32).
    """
    hashes = np.stack([_difference_hash(image) for image in images])
    groups = np.arange(len(hashes))
    for first in range(len(hashes)):
        for second in range(first):
            if np.count_nonzero(hashes[first] != hashes[second]) <= distance:
                groups[groups == groups[first]] = groups[second]
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def _difference_hash(image_HWC: np.ndarray) -> np.ndarray:
    grey = image_HWC.astype(np.float64) @ (0.299, 0.587, 0.114)
    rows = np.array_split(grey, 8, axis=0)
    cells = np.array([[part.mean() for part in np.array_split(row, 9, axis=1)] for row in rows])
    return (cells[:, 1:] > cells[:, :-1]).ravel()
