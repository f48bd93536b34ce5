"""The bag heads against the published implementations' numbers, and at the sizes where those break."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.training import golden
from training.nn.mil import ABMIL, MaxPool, MeanPool, TransMIL, build_head

pytestmark = pytest.mark.training


def test_abmil_equals_the_published_numbers() -> None:
    case = golden.case("abmil")
    head = ABMIL(case["in_dim"], case["classes"], case["hidden"], case["attn"]).eval()
    head.load_state_dict(golden.weights(case["weights"]))
    with torch.inference_mode():
        logits, attention = head.explain(golden.tensor(case["input"])[None])
    expected = case["expected"]
    np.testing.assert_allclose(logits[0], expected["logits"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(attention[0, :5], expected["attention_first5"], rtol=1e-4, atol=1e-6)
    assert sum(p.numel() for p in head.parameters()) == expected["n_parameters"]


def test_transmil_equals_the_published_numbers() -> None:
    case = golden.case("transmil_n50")
    head = TransMIL(case["in_dim"], case["classes"], case["dim"]).eval()
    assert sorted(head.state_dict()) == [tensor["name"] for tensor in case["weights"]["tensors"]]
    head.load_state_dict(golden.weights(case["weights"]))
    with torch.inference_mode():
        logits = head(golden.tensor(case["input"])[None])
    np.testing.assert_allclose(logits[0], case["expected"]["logits"], rtol=1e-4, atol=1e-6)
    assert sum(p.numel() for p in head.parameters()) == case["expected"]["n_parameters"]


@pytest.mark.parametrize("kind", ["abmil", "transmil", "mean", "max"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_small_bags_have_one_answer(kind: Any, count: int) -> None:
    torch.manual_seed(0)
    head = build_head(kind, 24, 3).eval()
    bag = torch.randn(1, count, 24)
    first, second = head(bag), head(bag)
    assert first.shape == (1, 3)
    assert torch.isfinite(first).all()
    assert torch.equal(first, second)


def test_one_tile_has_all_the_attention() -> None:
    torch.manual_seed(0)
    head, bag = ABMIL(24, 3).eval(), torch.randn(1, 1, 24)
    logits, attention = head.explain(bag)
    assert attention.tolist() == [[1.0]]
    torch.testing.assert_close(logits, head.classifier(head.feature(bag[:, 0])))


def test_pools_of_one_tile_agree() -> None:
    torch.manual_seed(0)
    mean, bag = MeanPool(24, 3).eval(), torch.randn(1, 1, 24)
    largest = MaxPool(24, 3).eval()
    largest.load_state_dict(mean.state_dict())
    torch.testing.assert_close(mean(bag), largest(bag))
    two = torch.cat([bag, -bag], 1)
    assert not torch.allclose(mean(two), largest(two))


def test_order_counts_for_transmil_only() -> None:
    torch.manual_seed(0)
    bag = torch.randn(1, 30, 24)
    for kind, counts in (("abmil", False), ("mean", False), ("max", False), ("transmil", True)):
        head = build_head(kind, 24, 3).eval()
        assert torch.allclose(head(bag), head(bag.flip(1)), atol=1e-6) is not counts


def test_transmil_of_a_bag_does_not_depend_on_its_neighbour() -> None:
    torch.manual_seed(0)
    head = TransMIL(24, 3, dim=64).eval()
    bags = torch.randn(2, 10, 24) * torch.tensor([1.0, 8.0])[:, None, None]
    torch.testing.assert_close(head(bags)[:1], head(bags[:1]))


def test_inverse_stays_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    attention = TransMIL(24, 3, dim=64).layer1.attn
    matrix = torch.randn(1, 8, 32, 32).softmax(-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inner = attention._inverse(matrix)
    assert torch.equal(inner, attention._inverse(matrix))
