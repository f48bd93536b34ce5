"""What a slide's model is asked and what is made of its answer, with a model of one line."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.analyses.bags import OCCLUDED_GROUPS, BagAnswer, ask, picked
from gateway.analyses.slide_half import ServedModel
from gateway.domain.report import EvidenceSource
from gateway.inference import ModelRepository
from gateway.inference.contract import TensorSpec
from gateway.operations.errors import Cancelled, InferenceError, ModelRefused
from gateway.operations.settings import Settings
from tests.support.bags import LABELS, add_slide_head
from tests.support.models import without_slide_heads

WIDTH = 4


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    """The card and contract of a head that is given its answers below."""
    repository = without_slide_heads(Settings().model_repository, tmp_path_factory.mktemp("models") / "r")
    add_slide_head(repository)
    models = ModelRepository(repository)
    return ServedModel(folder="slide_abmil", card=models.card("slide_abmil"), contract=models.contract("slide_abmil"))


class Engine:
    """Answers by a function of the batch, and keeps what it was asked."""

    def __init__(self, answer: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
        self.answer = answer
        self.batches: list[Mapping[str, Any]] = []

    async def infer(
        self, model: str, batch: Mapping[str, np.ndarray], *, deadline_s: float = 120.0
    ) -> dict[str, np.ndarray]:
        self.batches.append(batch)
        return self.answer(batch)


def bag(tiles: int) -> tuple[np.ndarray, np.ndarray]:
    """Features of which the first is 1 on tile 0 only, and places."""
    features = np.zeros((tiles, WIDTH), np.float32)
    features[0, 0] = 1
    return features, np.arange(2 * tiles, dtype=np.float32).reshape(tiles, 2)


def never() -> bool:
    return False


def mean_of_the_first(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Sure of class 1 as long as the tile with a 1 is there."""
    return {"logits": np.array([[0, 9 * batch["features"][0, :, 0].max(), 0]], np.float32)}


async def test_attention_becomes_parts_of_a_whole(head: ServedModel) -> None:
    engine = Engine(lambda batch: {"logits": np.zeros((1, 3)), "attention": np.array([[2.0, 0, 6.0]])})
    answer = await ask(head, *bag(3), engine, cancelled=never)
    assert answer.weights_M.tolist() == [0.25, 0, 0.75]
    assert answer.evidence is EvidenceSource.ATTENTION
    assert answer.probabilities_C == pytest.approx([1 / 3] * 3)
    assert list(engine.batches[0]) == ["features"], "no input that the model does not list"


async def test_without_attention_what_is_missed_weighs(head: ServedModel) -> None:
    engine = Engine(mean_of_the_first)
    tiles = 5 * OCCLUDED_GROUPS
    answer = await ask(head, *bag(tiles), engine, cancelled=never)
    assert answer.evidence is EvidenceSource.OCCLUSION
    assert len(engine.batches) == 1 + OCCLUDED_GROUPS
    assert answer.weights_M[:5] == pytest.approx([0.2] * 5)
    assert answer.weights_M[5:].sum() == 0
    assert {batch["features"].shape for batch in engine.batches[1:]} == {(1, tiles - 5, WIDTH)}


async def test_a_cancelled_analysis_asks_no_more(head: ServedModel) -> None:
    engine = Engine(mean_of_the_first)
    with pytest.raises(Cancelled):
        await ask(head, *bag(9), engine, cancelled=lambda: len(engine.batches) == 3)
    assert len(engine.batches) == 3


async def test_one_tile_weighs_all_whichever_way(head: ServedModel) -> None:
    for answered in (mean_of_the_first, lambda batch: mean_of_the_first(batch) | {"attention": np.zeros((1, 1))}):
        engine = Engine(answered)
        answer = await ask(head, *bag(1), engine, cancelled=never)
        assert answer.weights_M.tolist() == [1.0]
        assert len(engine.batches) == 1


async def test_where_nothing_is_missed_all_weigh_the_same(head: ServedModel) -> None:
    answer = await ask(head, *bag(4), Engine(lambda batch: {"logits": np.array([[0, 1, 0]])}), cancelled=never)
    assert answer.weights_M.tolist() == [0.25] * 4


