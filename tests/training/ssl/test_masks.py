import numpy as np
import pytest

from training.ssl import masks
from training.ssl.masks import sample
from training.ssl.recipe import Ibot

pytestmark = pytest.mark.training


@pytest.mark.parametrize("grid", [8, 16])
def test_half_of_the_crops_are_masked_between_the_least_and_the_most(grid: int) -> None:
    mask_GN = sample(np.random.default_rng(0), 64, grid, Ibot())
    assert mask_GN.shape == (64, grid * grid)
    shares = np.sort(mask_GN.mean(1))
    assert np.count_nonzero(shares) == 32
    masked, edges = shares[32:], np.linspace(0.1, 0.5, 33)
    assert (masked <= edges[1:]).all()
    # The sampler may stop a little below its target; over the batch that is little.
    assert masked.mean() > 0.25


def test_masked_crops_lie_anywhere_in_the_batch() -> None:
    rng = np.random.default_rng(1)
    masked = np.stack([sample(rng, 16, 8, Ibot()).any(1) for _ in range(200)])
    assert masked.mean(0).min() > 0.35
    assert masked.mean(0).max() < 0.65


def test_one_block_alone_is_a_rectangle() -> None:
    for seed in range(20):
        mask = np.zeros((16, 16), bool)
        found = masks._add_block(np.random.default_rng(seed), mask, 20, 60)
        rows, columns = mask.any(1), mask.any(0)
        assert np.array_equal(mask, np.outer(rows, columns))
        assert all(np.ptp(np.flatnonzero(line)) + 1 == line.sum() for line in (rows, columns))
        assert 0.2 < rows.sum() / columns.sum() < 5  # 0.3 to 1/0.3 before rounding
        assert 12 <= found == mask.sum() <= 60


def test_no_share_masks_nothing_and_a_seed_repeats() -> None:
    assert not sample(np.random.default_rng(0), 8, 8, Ibot(mask_share=0.0)).any()
    one, other = (sample(np.random.default_rng(5), 8, 8, Ibot()) for _ in range(2))
    assert np.array_equal(one, other)
