import numpy as np
import pytest

from training.ssl.masks import Blocks, sample


@pytest.mark.parametrize("grid", [8, 16])
def test_half_of_the_crops_are_masked_between_the_least_and_the_most(grid: int) -> None:
    mask_GN = sample(np.random.default_rng(0), 64, grid, Blocks())
    assert mask_GN.shape == (64, grid * grid)
    shares = np.sort(mask_GN.mean(1))
    assert np.count_nonzero(shares) == 32
    masked, edges = shares[32:], np.linspace(0.1, 0.5, 33)
    assert (masked <= edges[1:]).all()
    # The sampler may stop a little below its target; over the batch that is little.
    assert masked.mean() > 0.25


def test_masked_crops_lie_anywhere_in_the_batch() -> None:
    rng = np.random.default_rng(1)
    masked = np.stack([sample(rng, 16, 8, Blocks()).any(1) for _ in range(200)])
    assert masked.mean(0).min() > 0.35
    assert masked.mean(0).max() < 0.65


def test_one_block_alone_is_a_rectangle() -> None:
    for seed in range(20):
        blocks = Blocks(share=1.0, least=0.2, most=0.2, min_patches=51, max_patches=51)
        mask = sample(np.random.default_rng(seed), 1, 16, blocks).reshape(16, 16)
        first = _first_block(mask)
        assert 1 <= first <= 51


def _first_block(mask: np.ndarray) -> int:
    """The patches of the largest rectangle of masked ones that begins at the first masked patch."""
    top, left = np.argwhere(mask)[0]
    width = int(np.argmin(np.append(mask[top, left:], False)))
    rows = mask[top:, left : left + width].all(1)
    return width * int(np.argmin(np.append(rows, False)))


def test_no_share_masks_nothing_and_a_seed_repeats() -> None:
    assert not sample(np.random.default_rng(0), 8, 8, Blocks(share=0.0)).any()
    one, other = (sample(np.random.default_rng(5), 8, 8, Blocks()) for _ in range(2))
    assert np.array_equal(one, other)
