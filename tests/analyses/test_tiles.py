"""The tile store survives a kill at any byte and belongs to one plan and engine only."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.analyses.tiles import TileStore, load
from gateway.operations.errors import RowsOutdated

KEY = {"plan": "p", "engine": "e"}


def rows(count: int, start: int = 0) -> np.ndarray:
    return (np.arange(start * 3, (start + count) * 3, dtype=np.float32) / 7).reshape(count, 3)


def test_appends_and_loads(tmp_path: Path) -> None:
    path = tmp_path / "t.bin"
    with TileStore.open(path, belongs_to=KEY, width=3) as store:
        store.append(rows(4))
        store.append(rows(2, 4), missing=((0, 1),) * 5)
        assert store.done == 6
    with TileStore.open(path, belongs_to=KEY, width=3) as store:
        assert store.done == 6
        store.append(rows(1, 6), missing=((2, 0),))
    values, missing = load(path, belongs_to=KEY, width=3, rows=7)
    np.testing.assert_array_equal(values, rows(7))
    assert missing == 6


@given(cut=st.integers(min_value=0, max_value=400), garbage=st.binary(max_size=9))
def test_goes_on_after_a_cut_anywhere(tmp_path_factory: pytest.TempPathFactory, cut: int, garbage: bytes) -> None:
    path = tmp_path_factory.mktemp("cut") / "t.bin"
    with TileStore.open(path, belongs_to=KEY, width=3) as store:
        for start in range(0, 20, 4):
            store.append(rows(4, start))
    whole = path.read_bytes()
    path.write_bytes(whole[:cut] + garbage)
    with TileStore.open(path, belongs_to=KEY, width=3) as store:
        assert store.done % 4 == 0
        assert store.done <= 20
        for start in range(store.done, 20, 4):
            store.append(rows(4, start))
    assert path.read_bytes() == whole


def test_flipped_byte_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "t.bin"
    with TileStore.open(path, belongs_to=KEY, width=3) as store:
        store.append(rows(4))
        store.append(rows(4, 4))
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(RowsOutdated):
        load(path, belongs_to=KEY, width=3, rows=8)
    with TileStore.open(path, belongs_to=KEY, width=3) as store:
        assert store.done == 4


@pytest.mark.parametrize("other", [{"plan": "q", "engine": "e"}, {"plan": "p", "engine": "f"}])
def test_outputs_of_another_plan_or_engine_are_not_taken(tmp_path: Path, other: dict[str, str]) -> None:
    path = tmp_path / "t.bin"
    with TileStore.open(path, belongs_to=KEY, width=3) as store:
        store.append(rows(4))
    with pytest.raises(RowsOutdated, match="changed while it ran"):
        load(path, belongs_to=other, width=3, rows=4)
    assert len(load(path, belongs_to=KEY, width=3, rows=4)[0]) == 4  # reading threw nothing away
    with TileStore.open(path, belongs_to=other, width=3) as store:
        assert store.done == 0


def test_outputs_that_are_not_all_there(tmp_path: Path) -> None:
    path = tmp_path / "t.bin"
    with TileStore.open(path, belongs_to=KEY, width=3) as store:
        store.append(rows(4))
    with pytest.raises(RowsOutdated):
        load(path, belongs_to=KEY, width=3, rows=5)
    with pytest.raises(RowsOutdated):
        load(tmp_path / "nothing.bin", belongs_to=KEY, width=3, rows=5)


def test_refuses_values_of_another_width(tmp_path: Path) -> None:
    with (
        TileStore.open(tmp_path / "t.bin", belongs_to=KEY, width=3) as store,
        pytest.raises(ValueError, match="expected"),
    ):
        store.append(np.zeros((2, 4), dtype=np.float32))
