"""The heads as they are served: exact number of rows in the graph, standardisation and temperature folded in."""

import numpy as np
import pytest
import torch

from exporters.gates import onnx_runtime
from exporters.kinds import kind_of
from exporters.onnx_graph import export
from training.graphs import Dim, Graph, TensorSpec
from training.mil.export import synthetic_bag
from training.mil.model import SlideHead
from training.nn.mil import HeadKind

pytestmark = pytest.mark.training

WIDTH, HIDDEN, TILES = 32, 64, Dim("tiles", 1, 64, 5000)


def graph_of(kind: HeadKind) -> Graph:
    torch.manual_seed(3)
    head = SlideHead(kind, WIDTH, 2, HIDDEN).eval()
    outputs = [TensorSpec("logits", "FP32", (1, 2))]
    return Graph(
        model=f"slide_{kind}",
        kind="bag",
        network=head,
        inputs=(TensorSpec("features", "FP32", (1, TILES, WIDTH)),),
        outputs=(*outputs, TensorSpec("attention", "FP32", (1, TILES))) if head.explains else tuple(outputs),
        samples=lambda sizes: {"features": synthetic_bag(sizes["tiles"], WIDTH, 1)},
        card={},
        batch=None,
    )


@pytest.mark.parametrize("kind", ["abmil", "transmil"])
def test_the_graph_answers_any_number_of_rows_as_the_network_does(kind: HeadKind) -> None:
    graph = graph_of(kind)
    kind_of(graph)
    engine = onnx_runtime(export(graph, {}))
    for tiles in (1, 2, 50, 255, 256, 257, 4000):
        bag = synthetic_bag(tiles, WIDTH, 7)
        with torch.inference_mode():
            due = graph.network(torch.from_numpy(bag))
        found = engine({"features": bag})
        for spec, tensor in zip(graph.outputs, due if isinstance(due, tuple) else (due,), strict=True):
            np.testing.assert_allclose(found[spec.name], tensor.numpy(), rtol=1e-4, atol=1e-4)


def test_attention_is_a_share_and_one_tile_has_all_of_it() -> None:
    head = SlideHead("abmil", WIDTH, 2).eval()
    with torch.inference_mode():
        for tiles in (1, 2, 300):
            _, attention_1N = head(torch.from_numpy(synthetic_bag(tiles, WIDTH, 0)))
            assert attention_1N.shape == (1, tiles)
            assert float(attention_1N.sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kind", ["abmil", "transmil", "mean"])
def test_standardisation_and_temperature_are_folded_in(kind: HeadKind) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    head = SlideHead(kind, WIDTH, 2, HIDDEN).eval()
    mean, deviation = rng.normal(size=WIDTH).astype(np.float32), rng.uniform(0.1, 3, WIDTH).astype(np.float32)
    raw = synthetic_bag(20, WIDTH, 1)[0]
    with torch.inference_mode():
        due = head.logits((raw - mean) / deviation) / 2.5
        head.standardise(mean, deviation)
        head.soften(2.5)
        torch.testing.assert_close(head.logits(raw), due, rtol=1e-4, atol=1e-4)
