"""The tile store on a disk that fills up: a typed error, whose analysis is tried again, and no row is half read."""

import gc
from pathlib import Path

import numpy as np
import pytest

from gateway.analyses.tiles import TileStore, is_complete, load
from gateway.operations.errors import DiskFull
from tests.support.disk import largest_file

KEY = {"plan": "p", "engine": "e"}
WIDTH = 3
ROWS = np.arange(12, dtype=np.float32).reshape(4, WIDTH)


def kept(path: Path, rows: int) -> np.ndarray:
    return load(path, belongs_to=KEY, width=WIDTH, rows=rows)[0]


@pytest.mark.parametrize("room", [0, 1, 40], ids=["none", "a byte", "a part of the row"])
def test_rows_that_find_no_room_are_told_and_those_before_stay(tmp_path: Path, room: int) -> None:
    path = tmp_path / "rows.bin"
    with TileStore.open(path, belongs_to=KEY, width=WIDTH) as store:
        store.append(ROWS)
        size = path.stat().st_size
    with (
        largest_file(size + room),
        pytest.raises(DiskFull, match="make room there"),
        TileStore.open(path, belongs_to=KEY, width=WIDTH) as store,
    ):
        store.append(ROWS)
    assert path.stat().st_size == size + room
    with TileStore.open(path, belongs_to=KEY, width=WIDTH) as store:
        assert store.done == len(ROWS)
        store.append(ROWS + 12)
    np.testing.assert_array_equal(kept(path, 8), np.concatenate([ROWS, ROWS + 12]))


def test_a_store_that_cannot_begin_is_told_and_is_none(tmp_path: Path) -> None:
    path = tmp_path / "rows.bin"
    with largest_file(5), pytest.raises(DiskFull):
        TileStore.open(path, belongs_to=KEY, width=WIDTH)
    gc.collect()  # nothing is left open that would be closed, and complain, now
    assert not is_complete(path, belongs_to=KEY, width=WIDTH, rows=0)
    with TileStore.open(path, belongs_to=KEY, width=WIDTH) as store:
        store.append(ROWS)
    np.testing.assert_array_equal(kept(path, len(ROWS)), ROWS)
