"""The exported file: the same bytes every time, half-size weights, named sizes, provenance; nothing of the machine."""

import math

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from exporters import gates, onnx_graph, shapes
from exporters.build import stamp_of
from exporters.errors import ExportError, GateFailed
from exporters.kinds import kind_of
from exporters.onnx_graph import BF16_OPSET, export
from exporters.onnx_target import config_of
from tests.exporters import networks
from tests.exporters.conftest import ROOT
from training.graphs import Graph
from training.runs import Run

pytestmark = pytest.mark.training


def test_exporting_the_head_gives_the_committed_bytes(head_run: Run, head_graph: Graph, head_engine: bytes) -> None:
    assert export(head_graph, stamp_of(head_run, head_graph)) == head_engine


def test_exporting_twice_gives_the_same_bytes() -> None:
    assert export(networks.bag(), {}) == networks.exported("bag")


def test_weights_are_stored_as_fp16_without_loss(encoder_graph: Graph, encoder_engine: bytes) -> None:
    model = onnx.load_from_string(encoder_engine)
    stored = {weight.name: weight for weight in model.graph.initializer}
    state = encoder_graph.network.state_dict()
    large = {key: value for key, value in state.items() if value.ndim == 4 and value.numel() >= 1024}
    assert len(large) > 40
    for key, value in large.items():
        half = stored[f"network.{key}.fp16"]
        assert half.data_type == onnx.TensorProto.FLOAT16
        assert np.array_equal(onnx.numpy_helper.to_array(half).astype(np.float32), value.numpy())
    assert len(encoder_engine) < 7_200_000


def test_provenance_is_stamped(encoder_run: Run, encoder_engine: bytes) -> None:
    session = onnxruntime.InferenceSession(encoder_engine, providers=["CPUExecutionProvider"])
    stamp = session.get_modelmeta().custom_metadata_map
    assert stamp["pathserve.weights_sha256"] == encoder_run.weights_sha256
    assert stamp["pathserve.git_commit"] == encoder_run.manifest["git_commit"]
    assert stamp["pathserve.recipe_sha256"] == encoder_run.manifest["recipe_sha256"]


def test_nothing_of_the_machine_is_in_the_file(encoder_engine: bytes) -> None:
    for trace in (str(ROOT).encode(), b"/home/", b"/usr/", b"site-packages", b".py", b"stack_trace"):
        assert trace not in encoder_engine


def test_normalisation_is_in_the_graph(encoder_engine: bytes, encoder_graph: Graph) -> None:
    tile = np.full((1, 224, 224, 3), 127, np.uint8)
    session = onnxruntime.InferenceSession(encoder_engine, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": tile})
    with torch.inference_mode():
        due = encoder_graph.network.network(torch.zeros(1, 3, 224, 224))[0].mean((2, 3))
    np.testing.assert_allclose(found[:, :1280], due.numpy(), atol=1e-4)


def dims(values: object) -> dict[str, list[str | int]]:
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values
    }


def test_free_sizes_have_the_names_that_the_graph_gives_them() -> None:
    detector = onnx.load_from_string(networks.exported("detector")).graph
    assert dims(detector.input) == {"image": ["batch", "height", "width", 3]}
    assert dims(detector.output)["boxes"] == ["batch", networks.BOXES, 4]
    bag = onnx.load_from_string(networks.exported("bag")).graph
    assert dims(bag.input) == {"features": [1, "tiles", networks.WIDTH], "xy_um": [1, "tiles", 2]}
    assert dims(bag.output) == {"logits": [1, 3], "attention": [1, "tiles"]}


def test_the_side_of_a_square_is_computed_in_the_graph() -> None:
    graph = networks.made("square_bag")
    engine, due = gates.onnx_runtime(networks.exported("square_bag")), networks.torch_engine(graph)
    for tiles in (1, 2, 48, 49, 50, 4900, 4901):
        inputs = shapes.inputs_of(graph, {"tiles": tiles})
        np.testing.assert_allclose(engine(inputs)["logits"], due(inputs)["logits"], atol=1e-5)


def test_a_size_that_the_network_fixes_cannot_be_declared_free() -> None:
    class Fixed(nn.Module):
        def forward(self, features: torch.Tensor, xy_um: torch.Tensor) -> torch.Tensor:
            return features.reshape(1, -1, 4 * networks.WIDTH).mean(1)[:, :3] + xy_um.mean()

    graph = networks.graph("bag", Fixed(), networks.made("bag").inputs, [networks.fp32("logits", 1, 3)], batch=None)
    with pytest.raises(ExportError, match="tiny_bag cannot be exported with the sizes that it declares as free: "):
        export(graph, {})


def test_a_size_that_torch_takes_for_a_constant_is_named() -> None:
    class Rooted(nn.Module):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            side = math.ceil(math.sqrt(features.shape[1]))
            return torch.cat([features, features[:, : side * side - features.shape[1]]], 1).mean(1)[:, :3]

    graph = networks.graph(
        "bag", Rooted(), networks.made("square_bag").inputs, [networks.fp32("logits", 1, 3)], batch=None
    )
    with pytest.raises(
        ExportError, match="The network of tiny_bag fixes the size tiles at 2, which the graph declares"
    ):
        export(graph, {})


def test_weights_that_one_file_cannot_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graph, "_FILE_LIMIT_BYTES", 1000)
    with pytest.raises(ExportError, match="The weights of tiny_bag do not fit into one ONNX file"):
        export(networks.bag(), {})


def test_bf16_has_a_newer_opset_and_fp32_has_not() -> None:
    graph = networks.made("encoder")
    config, kind, newer = config_of(graph, "m"), kind_of(graph), export(graph, {}, BF16_OPSET)
    assert gates.g0_export(newer, config, kind, "bf16")["opset"] == 22
    gates.g1_parity(gates.onnx_runtime(newer), graph, kind)
    with pytest.raises(GateFailed, match=r"G0: the graph uses opset 22; in fp32, runtimes are held to 20\."):
        gates.g0_export(newer, config, kind)
    with pytest.raises(GateFailed, match=r"G0: the graph uses opset 20; in bf16, runtimes are held to 22\."):
        gates.g0_export(networks.exported("encoder"), config, kind, "bf16")
