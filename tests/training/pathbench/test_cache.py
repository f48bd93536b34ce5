"""The feature cache: each image once, by content, whatever is killed; unreadable images named."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from training.errors import DataMissing, ResultInvalid
from training.pathbench import encoders
from training.pathbench.cache import FeatureCache, Items
from training.pathbench.encoders import Encoder

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATHSERVE_RUNS", str(tmp_path_factory.mktemp("runs")))
        return encoders.build("colour-histogram")


def pictures(count: int, broken: tuple[int, ...] = ()) -> tuple[Items, list[int]]:
    """Images of one colour each, and the list of those that are read, as they are."""
    read: list[int] = []

    def one(place: int) -> np.ndarray:
        read.append(place)
        if place in broken:
            raise DataMissing("It cannot be read.")
        return np.full((32, 32, 3), 4 * place, np.uint8)

    return Items([f"digest {k}" for k in range(count)], one, [f"folder/{k}.jpg" for k in range(count)]), read


def test_an_image_is_read_once_and_its_row_is_the_encoders(encoder: Encoder, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "features.sqlite")
    items, read = pictures(20)
    first, _ = cache.embeddings(encoder, items)
    assert read == list(range(20))
    second, _ = FeatureCache(tmp_path / "features.sqlite").embeddings(encoder, items)
    assert read == list(range(20))
    assert np.array_equal(first, second)
    assert np.array_equal(first[3:4], encoder.embed([items.read(3)]))


def test_an_unreadable_image_is_skipped_named_and_tried_again(
    encoder: Encoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = FeatureCache(tmp_path / "features.sqlite")
    items, _ = pictures(5, broken=(2,))
    features, skipped = cache.embeddings(encoder, items)
    assert skipped == ("folder/2.jpg",)
    assert np.isnan(features).all(1).tolist() == [False, False, True, False, False]
    assert "folder/2.jpg is skipped" in caplog.text
    mended, _ = pictures(5)
    features, skipped = cache.embeddings(encoder, mended)
    assert skipped == ()
    assert np.isfinite(features).all()


def test_nothing_readable_is_an_error(encoder: Encoder, tmp_path: Path) -> None:
    items, _ = pictures(2, broken=(0, 1))
    with pytest.raises(ResultInvalid, match="no features"):
        FeatureCache(tmp_path / "features.sqlite").embeddings(encoder, items)


def test_other_weights_or_another_transform_have_rows_of_their_own(encoder: Encoder, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "features.sqlite")
    items, read = pictures(3)
    for meta in (encoder.meta, replace(encoder.meta, checksum="0" * 64), replace(encoder.meta, transform="another")):
        cache.embeddings(replace(encoder, meta=meta, transform=_As(encoder, meta.transform)), items)
    assert read == [0, 1, 2] * 3


class _As:
    """The encoder's own transform under another name: what the record says, not what it does."""

    def __init__(self, encoder: Encoder, name: str) -> None:
        self._encoder, self._name = encoder, name

    def __call__(self, image: np.ndarray) -> object:
        return self._encoder.transform(image)

    def __str__(self) -> str:
        return self._name


def test_numbers_that_are_not_finite_are_refused(encoder: Encoder, tmp_path: Path) -> None:
    class Broken:
        meta = encoder.meta

        def embed(self, images: list[np.ndarray], batch: int) -> np.ndarray:
            return np.full((len(images), 4), np.inf, np.float32)

    items, _ = pictures(2)
    with pytest.raises(ResultInvalid, match="not finite"):
        FeatureCache(tmp_path / "features.sqlite").embeddings(Broken(), items)  # type: ignore[arg-type]


def test_two_may_fill_it_at_once(encoder: Encoder, tmp_path: Path) -> None:
    items, _ = pictures(60)
    found: list[np.ndarray] = []

    def fill() -> None:
        found.append(FeatureCache(tmp_path / "features.sqlite").embeddings(encoder, items)[0])

    threads = [threading.Thread(target=fill) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert all(np.array_equal(each, found[0]) for each in found)
