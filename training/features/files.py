"""Feature files: HDF5, one a slide, written whole or not at all.

`features` (N,D) float32 and `coords` (N,2) int64, the tiles' top left corners (x, y) in level-0 pixels, in row-major
order of the grid; `unreadable` (U,2) int64, the corners of tiles that could not be read and have no row. The record and
what was read of the slide are attributes. A slide without tissue has N = 0 and says so in the attribute `remark`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gateway.operations.disk import disk_errors, written_whole
from training.features.errors import FeaturesInvalid
from training.features.record import Record

_ROWS = 4096
"""Rows that are in memory at a time while a file is written."""


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """One slide's features (N,D) float32, their tiles' corners (N,2), and how they were made."""

    series: str
    features_ND: np.ndarray
    coords_N2: np.ndarray
    record: Record


def read_record(path: Path) -> Record:
    """How a file's features were made. Raises FeaturesInvalid."""
    with _opened(path) as file:
        return Record.of(file.attrs, path.name)


def read(path: Path) -> Features:
    """A feature file. Raises FeaturesInvalid."""
    with _opened(path) as file:
        record = Record.of(file.attrs, path.name)
        try:
            features_ND, coords_N2 = file["features"][:], file["coords"][:]
        except (KeyError, OSError):
            raise _unusable(path) from None
    if features_ND.ndim != 2 or coords_N2.shape != (len(features_ND), 2):
        raise _unusable(path)
    return Features(path.stem, features_ND, coords_N2, record)


def read_all(paths: Sequence[Path]) -> Iterator[Features]:
    """Feature files one by one. Raises FeaturesInvalid, and FeaturesMixed where one was not made as the first."""
    first: Record | None = None
    for path in paths:
        features = read(path)
        first = first or features.record
        first.demand_same(features.record, path.name)
        yield features


def write(
    path: Path,
    record: Record,
    slide: Mapping[str, Any],
    *,
    rows: Iterator[np.ndarray],
    width: int,
    coords_N2: np.ndarray,
    unreadable_U2: np.ndarray,
) -> None:
    """Write a file; `rows` gives the features (B,D) block by block, as the coordinates stand. Raises DiskFull."""
    with disk_errors(), written_whole(path) as whole, h5py.File(whole.name, "w") as file:
        features = file.create_dataset("features", (len(coords_N2), width), "<f4")
        first = 0
        for block_BD in rows:
            features[first : first + len(block_BD)] = block_BD
            first += len(block_BD)
        file.create_dataset("coords", data=coords_N2.astype("<i8").reshape(-1, 2))
        file.create_dataset("unreadable", data=unreadable_U2.astype("<i8").reshape(-1, 2))
        for name, value in {**record.attributes(), **slide}.items():
            file.attrs[name] = value


def gathered(parts: Sequence[np.ndarray], order_N: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of some arrays (files that are mapped, say), counted through one after another, in another order."""
    ends = np.cumsum([0, *(len(part) for part in parts)])
    for first in range(0, len(order_N), _ROWS):
        wanted_B = order_N[first : first + _ROWS]
        of_B = np.searchsorted(ends, wanted_B, "right") - 1
        block_BD = np.empty((len(wanted_B), parts[0].shape[1]), np.float32)
        for number in np.unique(of_B):
            block_BD[of_B == number] = parts[number][wanted_B[of_B == number] - ends[number]]
        yield block_BD


def _opened(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError:
        raise _unusable(path) from None


def _unusable(path: Path) -> FeaturesInvalid:
    return FeaturesInvalid(f"{path.name} is not a feature file, or is damaged. Remove it and compute it again.")
