"""At which sizes graphs are traced, proven and tuned."""

from dataclasses import replace

import pytest

from exporters import shapes
from tests.exporters.networks import fp32, image, made
from training.graphs import Dim

pytestmark = pytest.mark.training


def test_the_least_odd_usual_and_greatest_sizes_are_proven() -> None:
    assert shapes.proven(made("bag")) == [{"tiles": 1}, {"tiles": 7}, {"tiles": 64}, {"tiles": 5000}]
    assert shapes.proven(made("detector")) == [
        {"batch": 1, "height": 64, "width": 64},
        {"batch": 7, "height": 128, "width": 160},
        {"batch": 4, "height": 96, "width": 96},
        {"batch": 8, "height": 128, "width": 160},
    ]


def test_what_is_too_much_at_once_is_proven_one_after_another() -> None:
    side, batch = Dim("side", 64, 512, 2048, 32), Dim("batch", 1, 8, 64)
    graph = replace(made("detector"), inputs=(image(side, side),), batch=batch)
    assert shapes.proven(graph)[-2:] == [{"batch": 64, "side": 64}, {"batch": 1, "side": 2048}]
    wide = (image(replace(side, name="height", max=8192), replace(side, name="width", max=8192)),)
    assert shapes.proven(replace(graph, inputs=wide))[-3:] == [
        {"batch": 64, "height": 64, "width": 64},
        {"batch": 1, "height": 8192, "width": 64},
        {"batch": 1, "height": 64, "width": 8192},
    ]


def test_a_graph_of_one_size_is_proven_at_it() -> None:
    graph = replace(made("head"), batch=None, inputs=(fp32("embedding", 1, 16),))
    assert shapes.proven(graph) == [{}]
    assert shapes.golden(graph) == {}
    assert shapes.text({}) == "its one size"


def test_traced_sizes_are_neither_one_nor_alike() -> None:
    assert shapes.example(made("head")) == {"batch": 2}
    assert shapes.example(made("step")) == {"batch": 2, "past": 3}
    assert shapes.example(made("detector")) == {"batch": 2, "height": 64, "width": 96}


def test_golden_inputs_are_small() -> None:
    assert shapes.golden(made("encoder")) == {"batch": 3}
    assert shapes.golden(made("bag")) == {"tiles": 7}
    assert shapes.golden(made("text_encoder")) == {"batch": 3, "tokens": 7}


def test_a_profile_has_each_inputs_least_usual_and_greatest_shape() -> None:
    assert shapes.profile(made("step")) == {
        "token_ids": ((1, 1), (4, 1), (8, 1)),
        "past_key": ((1, 2, 1, 8), (4, 2, 16, 8), (8, 2, 40, 8)),
        "past_value": ((1, 2, 1, 8), (4, 2, 16, 8), (8, 2, 40, 8)),
    }
    assert shapes.profile(made("bag"))["xy_um"] == ((1, 1, 2), (1, 64, 2), (1, 5000, 2))
