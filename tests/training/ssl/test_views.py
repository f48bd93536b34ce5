"""Crops, their colours, masks, and which tile a step takes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.ssl.small import SmallCorpus, small_recipe
from training.errors import DataMissing
from training.ssl.recipe import Augment
from training.ssl.views import Steps, augmented, batches, colour_jittered, random_crop

pytestmark = pytest.mark.training

PLAIN = Augment(flip_p=0, jitter_p=0, grey_p=0, blur_p=(0, 0, 0), solarise_p=(0, 0, 0))


@pytest.fixture(scope="module")
def tile() -> np.ndarray:
    rng = np.random.default_rng(1)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3)).astype(np.uint8))
    return np.array(coarse.resize((96, 96), Image.Resampling.BICUBIC))


def test_a_step_is_the_same_for_any_number_of_processes_and_whoever_makes_it(tmp_path: Path) -> None:
    recipe, _ = small_recipe(tmp_path)
    corpus = SmallCorpus()
    whole = Steps(corpus, recipe, 4)[7]
    shares = [Steps(corpus, recipe, 4, rank=rank, processes=2)[7] for rank in range(2)]
    for name in ("globals_GHWC", "locals_LHWC", "mask_GN"):
        crops = getattr(whole, name).unflatten(0, (-1, 4))
        parts = [getattr(share, name).unflatten(0, (-1, 2)) for share in shares]
        assert torch.equal(crops, torch.cat(parts, dim=1)), name
    (made,) = batches(Steps(corpus, recipe, 4), 7, 8, workers=1)
    assert torch.equal(made.globals_GHWC, whole.globals_GHWC)
    assert torch.equal(made.mask_GN, whole.mask_GN)


def test_an_epoch_takes_every_tile_once_and_the_next_one_in_another_order(tmp_path: Path) -> None:
    recipe, _ = small_recipe(tmp_path)
    steps = Steps(SmallCorpus(12), recipe, 4)
    first, second = (
        [i for step in steps_of for i in steps[step].index_B.tolist()] for steps_of in (range(3), range(3, 6))
    )
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


def test_shapes_and_masks_are_what_the_recipe_says(tmp_path: Path) -> None:
    recipe, _ = small_recipe(tmp_path)
    views = Steps(SmallCorpus(), recipe, 4)[0]
    assert views.globals_GHWC.shape == (8, 32, 32, 3)
    assert views.locals_LHWC.shape == (8, 16, 16, 3)
    assert views.globals_GHWC.dtype == torch.uint8
    masked_G = views.mask_GN.sum(1)
    assert views.mask_GN.shape == (8, 16)
    assert (masked_G > 0).sum() <= 4
    assert masked_G.max() <= 8
    assert not torch.equal(views.mask_GN, Steps(SmallCorpus(), recipe, 4)[1].mask_GN)


def test_an_unreadable_tile_gives_place_to_another_or_to_the_first_one(tmp_path: Path) -> None:
    recipe, _ = small_recipe(tmp_path)
    wanted = Steps(SmallCorpus(), recipe, 4)[0].index_B
    broken = int(wanted[2])
    skipping = Steps(SmallCorpus(unreadable=(broken,)), recipe, 4)[0]
    assert skipping.skipped == (f"small/tile-{broken}.png",)
    assert skipping.index_B[2] != broken
    assert skipping.index_B[[0, 1, 3]].tolist() == wanted[[0, 1, 3]].tolist()
    substituting, _ = small_recipe(tmp_path, "data.on_error=substitute")
    assert Steps(SmallCorpus(unreadable=(broken,)), substituting, 4)[0].index_B[2] == 0


def test_a_corpus_without_a_readable_tile_ends(tmp_path: Path) -> None:
    recipe, _ = small_recipe(tmp_path)
    with pytest.raises(DataMissing):
        Steps(SmallCorpus(unreadable=tuple(range(12))), recipe, 4)[0]


def test_crops_keep_to_scale_and_aspect() -> None:
    rows, columns = np.mgrid[:100, :100].astype(np.uint8)
    place = np.stack([rows, columns, np.zeros_like(rows)], axis=-1)
    rng = np.random.default_rng(2)
    for _ in range(200):
        crop = random_crop(place, 50, (0.05, 0.32), rng).astype(int)
        height, width = np.ptp(crop[..., 0]) + 1, np.ptp(crop[..., 1]) + 1
        assert 0.05 * 0.8 < height * width / 10_000 < 0.32 * 1.1
        assert 0.7 < width / height < 1.45
    whole = random_crop(place[:20], 20, (1.0, 1.0), rng)  # no such aspect: the largest square there is
    assert np.ptp(whole[..., 1]) <= 20


@pytest.mark.parametrize("side_px", [24, 96, 120])
def test_resizing_is_antialiased_bicubic_as_pillow_does_it(tile: np.ndarray, side_px: int) -> None:
    crop = random_crop(tile, side_px, (1.0, 1.0), np.random.default_rng(0))  # the whole, for no other aspect fits
    expected = np.asarray(Image.fromarray(tile).resize((side_px, side_px), Image.Resampling.BICUBIC))
    assert np.abs(crop.astype(int) - expected).max() <= 1


def test_nothing_happens_to_a_crop_at_probability_zero(tile: np.ndarray) -> None:
    assert np.array_equal(augmented(tile, PLAIN, 0, np.random.default_rng(0)), tile)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"flip_p": 1.0}, lambda tile: tile[:, ::-1]),
        ({"solarise_p": (1.0, 0.0, 0.0)}, lambda tile: np.where(tile < 128, tile, 255 - tile)),
        ({"grey_p": 1.0}, lambda tile: np.repeat(np.asarray(Image.fromarray(tile).convert("L"))[..., None], 3, 2)),
    ],
)
def test_each_change_is_the_usual_one(tile: np.ndarray, changes: dict, expected) -> None:
    changed = augmented(tile, PLAIN.model_copy(update=changes), 0, np.random.default_rng(0))
    assert np.abs(changed.astype(int) - expected(tile).astype(int)).max() <= 1


def test_blur_strikes_each_kind_of_crop_as_often_as_the_recipe_says(tile: np.ndarray) -> None:
    """The published weights saw blur at 0.0/0.9/0.5."""
    rng = np.random.default_rng(4)
    for place, share in enumerate((0.0, 0.9, 0.5)):
        augment = PLAIN.model_copy(update={"blur_p": Augment().blur_p, "blur_sigma_px": (1.0, 2.0)})
        changed = [not np.array_equal(augmented(tile, augment, place, rng), tile) for _ in range(300)]
        assert np.mean(changed) == pytest.approx(share, abs=0.08)


def test_jitter_keeps_to_its_strengths(tile: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    assert np.array_equal(colour_jittered(tile, (0, 0, 0, 0), rng), tile)
    flat = np.full((8, 8, 3), 100, np.uint8)
    values = [colour_jittered(flat, (0.4, 0, 0, 0), rng)[0, 0, 0] for _ in range(200)]
    assert min(values) >= 59
    assert max(values) <= 141
    assert min(values) < 70
    assert max(values) > 130
    contrasts = [colour_jittered(tile, (0, 0.4, 0, 0), rng).std() / tile.std() for _ in range(50)]
    assert min(contrasts) >= 0.58
    assert max(contrasts) <= 1.4
    assert min(contrasts) < 0.75
    assert max(contrasts) > 1.1


def test_saturation_and_hue_keep_the_brightness(tile: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    luma = np.array([0.299, 0.587, 0.114])
    soft = tile // 2 + 64
    for _ in range(20):
        changed = colour_jittered(soft, (0, 0, 0.2, 0), rng)
        assert (changed @ luma).mean() == pytest.approx((soft @ luma).mean(), abs=1.5)
    turned = [colour_jittered(soft, (0, 0, 0, 0.1), rng) for _ in range(20)]
    assert all(np.abs(image.max(-1).astype(int) - soft.max(-1)).max() <= 3 for image in turned)  # hue keeps the value
    assert max(np.abs(image.astype(int) - soft).max() for image in turned) > 20
