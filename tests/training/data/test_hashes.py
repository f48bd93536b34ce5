"""One picture is known again however it was stored; two pictures are not mistaken for one."""

import time

import cv2
import numpy as np
import pytest
import simplejpeg

from training.data.hashes import JOIN_BITS, SAME_IMAGE_BITS, difference_hash, joined, near_duplicate_groups, near_pairs

pytestmark = pytest.mark.training


@pytest.fixture
def picture() -> np.ndarray:
    coarse = np.random.default_rng(3).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    return cv2.resize(coarse, (270, 240), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize(
    "change",
    [
        lambda image: simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(image, quality=40)),
        lambda image: cv2.resize(image, (135, 120), interpolation=cv2.INTER_AREA),
        lambda image: np.clip(image.astype(int) + 12, 0, 255).astype(np.uint8),
        lambda image: (255 * (image / 255.0) ** 1.2).astype(np.uint8),
    ],
    ids=["compressed", "halved", "brighter", "gamma"],
)
def test_a_picture_stored_otherwise_is_the_same_picture(picture: np.ndarray, change) -> None:
    changed = difference_hash(np.ascontiguousarray(change(picture)))
    assert np.bitwise_count(changed ^ difference_hash(picture)) <= SAME_IMAGE_BITS


def test_the_bits_say_which_cells_are_brighter_than_their_left_neighbour() -> None:
    rising = np.tile(np.arange(90, dtype=np.uint8)[None, :, None], (80, 1, 3))
    assert difference_hash(rising) == np.uint64(2**64 - 1)
    assert difference_hash(np.ascontiguousarray(rising[:, ::-1])) == 0
    assert difference_hash(np.full((83, 97, 3), 211, np.uint8)) == 0  # parts of unequal size, no false edge


def test_pairs_are_those_of_a_plain_count_of_differing_bits() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 2**63, 40, dtype=np.uint64)
    second = np.concatenate(
        [first[:5] ^ np.uint64(0b1011), first[5:8] ^ np.uint64(0b11111), rng.permutation(first[20:])]
    )
    expected = {
        (i, j)
        for i, a in enumerate(first.tolist())
        for j, b in enumerate(second.tolist())
        if bin(a ^ b).count("1") <= SAME_IMAGE_BITS
    }
    assert {tuple(pair) for pair in near_pairs(first, second, SAME_IMAGE_BITS).tolist()} == expected
    assert len(expected) == 25
    assert near_pairs(first, first[:0], 4).shape == near_pairs(first[:0], first, 4).shape == (0, 2)


def test_likeness_is_passed_on() -> None:
    assert joined(6, np.array([[4, 1], [5, 4], [2, 2]])).tolist() == [0, 1, 2, 3, 1, 1]
    rng = np.random.default_rng(1)
    one, other = (rng.integers(0, 256, (8, 9, 3)).repeat(12, 0).repeat(12, 1).astype(np.uint8) for _ in range(2))
    brighter = np.clip(one + 4.0, 0, 255).astype(np.uint8)
    assert near_duplicate_groups([one, other, brighter]).tolist() == [0, 1, 0]


def test_ten_thousand_images_are_compared_in_seconds() -> None:
    hashes = np.random.default_rng(2).integers(0, 2**63, 10_000, dtype=np.uint64)
    start = time.process_time()
    pairs = near_pairs(hashes, hashes, JOIN_BITS)
    assert time.process_time() - start < 15
    assert (pairs[:, 0] == pairs[:, 1]).sum() == 10_000
