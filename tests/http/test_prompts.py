"""Orders of `segmentation`: their prompts and regions through REST, the ledger and the idempotency key."""

from typing import Any

import httpx
import pytest

from gateway.analyses.ledger import Ledger
from gateway.domain.order import PointUm, RegionUm

PROMPTS = ["nuclei-level epithelial in colon pathology", "glands of the colon"]
REGION = {
    **{"x_um": 10.0, "y_um": 20.0, "width_um": 300.0, "height_um": 200.0},
    "polygon_um": [{"x_um": 10.0, "y_um": 20.0}, {"x_um": 310.0, "y_um": 20.0}, {"x_um": 10.0, "y_um": 220.0}],
}


@pytest.fixture
def asked(order: dict[str, Any]) -> dict[str, Any]:
    return order | {"protocol": "segmentation", "prompts": PROMPTS, "region": REGION}


async def test_prompts_and_region_are_kept_as_they_came(
    client: httpx.AsyncClient, asked: dict[str, Any], ledger: Ledger
) -> None:
    answer = await client.post("/v1/analyses", json=asked)
    assert answer.status_code == 202, answer.text
    kept = ledger.get(answer.json()["id"]).analysis.order
    assert kept.prompts == tuple(PROMPTS)
    assert kept.region == RegionUm(10, 20, 300, 200, (PointUm(10, 20), PointUm(310, 20), PointUm(10, 220)))
    shown = (await client.get(answer.headers["location"])).json()["order"]
    assert (shown["prompts"], shown["region"]) == (PROMPTS, REGION)


async def test_a_key_stands_for_its_prompts_and_region(client: httpx.AsyncClient, asked: dict[str, Any]) -> None:
    key = {"Idempotency-Key": "k"}
    first = await client.post("/v1/analyses", json=asked, headers=key)
    assert (await client.post("/v1/analyses", json=asked, headers=key)).json() == first.json()
    for change in ({"prompts": PROMPTS[:1]}, {"prompts": PROMPTS[::-1]}, {"region": REGION | {"polygon_um": []}}):
        answer = await client.post("/v1/analyses", json=asked | change, headers=key)
        assert (answer.status_code, answer.json()["reason"]) == (422, "idempotency-conflict")


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"prompts": []}, "invalid-order", "at least one prompt"),
    ({"prompts": [""]}, "invalid-order", "prompts.0"),
    ({"prompts": [PROMPTS[0], "unicorns"]}, "prompt-invalid", "unicorn"),
    ({"prompts": ["tissue-level nuclei-level tumor in breast"]}, "prompt-invalid", "level"),
    ({"prompts": ["x" * 10_240]}, "invalid-order", "512 characters"),
    ({"prompts": ["tumor'; DROP TABLE analyses; --"]}, "prompt-invalid", ""),
    ({"region": REGION | {"height_um": 0}}, "invalid-order", "region.height_um"),
    ({"region": REGION | {"polygon_um": REGION["polygon_um"][:2]}}, "invalid-order", "3 corners"),  # type: ignore[index]
    ({"protocol": "tissue-classification"}, "invalid-order", "no prompts"),
    ({"protocol": "tissue-classification", "prompts": []}, "invalid-order", "polygon"),
]


@pytest.mark.parametrize(("change", "reason", "words"), WRONG)
async def test_what_cannot_be_answered_is_not_accepted(
    client: httpx.AsyncClient, asked: dict[str, Any], change: dict[str, Any], reason: str, words: str
) -> None:
    answer = await client.post("/v1/analyses", json=asked | change)
    assert (answer.status_code, answer.json()["reason"]) == (422, reason), answer.text
    assert words in answer.json()["detail"]


async def test_in_a_batch_each_order_answers_for_its_own_prompts(
    client: httpx.AsyncClient, asked: dict[str, Any]
) -> None:
    orders = [{"order": asked}, *({"order": asked | change} for change, _, _ in WRONG), {"order": asked}]
    answer = await client.post("/v1/analyses:batch", json={"orders": orders})
    items = answer.json()["items"]
    assert [each["status"] for each in items] == [202, *[422] * len(WRONG), 202]
    assert [each["problem"]["reason"] for each in items[1:-1]] == [reason for _, reason, _ in WRONG]
