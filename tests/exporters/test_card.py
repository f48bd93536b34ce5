"""Cards and configs: what is not as agreed is refused by its place."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from exporters.card import chain_digest, check_card
from exporters.errors import ExportError
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
