"""Data are read only where the manifest vouches for them."""

from pathlib import Path

import numpy as np
import pytest

from tests.training.small_data import TILE_PX, read_manifest, write_manifest
from training.data import crc9
from training.data.common import data_root
from training.data.hashes import near_duplicate_groups
from training.data.views import colour_statistics, view, views
from training.errors import DataMissing

pytestmark = pytest.mark.training


def test_tiles_come_in_a_fixed_order_with_their_sources(small_data: Path) -> None:
    tiles = crc9.load()
    assert tiles.images().shape == (28, TILE_PX, TILE_PX, 3)
    assert np.bincount(tiles.labels_N).tolist() == [4] * 7
    assert [source.file for source in tiles.sources] == sorted(source.file for source in tiles.sources)
    assert tiles.grouping == "patient-unknown"


def test_a_changed_file_is_refused(small_data: Path) -> None:
    path = small_data / read_manifest(small_data)[3]["path"]
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DataMissing, match="differs from its sha256"):
        crc9.load()


def test_data_that_must_not_ship_are_refused(small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    small_data.rename(other)
    rows = read_manifest(other)
    rows[5]["licence_tier"] = "B"
    write_manifest(other, rows)
    monkeypatch.setenv("PATHSERVE_DATA", str(other))
    with pytest.raises(DataMissing, match="tier B"):
        crc9.load()


def test_absent_data_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATHSERVE_DATA", str(tmp_path))
    with pytest.raises(DataMissing, match="PATHSERVE_DATA"):
        data_root()


def test_near_duplicates_share_a_group() -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 256, (9, 10, 3)).repeat(12, 0).repeat(12, 1).astype(np.uint8) for _ in range(2))
    brighter = np.clip(first.astype(int) + 6, 0, 255).astype(np.uint8)
    groups = near_duplicate_groups([first, second, brighter, first])
    assert groups[0] == groups[2] == groups[3] != groups[1]


def test_views_are_the_sixteen_that_they_say() -> None:
    tile = np.random.default_rng(1).integers(60, 200, (8, 8, 3)).astype(np.uint8)
    found = views(tile, 16, np.random.default_rng(2))
    assert np.array_equal(found[0], tile)
    assert len({image.tobytes() for image in found}) == 16
    assert all(np.array_equal(np.sort(image, axis=None), np.sort(tile, axis=None)) for image in found[:8])
    assert np.abs(found[8].astype(int) - tile).max() < 40
    assert np.array_equal(view(tile, 5, np.random.default_rng(0)), found[5])


def test_colour_statistics_are_blind_to_texture() -> None:
    rng = np.random.default_rng(3)
    tile = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
    shuffled = rng.permutation(tile.reshape(-1, 3)).reshape(tile.shape)
    np.testing.assert_allclose(colour_statistics(tile), colour_statistics(shuffled), rtol=1e-5)


def test_the_real_set_holds_ten_tiles_a_class() -> None:
    try:
        data_root()
    except DataMissing:
        pytest.skip("data set not present: he_crc9 (set PATHSERVE_DATA)")
    tiles = crc9.load()
    assert tiles.images().shape == (70, 224, 224, 3)
    assert np.bincount(tiles.labels_N).tolist() == [10] * 7
