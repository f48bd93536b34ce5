"""Cards and configs: what is not as agreed is refused by its place."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from exporters.card import build_card, chain_digest, check_card, golden_tolerance
from exporters.errors import ExportError
from exporters.kinds import KINDS
from tests.exporters.conftest import REPOSITORY

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
        (lambda card: card.update(name="tissue-head"), "name"),
        (lambda card: card.update(target="npu"), "target"),
        (lambda card: card.update(precision="fp4"), "precision"),
        (lambda card: card.update(not_executed=""), "not_executed"),
        (lambda card: card["operating_points"][0].pop("band"), r"operating_points\[0\].*band"),
        (lambda card: card.update(golden_tolerance=0.5), "golden_tolerance"),
        (lambda card: card["labels"].reverse(), "not numbered"),
    ],
)
def test_a_card_that_is_not_as_agreed_is_refused(
    card: dict[str, Any], change: Callable[[dict[str, Any]], Any], place: str
) -> None:
    change(card)
    with pytest.raises(ExportError, match=place):
        check_card(card)


OTHER = {"model": "another", "weights_sha256": "0" * 64}
TOKENS = {"tokenizer_sha256": "0" * 64, "max_tokens": 77, "vocabulary_size": 500}
CODE = {"code": "NUCLEI", "scheme": "99PATHSERVE", "display": "Nuclei"}
PROMPT = {"text": "nuclei", "category": CODE, "code": CODE, "supported": True, "dice": None, "train_images": 0}
BLOCKS = {
    "encoder": {"embedding_size": 8},
    "head": {"encoder": OTHER},
    "bag": {"encoder": OTHER, "feature_size": 8, "tiles": [1, 20000]},
    "detector": {"overlap_px": 32, "score_threshold": 0.3, "nms_iou": 0.5},
    "image_encoder": {"stride_px": 4},
    "mask_decoder": {
        "image_encoder": OTHER,
        "text_encoder": OTHER,
        "prompts": {"table_sha256": "0" * 64, "entries": [PROMPT]},
        "mpp_by_level": {"tissue": 1.0, "cell": 0.25, "nuclei": 0.25},
        "presence_by_level": {key: {"threshold": 0.5, "temperature": 1.0} for key in ("tissue", "cell", "nuclei")},
        **TOKENS,
    },
    "text_encoder": TOKENS,
    "prefill": TOKENS,
    "step": TOKENS | {"prefill": OTHER},
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_its_block_in_the_schema(card: dict[str, Any], kind: str) -> None:
    shared = {"labels", "operating_points"}
    assert set(KINDS[kind].card) - shared == set(BLOCKS[kind])
    del card["encoder"]
    whole = card | {"kind": kind} | BLOCKS[kind]
    if not shared & set(KINDS[kind].card):
        whole |= {"labels": [], "operating_points": []}
    check_card(whole)
    for field in BLOCKS[kind]:
        with pytest.raises(ExportError, match=field):
            check_card({key: value for key, value in whole.items() if key != field})


def test_a_detector_of_an_earlier_release_may_still_name_cells_of_a_slide(card: dict[str, Any]) -> None:
    del card["encoder"]
    whole = card | {"kind": "detector"} | BLOCKS["detector"]
    check_card(whole | {"top_k": 20})
    with pytest.raises(ExportError, match="top_k"):
        check_card(whole | {"top_k": 0})


def test_chain_digest_does_not_depend_on_the_order() -> None:
    assert (
        chain_digest({"a": "1", "b": "2"}) == chain_digest({"b": "2", "a": "1"}) != chain_digest({"a": "2", "b": "1"})
    )


def test_a_lower_precision_has_a_tolerance_of_its_own_scale() -> None:
    answers = {"embedding": np.array([[-20.0, 3.0]], np.float32)}
    assert golden_tolerance("fp32", answers) == 1e-3
    assert golden_tolerance("fp16", answers) == 1.0
    assert golden_tolerance("bf16", answers) == 4.0


def test_a_point_keeps_the_band_that_its_run_says(card: dict[str, Any]) -> None:
    texts = {key: card[key] for key in ("title", "mpp", "tile_px", "labels", "intended_use", "limits", "data")}
    texts |= {"pretraining": [], "metrics": []}
    points = [{"name": "a", "min_probability": 0.7, "origin": "-"}]
    points.append(points[0] | {"band": 0.05})
    built = build_card(
        model="m",
        version="2",
        kind="head",
        target="cpu",
        precision="bf16",
        texts=texts | {"operating_points": points},
        digests=card["digests"],
        golden_tolerance=1.0,
        encoder=card["encoder"],
    )
    assert [point["band"] for point in built["operating_points"]] == [0.02, 0.05]
    assert (built["name"], built["version"]) == ("m", "2")
