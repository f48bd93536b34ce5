"""Graphs in other precisions: what is rounded and what is not, and that the arithmetic is still the network's."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporters.errors import ExportError, GateFailed
from exporters.imitate import cpu_arithmetic, imitated
from exporters.lower import LOW, lower, prepare
from exporters.quantize import quantize
from exporters.shapes import inputs_of, profile
from exporters.tensorrt_gate import g2_tensorrt
from training.graphs import Arrays, Graph

pytestmark = pytest.mark.training

BITS = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def model(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], width: int = 4) -> bytes:
    """x (batch,`width`) -> y (batch,`width`), fp32."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()],
    )
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(file, {"pathserve.weights_sha256": "0" * 64})
    onnx.checker.check_model(file, full_check=True)
    return file.SerializeToString()


def types_of(file: bytes) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(onnx.load_from_string(file), strict_mode=True).graph
    return {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}


def ran(file: bytes, inputs: Arrays) -> np.ndarray:
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, inputs)[0]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_products_are_low_and_sums_norms_and_rim_are_not(encoder_engine: bytes, precision: str) -> None:
    file = lower(encoder_engine, precision)
    found = onnx.load_from_string(file)
    types = types_of(file)
    made = {node.op_type: {types[name] for name in node.output} for node in found.graph.node}
    assert made["Conv"] == made["Clip"] == {BITS[precision]}
    assert made["ReduceMean"] == made["Sqrt"] == made["Div"] == {TensorProto.FLOAT}
    assert types["embedding"] == TensorProto.FLOAT
    assert not {node.op_type for node in found.graph.node} & {"BatchNormalization", "Constant"}
    weights = {weight.name: weight.data_type for weight in found.graph.initializer}
    for node in found.graph.node:
        if node.op_type == "Conv":
            assert {weights[name] for name in node.input[1:]} == {BITS[precision]}
    stamp = {entry.key: entry.value for entry in found.metadata_props}
    assert stamp["pathserve.precision"] == precision
    assert len(stamp["pathserve.weights_sha256"]) == 64


def test_the_same_graph_gives_the_same_bytes(encoder_engine: bytes) -> None:
    assert lower(encoder_engine, "fp16") == lower(encoder_engine, "fp16")


def test_folded_norms_change_nothing_but_the_last_bits(encoder_engine: bytes, encoder_graph: Graph) -> None:
    folded = prepare(encoder_engine, 20)
    inputs = inputs_of(encoder_graph, {"batch": 2})
    due, found = ran(encoder_engine, inputs), ran(folded.SerializeToString(), inputs)
    assert np.abs(found - due).max() <= 1e-5 * np.abs(due).max()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_imitation_rounds_what_is_stored_and_sums_in_fp32(precision: str) -> None:
    def rounded(array: np.ndarray) -> np.ndarray:
        return array.astype(LOW[precision][1]).astype(np.float32)

    x, weight = (np.random.default_rng(seed).normal(0, 1, (64, 64)).astype(np.float32) for seed in (1, 2))
    file = model([helper.make_node("MatMul", ["x", "weight"], ["y"])], {"weight": weight}, width=64)
    found, exact = imitated(lower(file, precision))({"x": x})["y"], rounded(x) @ rounded(weight)
    assert np.array_equal(found, rounded(found)), "the result was not stored in 16 bits"
    assert (found == rounded(exact)).mean() > 0.999
    assert (found != exact).mean() > 0.9


def test_a_mask_that_fp16_cannot_hold_stays_fp32() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["scores"]),
        helper.make_node("Add", ["scores", "mask"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["y"], axis=-1),
    ]
    masked = model(nodes, {"weight": np.eye(4), "mask": np.array([0, -3e38, 0, -3e38])})
    types = types_of(lower(masked, "fp16"))
    assert (types["scores"], types["masked"], types["y"]) == (
        TensorProto.FLOAT16,
        TensorProto.FLOAT,
        TensorProto.FLOAT,
    )
    x = np.full((1, 4), -1e4, np.float32)
    np.testing.assert_allclose(imitated(lower(masked, "fp16"))({"x": x})["y"], [[0.5, 0, 0.5, 0]])


