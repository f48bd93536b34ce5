"""Which tiles engines are compared and calibrated on: the same ones every time, and never one for both."""

from pathlib import Path

import numpy as np
import pytest

from exporters.tiles import BATCH, LABELLED, TileSet, agreement_tiles, calibration_tiles, whole_slide
from gateway.slides import Slide, find_tissue, plan_tiles, stream_tiles
from tests.conftest import data_path
from tests.exporters.data import write_data
from training.data import common, crc9
from training.errors import DataMissing

pytestmark = pytest.mark.training

TILE_PX = 32


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three sets: 7 labelled tiles, 16 + 32 tiles of two unlabelled sets."""
    root = write_data(tmp_path, {LABELLED: 7, "he_oral": 16, "seg_consep": 8}, 40)
    monkeypatch.setenv("PATHSERVE_DATA", str(root))
    return root


def places(tiles: TileSet) -> set[tuple[str, str, int, int]]:
    """(set, file, top, left) of every patch."""
    return {
        (origin.name, origin.pictures[picture].file, top, left)
        for origin, chosen in zip(tiles.origins, tiles.chosen, strict=True)
        if hasattr(origin, "pictures")
        for picture, top, left in origin.places_N3[chosen].tolist()
    }


def images(tiles: TileSet) -> np.ndarray:
    return np.concatenate([batch.images_BHWC for batch in tiles.batches()])


def test_patches_are_cut_without_overlap_and_labelled_ones_keep_their_class(data: Path) -> None:
    tiles = agreement_tiles(0.5, TILE_PX)
    assert tiles.sources[LABELLED] == 7
    batches = list(tiles.batches())
    assert sum(len(batch.images_BHWC) for batch in batches) == len(tiles)
    assert all(batch.images_BHWC.shape[1:] == (TILE_PX, TILE_PX, 3) for batch in batches)
    assert all(len(batch.images_BHWC) <= BATCH for batch in batches)
    labels = {batch.source: batch.labels_B.tolist() for batch in batches}
    assert labels[LABELLED] == list(range(len(crc9.CLASSES)))
    assert set(labels["he_oral"]) == {-1}
    first = common.decode_jpeg((data / f"{LABELLED}/images/000.jpg").read_bytes())
    assert np.array_equal(batches[0].images_BHWC[0], first[:TILE_PX, :TILE_PX])


def test_no_tile_is_calibrated_on_and_judged(data: Path) -> None:
    judged, held_back = places(agreement_tiles(0.5, TILE_PX)), places(calibration_tiles(TILE_PX, 3, seed=1))
    assert len(judged) == 7 + 14 + 7
    assert len(held_back) == 3
    assert not judged & held_back
    assert not {place for place in held_back if place[0] == LABELLED}


def test_the_same_data_give_the_same_tiles_and_others_another_digest(data: Path) -> None:
    tiles = agreement_tiles(0.5, TILE_PX)
    assert tiles.digest == agreement_tiles(0.5, TILE_PX).digest
    assert tiles.digest != agreement_tiles(0.5, 16).digest
    assert calibration_tiles(TILE_PX, 2, 1).digest == calibration_tiles(TILE_PX, 2, 1).digest
    assert len({calibration_tiles(TILE_PX, 2, seed).digest for seed in range(8)}) > 1


def test_a_sample_is_some_of_the_tiles_in_their_order(data: Path) -> None:
    tiles = agreement_tiles(0.5, TILE_PX)
    sample = tiles.sample(10, seed=4)
    assert len(sample) == 10
    assert sample.digest == tiles.sample(10, seed=4).digest != tiles.sample(10, seed=5).digest
    assert places(sample) < places(tiles)
    whole = images(tiles)
    where = [np.flatnonzero((whole == image).all((1, 2, 3)))[0] for image in images(sample)]
    assert where == sorted(set(where))
    assert tiles.sample(1000, seed=4).digest == tiles.digest


def test_a_changed_picture_is_refused_by_name(data: Path) -> None:
    path = data / "he_oral" / "images" / "003.jpg"
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataMissing, match=r"he_oral/images/003\.jpg differs from its sha256"):
        agreement_tiles(0.5, TILE_PX)


def test_too_few_tiles_to_calibrate_on_is_said(data: Path) -> None:
    with pytest.raises(DataMissing, match="holds 3 tiles to calibrate on, and 300 are needed"):
        calibration_tiles(TILE_PX, 300, seed=0)


def test_without_data_there_are_no_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATHSERVE_DATA", str(tmp_path))
    with pytest.raises(DataMissing, match="Set PATHSERVE_DATA"):
        agreement_tiles(0.5, TILE_PX)


def test_a_slides_tiles_are_those_that_are_served(cmu_slide: Path) -> None:
    origin = whole_slide(cmu_slide, 0.5, 224)
    chosen = np.arange(len(origin))[::5]
    found = images(TileSet((origin,), (chosen,)))
    with Slide.open(sorted(cmu_slide.glob("*.dcm"))) as slide:
        plan = plan_tiles(slide, find_tissue(slide), mpp=0.5, tile_px=224)
        served = np.concatenate([batch.images_BHWC for batch in stream_tiles(slide, plan, batch=7)])
    assert np.array_equal(found, served[::5])


def test_the_public_data_give_enough_tiles_of_many_sources() -> None:
    data_path("slides")
    tiles = agreement_tiles(0.5, 224)
    assert len(tiles) >= 5000
    assert len(tiles.sources) >= 10
    assert max(tiles.sources.values()) < 0.4 * len(tiles)
    assert tiles.sources[LABELLED] == 70
    calibrating = calibration_tiles(224, 300, seed=1)
    assert len(calibrating) == 300
    assert not places(tiles) & places(calibrating)
