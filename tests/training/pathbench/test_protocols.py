"""Bags, windows, Dice and cohorts: composed truth, one-tile and empty bags, one look at the test part."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.training.data import made
from training.data.dataset import load
from training.errors import TaskInvalid
from training.pathbench.bags import Bag, compose, whole
from training.pathbench.material import Material, Sealed, gather, join_windows, shares, unreadable_notes, windows
from training.pathbench.protocols import slide
from training.pathbench.protocols.segmentation import mean_dice, overlaps
from training.pathbench.recipe import Bags
from training.pathbench.tasks import Composition, TaskCard

pytestmark = pytest.mark.training
TILES = Composition(target="tumour", shares=(0.25,), tiles=(8, 16), bags=(4, 2, 2))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = made.Made(tmp_path_factory.mktemp("made"))
    made.oral(folder)
    made.consep(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATHSERVE_DATA", str(folder.finish()))
        yield folder.root


@pytest.fixture(scope="module")
def oral(data: Path) -> Material:
    return gather(TaskCard(title="", kind="tile", organ="", dataset="oral"))


def test_composed_bags_hold_the_share_they_are_named_for() -> None:
    labels = np.array([0] * 40 + [1] * 10)
    bags = compose(labels, 1, TILES, 20, seed=3)
    assert [bag.label for bag in bags] == [0, 1] * 10
    for bag in bags:
        targets, size = int((labels[bag.rows_N] == 1).sum()), len(bag.rows_N)
        assert 8 <= size <= 16
        assert targets == (round(0.25 * size) if bag.label else 0)
        assert len(set(bag.rows_N.tolist())) == size
    again = compose(labels, 1, TILES, 20, seed=3)
    assert all(np.array_equal(one.rows_N, two.rows_N) for one, two in zip(bags, again, strict=True))


def test_few_tiles_are_drawn_twice_and_none_is_refused() -> None:
    bags = compose(np.array([0, 0, 1]), 1, TILES, 2, seed=0)
    assert all(len(bag.rows_N) >= 8 for bag in bags)
    with pytest.raises(TaskInvalid, match="lacks the tiles"):
        compose(np.array([0, 0, 0]), 1, TILES, 2, seed=0)


def test_a_bag_of_a_field_is_of_its_worst_cell_and_an_empty_one_is_refused() -> None:
    sources = [SimpleNamespace(file=name) for name in ("a", "a", "b", "b", "c")]
    dataset = SimpleNamespace(sources=sources, labels_N=np.array([0, 1, 0, 0, 1]))
    indices, groups = np.arange(5), np.array(["g1", "g1", "g1", "g1", "g2"])
    kept = np.array([True, True, False, True, True])
    bags = whole(dataset, indices, groups, "image", kept)
    assert [(bag.name, bag.label, bag.group, bag.rows_N.tolist()) for bag in bags] == [
        ("a", 1, "g1", [0, 1]),
        ("b", 0, "g1", [2]),
        ("c", 1, "g2", [3]),
    ]
    assert [len(bag.rows_N) for bag in whole(dataset, indices, groups, "group", kept)] == [3, 1]
    with pytest.raises(TaskInvalid, match="The bag c holds no tile"):
        whole(dataset, indices, groups, "image", np.array([True, True, True, True, False]))


@pytest.mark.parametrize("probe", ["abmil", "transmil", "mean"])
def test_heads_learn_from_bags_of_one_tile_and_of_many(probe: str) -> None:
    rng = np.random.default_rng(0)
    bags = []
    for place in range(24):
        features = rng.normal(0, 1, (1, 1 if place % 3 == 0 else 6, 8))
        features[..., 0] += 3 * (place % 2)
        bags.append((torch.from_numpy(features.astype(np.float32)), place % 2))
    settings = Bags(epochs=6, patience=6, rate=1e-2, hidden=16, attention=8, transmil_dim=16)
    head = slide.fit(probe, bags[:12], bags[12:18], 2, settings, seed=0)
    scores, _ = slide.predict(head, bags[18:])
    assert (scores.argmax(1) == [label for _, label in bags[18:]]).mean() > 0.8
    if probe == "abmil":  # of three heads the quickest
        again, _ = slide.predict(slide.fit(probe, bags[:12], bags[12:18], 2, settings, seed=0), bags[18:])
        assert np.array_equal(scores, again)


def test_a_bag_without_tiles_cannot_be_made() -> None:
    with pytest.raises(TaskInvalid, match="case 7 holds no tile"):
        Bag("case 7", 0, "g", np.array([], np.int64))


def test_test_labels_are_read_once() -> None:
    sealed = Sealed(np.array([1, 0]))
    assert sealed.open().tolist() == [1, 0]
    assert sealed.reads == 1
    with pytest.raises(TaskInvalid, match="read twice"):
        sealed.open()


def test_parts_are_disjoint_by_group_and_the_limit_is_by_group_and_class(oral: Material) -> None:
    groups = [set(oral.dataset.groups_N[rows]) for rows in (oral.train_M, oral.validation_M, oral.cohorts[0].indices_M)]
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
    limited = gather(TaskCard(title="", kind="tile", organ="", dataset="oral", limit=1))
    assert len(limited.train_M) == len(groups[0])
    assert limited.sha256 != oral.sha256
    assert limited.split.sha256 == oral.split.sha256


def test_cohorts_divide_the_test_part_and_an_empty_one_is_refused(data: Path, oral: Material) -> None:
    card = TaskCard(title="", kind="tile", organ="", dataset="oral", cohorts=("100x", "400x"))
    parts = [cohort.indices_M for cohort in gather(card).cohorts]
    assert sorted(np.concatenate(parts)) == sorted(oral.cohorts[0].indices_M)
    with pytest.raises(TaskInvalid, match="The cohort 40x of the set oral has no items"):
        gather(card.model_copy(update={"cohorts": ("40x",)}))


def test_an_external_cohort_leaves_out_what_was_trained_on(data: Path, oral: Material) -> None:
    """The set as its own external cohort: all that is not in the test part shares a group, and is left out."""
    card = TaskCard(title="", kind="tile", organ="", dataset="oral", external=("oral",))
    cohort = gather(card).cohorts[1]
    assert sorted(cohort.indices_M) == sorted(oral.cohorts[0].indices_M)
    assert "are left out" in cohort.notes[0]
    with pytest.raises(TaskInvalid, match="other classes"):
        gather(card.model_copy(update={"external": ("consep",)}))


def test_windows_cut_an_image_and_join_again(data: Path) -> None:
    dataset, rows = load("consep"), np.array([3, 1])
    cut = windows(dataset, rows, 2)
    tiles = np.stack([cut.read(place) for place in range(8)])
    assert tiles.shape == (8, 128, 128, 3)
    joined = join_windows(tiles, 2)
    assert np.array_equal(joined, np.stack([dataset.read(3), dataset.read(1)]))
    assert len(set(cut.digests)) == 8


def test_shares_of_a_cell_sum_to_one() -> None:
    mask = np.zeros((4, 4), np.uint8)
    mask[:2, :2] = 2
    mask[0, 2] = 1
    found = shares(mask, 2, 2, 2)
    np.testing.assert_allclose(found[0, 0], [0, 0, 1])
    np.testing.assert_allclose(found[0, 1], [0.75, 0.25, 0])
    np.testing.assert_allclose(found.sum(2), 1)


def test_dice_by_hand_and_over_categories_that_are_there() -> None:
    mask = np.array([[1, 1, 0, 0]] * 4, np.uint8)
    answer = np.zeros((4, 4, 3), np.float32)
    answer[:, 0, 1] = answer[:, 1:, 0] = 1  # half of category 1 is found
    areas = overlaps([answer, answer], [mask, np.zeros_like(mask)], 2)
    assert areas[0].tolist() == [[4, 4, 8], [0, 0, 0]]
    assert mean_dice(areas[:1]) == pytest.approx(2 * 4 / 12)
    assert mean_dice(areas) == pytest.approx(2 * 4 / 16)  # a false alarm on the empty image counts
    assert np.isnan(mean_dice(areas[1:]))


def test_unreadable_images_are_counted_once_and_named() -> None:
    assert unreadable_notes(["x/b.jpg", "x/a.jpg", "x/a.jpg"]) == ("2 unreadable images were skipped: a.jpg, b.jpg",)
    assert unreadable_notes([]) == ()
