"""Cards and configs: what is not as agreed is refused by its place."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from exporters.card import chain_digest, check_card
from exporters.config import EnsembleConfig, OnnxRuntimeConfig, check_config
from exporters.errors import ExportError
from tests.exporters.conftest import REPOSITORY
from training.graphs import TensorSpec

pytestmark = pytest.mark.training


@pytest.fixture
def card() -> dict[str, Any]:
    return json.loads((REPOSITORY / "tissue_head" / "card.json").read_bytes())


def test_the_committed_card_is_valid(card: dict[str, Any]) -> None:
    check_card(card)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda card: card.update(approved=True), "approved"),
        (lambda card: card["labels"][2].update(hint="x"), "hint"),
        (lambda card: card.pop("research_use"), "research_use"),
        (lambda card: card.update(research_use="for diagnosis"), "research_use"),
        (lambda card: card["data"][0].update(tier="B"), r"data\[0\]\.tier"),
        (lambda card: card["digests"].update(engine_sha256="0"), "engine_sha256"),
        (lambda card: card["labels"][0]["code"].update(code="A" * 17), r"labels\[0\]\.code"),
        (lambda card: card.update(labels=[]), "labels"),
        (lambda card: card.update(steps=["a", "b"]), "steps"),
        (lambda card: card.update(kind="oracle"), "kind"),
        (lambda card: card["labels"].reverse(), "not numbered"),
    ],
)
def test_a_card_that_is_not_as_agreed_is_refused(
    card: dict[str, Any], change: Callable[[dict[str, Any]], Any], place: str
) -> None:
    change(card)
    with pytest.raises(ExportError, match=place):
        check_card(card)


def test_chain_digest_does_not_depend_on_the_order() -> None:
    assert (
        chain_digest({"a": "1", "b": "2"}) == chain_digest({"b": "2", "a": "1"}) != chain_digest({"a": "2", "b": "1"})
    )


IMAGE = TensorSpec("image", "UINT8", (224, 224, 3))
LOGITS = TensorSpec("logits", "FP32", (7,))


def test_a_config_says_what_the_backend_needs() -> None:
    config = OnnxRuntimeConfig(name="m", inputs=(IMAGE,), outputs=(LOGITS,))
    check_config(config)
    parsed = text_format.Parse(config.text(), model_config_pb2.ModelConfig())
    assert (parsed.backend, parsed.max_batch_size) == ("onnxruntime", 64)
    assert (parsed.instance_group[0].count, parsed.instance_group[0].kind) == (
        2,
        model_config_pb2.ModelInstanceGroup.KIND_CPU,
    )
    assert parsed.parameters["intra_op_thread_count"].string_value == "1"
    assert parsed.HasField("dynamic_batching")
    assert not parsed.dynamic_batching.HasField("default_queue_policy")
    assert not parsed.runtime


def test_an_ensemble_hands_each_output_to_the_next_step() -> None:
    config = EnsembleConfig(name="e", steps=("a", "b", "c"), links=("x", "y"), inputs=(IMAGE,), outputs=(LOGITS,))
    check_config(config)
    parsed = text_format.Parse(config.text(), model_config_pb2.ModelConfig())
    maps = [(dict(step.input_map), dict(step.output_map)) for step in parsed.ensemble_scheduling.step]
    assert maps == [
        ({"image": "image"}, {"x": "x"}),
        ({"x": "x"}, {"y": "y"}),
        ({"y": "y"}, {"logits": "logits"}),
    ]


def test_a_config_that_triton_cannot_read_is_refused() -> None:
    with pytest.raises(ExportError, match="not one that Triton reads"):
        check_config(OnnxRuntimeConfig(name="m", inputs=(TensorSpec("image", "UINT24", (3,)),), outputs=(LOGITS,)))