def test_an_output_that_is_read_inside_keeps_its_name_and_type() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["y"]),
        helper.make_node("Relu", ["y"], ["z"]),
        helper.make_node("ReduceMean", ["z"], ["unused"]),
    ]
    types = types_of(lower(model(nodes, {"weight": np.eye(4)}), "fp16"))
    assert types["y"] == TensorProto.FLOAT
    assert types["z"] == TensorProto.FLOAT16


def test_graphs_that_cannot_be_lowered_say_why() -> None:
    large = model([helper.make_node("MatMul", ["x", "weight"], ["y"])], {"weight": np.eye(4) * 1e5})
    with pytest.raises(ExportError, match=r"The weight weight does not fit into fp16\. Build it in fp32 or bf16\."):
        lower(large, "fp16")
    assert lower(large, "bf16")
    body = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["inner"])],
        "body",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    condition = numpy_helper.from_array(np.array(True), "condition")
    branch = onnx.load_from_string(large)
    branch.graph.node[0].CopyFrom(helper.make_node("If", ["condition"], ["y"], then_branch=body, else_branch=body))
    branch.graph.initializer.append(condition)
    with pytest.raises(ExportError, match="A graph with branches or loops has no strongly typed engine"):
        lower(branch.SerializeToString(), "fp16")


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_an_8_bit_encoder_has_fixed_scales_and_is_built(
    encoder_engine: bytes, encoder_graph: Graph, precision: str, tmp_path: object
) -> None:
    # Two batches of made-up tiles: enough to place the pairs, not to judge an engine by.
    batches = [inputs_of(encoder_graph, {"batch": 2}), inputs_of(encoder_graph, {"batch": 1})]
    file = quantize(encoder_engine, precision, iter(batches))
    graph = onnx.load_from_string(file).graph
    weights = {weight.name: weight for weight in graph.initializer}
    zero = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}[precision]
    pairs = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    for node in pairs:
        assert weights[node.input[2]].data_type == zero
        assert not numpy_helper.to_array(weights[node.input[2]]).any(), "symmetric"
        assert (numpy_helper.to_array(weights[node.input[1]]) > 0).all()
    made = {node.output[0]: node for node in graph.node}
    quantised = [n for n in graph.node if n.op_type == "Conv" and made.get(n.input[1], n).op_type == "DequantizeLinear"]
    assert len(pairs) == 2 * len(quantised) == 60
    kernels = {name: weight.dims for name, weight in weights.items()}
    for node in graph.node:
        if node.op_type == "Conv" and node not in quantised:
            assert min(kernels[node.input[1]][:2]) <= 16, "only thin convolutions stay fp32"
    figures = cpu_arithmetic(encoder_graph, encoder_engine, file, precision)
    assert {"int8": 0.998, "fp8": 0.95}[precision] < figures["embedding"]["min_cosine"] < 0.9999
    built = g2_tensorrt(file, profile(encoder_graph), tmp_path)
    assert built.figures["network_layers"] > 300


def test_a_graph_without_products_is_not_quantised() -> None:
    with pytest.raises(ExportError, match="no product that can be quantised to int8"):
        quantize(
            model([helper.make_node("Relu", ["x"], ["y"])], {}), "int8", iter([{"x": np.ones((1, 4), np.float32)}])
        )


def test_what_the_runtime_refuses_is_said_in_a_sentence() -> None:
    file = model([helper.make_node("MatMul", ["x", "weight"], ["y"])], {"weight": np.eye(4)})
    with pytest.raises(ExportError, match="The graph cannot be quantised"):
        quantize(file, "int8", iter([{"x": np.ones((1, 5), np.float32)}]))
    with pytest.raises(GateFailed, match="G2: ONNX Runtime cannot run the graph"):
        imitated(lower(file, "fp16"))({"x": np.ones((1, 5), np.float32)})
