"""Each gate lets the committed engines through and stops a wrong one: the negative controls."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporters import gates
from exporters.config import OnnxRuntimeConfig
from exporters.errors import ExportError, GateFailed
from exporters.kinds import KINDS, kind_of
from training.graphs import Graph, TensorSpec

pytestmark = pytest.mark.training


def config_of(graph: Graph) -> OnnxRuntimeConfig:
    return OnnxRuntimeConfig(
        name=graph.model, inputs=graph.inputs, outputs=graph.outputs, max_batch_size=graph.max_batch_size
    )


def changed(engine: bytes, change: Callable[[onnx.ModelProto], None]) -> bytes:
    model = onnx.load_from_string(engine)
    change(model)
    return model.SerializeToString()


def scalars(model: onnx.ModelProto) -> dict[float, onnx.TensorProto]:
    """The graph's scalar constants by value, wherever they are kept."""
    held = list(model.graph.initializer)
    held += [a.t for node in model.graph.node if node.op_type == "Constant" for a in node.attribute if a.HasField("t")]
    return {float(numpy_helper.to_array(t)): t for t in held if numpy_helper.to_array(t).ndim == 0}


def test_the_committed_engines_pass(encoder_graph: Graph, encoder_engine: bytes) -> None:
    figures = gates.g0_export(encoder_engine, config_of(encoder_graph), KINDS["encoder"])
    assert figures["opset"] == 20
    parity = gates.g1_parity(gates.onnx_runtime(encoder_engine), encoder_graph, KINDS["encoder"])
    assert set(parity) == {f"embedding at batch {batch}" for batch in (1, 7, 32, 64)}
    assert all(row["max_abs_difference"] < 1e-4 for row in parity.values())
    assert gates.g4_invariance(gates.onnx_runtime(encoder_engine), encoder_graph, KINDS["encoder"])["neighbours"] == 0


def test_a_swapped_weight_fails_parity(encoder_graph: Graph, encoder_engine: bytes) -> None:
    def swap(model: onnx.ModelProto) -> None:
        weights = {weight.name: weight for weight in model.graph.initializer}
        first, second = (weights[f"network.network._blocks.{k}._depthwise_conv.weight.fp16"] for k in (9, 10))
        assert first.dims == second.dims
        first.raw_data, second.raw_data = second.raw_data, first.raw_data

    with pytest.raises(GateFailed, match=r"G1: embedding differs from the training network by .* at batch 1"):
        gates.g1_parity(gates.onnx_runtime(changed(encoder_engine, swap)), encoder_graph, KINDS["encoder"])


@pytest.mark.parametrize(("right", "wrong"), [(127.0, 128.0), (128.0, 127.5)])
def test_a_wrong_normalisation_fails_parity(
    encoder_graph: Graph, encoder_engine: bytes, right: float, wrong: float
) -> None:
    def shift(model: onnx.ModelProto) -> None:
        tensor = scalars(model)[right]
        tensor.CopyFrom(numpy_helper.from_array(np.array(wrong, np.float32), tensor.name))

    with pytest.raises(GateFailed, match="G1"):
        gates.g1_parity(gates.onnx_runtime(changed(encoder_engine, shift)), encoder_graph, KINDS["encoder"])


def test_one_flipped_bit_of_a_weight_fails_parity(head_graph: Graph, head_engine: bytes) -> None:
    def flip(model: onnx.ModelProto) -> None:
        weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        data = bytearray(weight.raw_data)
        data[3] ^= 0x20
        weight.raw_data = bytes(data)

    with pytest.raises(GateFailed, match="G1"):
        gates.g1_parity(gates.onnx_runtime(changed(head_engine, flip)), head_graph, KINDS["head"])


def test_a_truncated_file_fails(head_graph: Graph, head_engine: bytes) -> None:
    with pytest.raises(GateFailed, match="G0"):
        gates.g0_export(head_engine[:-200], config_of(head_graph), KINDS["head"])


def test_operators_off_the_list_fail(head_graph: Graph, head_engine: bytes) -> None:
    def sort(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("NonZero", ["embedding"], ["places"]))

    with pytest.raises(GateFailed, match="not on its kind's list: NonZero"):
        gates.g0_export(changed(head_engine, sort), config_of(head_graph), KINDS["head"])


def test_another_opset_fails(head_graph: Graph, head_engine: bytes) -> None:
    def raise_opset(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = 23

    with pytest.raises(GateFailed, match="opset 23"):
        gates.g0_export(changed(head_engine, raise_opset), config_of(head_graph), KINDS["head"])


@pytest.mark.parametrize(
    ("specs", "sentence"),
    [
        ((TensorSpec("features", "FP32", (1584,)),), r"inputs of tissue_head are \['embedding'\]"),
        ((TensorSpec("embedding", "UINT8", (1584,)),), "embedding of tissue_head is not UINT8"),
        ((TensorSpec("embedding", "FP32", (1024,)),), "has the dimensions"),
    ],
)
def test_a_config_that_is_not_the_graphs_fails(
    head_graph: Graph, head_engine: bytes, specs: tuple[TensorSpec, ...], sentence: str
) -> None:
    with pytest.raises(GateFailed, match=sentence):
        gates.g0_export(head_engine, replace(config_of(head_graph), inputs=specs), KINDS["head"])


def test_an_answer_that_depends_on_its_neighbours_fails(head_graph: Graph) -> None:
    """A quantisation scale taken over the batch does this."""
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.normal(0, 1, (1584, 7)).astype(np.float32), "w")
    nodes = [
        helper.make_node("ReduceMean", ["embedding"], ["scale"], keepdims=0),
        helper.make_node("Div", ["embedding", "scale"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "w"], ["logits"]),
    ]
    rim = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", d]) for n, d in (("embedding", 1584), ("logits", 7))
    ]
    graph = helper.make_graph(nodes, "graph", rim[:1], rim[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(GateFailed, match="G4: logits of an input depends on its neighbours"):
        gates.g4_invariance(gates.onnx_runtime(model.SerializeToString()), head_graph, KINDS["head"])


def test_a_graph_must_be_what_its_kind_is(head_graph: Graph) -> None:
    with pytest.raises(ExportError, match="kind encoder has"):
        kind_of(replace(head_graph, kind="encoder"))
    with pytest.raises(ExportError, match="known kinds are encoder, head"):
        kind_of(replace(head_graph, kind="oracle"))