async def test_places_and_a_mask_are_given_where_they_are_asked_for(head: ServedModel) -> None:
    more = (TensorSpec("xy_um", "FP32", (1, -1, 2)), TensorSpec("mask", "INT64", (1, -1)))
    model = replace(head, contract=replace(head.contract, inputs=(*head.contract.inputs, *more)))
    engine = Engine(mean_of_the_first)
    features, xy_um = bag(3)
    await ask(model, features, xy_um, engine, cancelled=never)
    np.testing.assert_array_equal(engine.batches[0]["xy_um"][0], xy_um)
    np.testing.assert_array_equal(engine.batches[0]["mask"], np.ones((1, 3), np.int64))
    assert engine.batches[0]["mask"].dtype == np.int64
    np.testing.assert_array_equal(engine.batches[1]["xy_um"][0], xy_um[1:])


async def test_what_no_gateway_has_is_refused(head: ServedModel) -> None:
    more = TensorSpec("gamma", "FP32", (1, 8))
    model = replace(head, contract=replace(head.contract, inputs=(*head.contract.inputs, more)))
    with pytest.raises(ModelRefused, match="asks for gamma"):
        await ask(model, *bag(3), Engine(mean_of_the_first), cancelled=never)


async def test_another_number_of_classes_is_an_error(head: ServedModel) -> None:
    with pytest.raises(InferenceError, match="another number of classes"):
        await ask(head, *bag(3), Engine(lambda batch: {"logits": np.zeros((1, len(LABELS) + 1))}), cancelled=never)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"logits": np.array([[0, np.nan, 0]])}, "no finite number"),
        ({"logits": np.zeros((1, 3)), "attention": np.array([[1, np.inf, 0]])}, "no finite number"),
        ({"logits": np.zeros((1, 3)), "attention": np.ones((1, 2))}, "another number of tiles"),
    ],
    ids=["logits", "attention", "too few"],
)
async def test_an_answer_that_means_nothing_is_an_error(head: ServedModel, answer: dict[str, Any], words: str) -> None:
    with pytest.raises(InferenceError, match=words):
        await ask(head, *bag(3), Engine(lambda batch: answer), cancelled=never)


def test_a_large_slide_is_thinned_out_evenly() -> None:
    def in_a_row(tiles: int, most: int) -> np.ndarray:
        return picked(np.zeros(tiles, np.int32), np.arange(tiles, dtype=np.int32), most)

    assert in_a_row(5, 8).tolist() == [0, 1, 2, 3, 4]
    assert in_a_row(8, 4).tolist() == [0, 2, 4, 6]
    for tiles, most in ((100_003, 4096), (9, 8), (2, 1)):
        chosen = in_a_row(tiles, most)
        assert len(chosen) == most
        assert (np.diff(chosen) >= 1).all()
        assert np.diff(chosen, append=tiles).max() <= 2 * tiles / most


def test_a_bag_is_in_row_major_order_whatever_the_order_of_reading() -> None:
    """The plan goes by strips of columns; a head to whom order matters was trained on rows."""
    rows_N, columns_N = np.array([0, 1, 0, 1, 0, 1], np.int32), np.array([0, 0, 1, 1, 2, 2], np.int32)
    assert picked(rows_N, columns_N, 9).tolist() == [0, 2, 4, 1, 3, 5]
    assert picked(rows_N, columns_N, 3).tolist() == [0, 4, 3]


def test_an_answer_is_found_again_only_for_what_it_belongs_to(tmp_path: Path) -> None:
    path = tmp_path / "bag.npz"
    answer = BagAnswer(np.array([0.1, 0.9]), np.array([0.5, 0.5]), EvidenceSource.OCCLUSION)
    assert BagAnswer.load(path, {"a": 1}) is None
    answer.save(path, {"a": 1})
    again = BagAnswer.load(path, {"a": 1})
    assert again is not None
    assert (again.probabilities_C.tolist(), again.weights_M.tolist()) == ([0.1, 0.9], [0.5, 0.5])
    assert again.evidence is EvidenceSource.OCCLUSION
    assert BagAnswer.load(path, {"a": 2}) is None
    whole = path.read_bytes()
    for damaged in (b"", whole[:-30], whole.replace(np.float64(0.9).tobytes(), np.float64(0.8).tobytes())):
        path.write_bytes(damaged)
        assert BagAnswer.load(path, {"a": 1}) is None
