"""Windows of cytology for self-distillation: of the train part, of many sides, none of them empty."""

from pathlib import Path

import numpy as np
import pytest

from tests.training.data import made
from tests.training.ssl.small import small_recipe
from training.data import cytology
from training.data.cytology import cytology_corpus, filled
from training.errors import RecipeInvalid
from training.smartccs.data import load
from training.ssl import train

pytestmark = pytest.mark.training


@pytest.fixture
def smears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made.Made(tmp_path / "data")
    made.smears(folder)
    monkeypatch.setenv("PATHSERVE_DATA", str(folder.finish()))
    monkeypatch.setenv("PATHSERVE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(cytology, "SLIDES", {})


def test_windows_are_of_the_train_part_and_of_many_sides(smears: None) -> None:
    found = cytology_corpus((40, 96))
    assert {source.file for source in found.sources} == {field.source.file for field in load("train")}
    sides = {found.read(index).shape[0] for index in range(len(found))}
    assert min(sides) >= 40
    assert max(sides) <= 96
    assert len(sides) > 20
    again = cytology_corpus((40, 96))
    assert np.array_equal(found.places_N4, again.places_N4)
    whole = cytology_corpus((96, 96))
    assert len(whole) == len(whole.tiles)  # of one side: the tiles themselves
    assert len({found.sha256, whole.sha256, cytology_corpus((41, 96)).sha256}) == 3


def test_shuffled_windows_keep_their_colours_and_nothing_else(smears: None, tmp_path: Path) -> None:
    plain, shuffled = cytology_corpus((40, 96)), cytology_corpus((40, 96), shuffled=True)
    window, mixed = plain.read(3), shuffled.read(3)
    assert plain.sha256 != shuffled.sha256
    assert np.array_equal(shuffled.read(3), mixed)
    assert not np.array_equal(window, mixed)
    rows, others = (sorted(map(tuple, image.reshape(-1, 3).tolist())) for image in (window, mixed))
    assert rows == others
    with pytest.raises(RecipeInvalid, match="shuffle_pixels"):
        small_recipe(tmp_path, "data.shuffle_pixels=true")


def test_glass_and_black_edges_are_left_out() -> None:
    tile = np.full((20, 20, 3), 128, np.uint8)
    assert filled(tile)
    tile[:17, :, 2] = 241  # one channel of 85 % of the pixels
    assert not filled(tile)
    tile[0] = 128
    assert filled(tile)
    tile[0, :, 0] = 9
    assert not filled(tile)


def test_a_recipe_of_cytology_trains_on_windows(smears: None, tmp_path: Path) -> None:
    changes = ("data.corpus=cytology", "data.window_px=[40, 96]", "iterations=1")
    run = train.run(*small_recipe(tmp_path, *changes), tmp_path / "run")
    assert run is not None
    assert set(run.manifest["seen"]["groups"]) == {"cytology_cric"}
    for refused in ('data.sets=["oral"]', "data.window_px=[96, 40]"):
        with pytest.raises(RecipeInvalid):
            small_recipe(tmp_path, *changes, refused)
