"""Each gate lets the committed engines through and stops a wrong one: the negative controls."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from exporters import gates
from exporters.errors import GateFailed
from exporters.kinds import KINDS, kind_of
from exporters.onnx_graph import export
from exporters.onnx_target import config_of
from tests.exporters import networks
from tests.exporters.networks import exported, made, torch_engine
from training.graphs import Arrays, Graph, TensorSpec

pytestmark = pytest.mark.training


def changed(engine: bytes, change: Callable[[onnx.ModelProto], None]) -> bytes:
    model = onnx.load_from_string(engine)
    change(model)
    return model.SerializeToString()


def scalars(model: onnx.ModelProto) -> dict[float, onnx.TensorProto]:
    """The graph's scalar constants by value, wherever they are kept."""
    held = list(model.graph.initializer)
    held += [a.t for node in model.graph.node if node.op_type == "Constant" for a in node.attribute if a.HasField("t")]
    return {float(numpy_helper.to_array(t)): t for t in held if numpy_helper.to_array(t).ndim == 0}


def test_a_committed_engine_passes(head_graph: Graph, head_engine: bytes) -> None:
    """The encoder's goes through all of them where its run is built again (test_rebuild)."""
    figures = gates.g0_export(head_engine, config_of(head_graph, "m"), KINDS["head"])
    assert figures["opset"] == 20
    parity = gates.g1_parity(gates.onnx_runtime(head_engine), head_graph, KINDS["head"])
    assert set(parity) == {f"logits at batch {batch}" for batch in (1, 7, 32, 64)}
    assert all(row["max_abs_difference"] < 1e-4 for row in parity.values())
    assert gates.g4_invariance(gates.onnx_runtime(head_engine), head_graph, KINDS["head"])["neighbours"] == 0


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
        gates.g0_export(head_engine[:-200], config_of(head_graph, "m"), KINDS["head"])


def test_operators_off_the_list_fail(head_graph: Graph, head_engine: bytes) -> None:
    def sort(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("NonZero", ["embedding"], ["places"]))

    with pytest.raises(GateFailed, match="not on its kind's list: NonZero"):
        gates.g0_export(changed(head_engine, sort), config_of(head_graph, "m"), KINDS["head"])


def test_another_opset_fails(head_graph: Graph, head_engine: bytes) -> None:
    def raise_opset(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = 23

    with pytest.raises(GateFailed, match="opset 23"):
        gates.g0_export(changed(head_engine, raise_opset), config_of(head_graph, "m"), KINDS["head"])


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
        gates.g0_export(head_engine, replace(config_of(head_graph, "tissue_head"), inputs=specs), KINDS["head"])


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
    with pytest.raises(GateFailed, match="G4: logits of an input depends on its neighbours") as caught:
        gates.g4_invariance(gates.onnx_runtime(model.SerializeToString()), head_graph, KINDS["head"])
    assert caught.value.figures == {"sizes": {"batch": 8}, "bound": 0.0, "twice": 0.0}


@pytest.mark.parametrize(
    ("name", "wrong", "sentence"),
    [
        ("encoder", lambda: networks.encoder(mean=127.0), "G1: embedding differs from the training network by"),
        ("mask_decoder", lambda: networks.mask_decoder(aligned=True), "G1: mask_logits differs"),
        ("head", lambda: networks.head(bias=1e-2), "G1: logits differs"),
        ("bag", lambda: networks.bag(ordered=True), "G1: logits differs"),
    ],
    ids=["normalisation", "resize by half a pixel", "bias", "places"],
)
def test_an_engine_of_another_network_fails_parity(name: str, wrong: Callable[[], Graph], sentence: str) -> None:
    with pytest.raises(GateFailed, match=sentence):
        gates.g1_parity(gates.onnx_runtime(exported(name)), wrong(), kind_of(made(name)))


def test_an_image_cropped_by_one_pixel_fails_parity() -> None:
    """As a resize that is off by one leaves it."""
    graph = made("detector")
    engine = torch_engine(graph)

    def shifted(inputs: Arrays) -> Arrays:
        return engine({"image": np.roll(inputs["image"], 1, axis=2)})

    gates.g1_parity(engine, graph, kind_of(graph))
    with pytest.raises(GateFailed, match="G1: "):
        gates.g1_parity(shifted, graph, kind_of(graph))


def test_few_rows_may_lie_on_the_other_side_of_a_decision() -> None:
    """Of a kind that decides inside; never all of several rows of a size."""
    graph = made("mask_decoder")
    engine, kind = torch_engine(graph), replace(kind_of(graph), undecided=0.1)

    def turned(rows: int, at: int = 8) -> gates.Engine:
        def answer(inputs: Arrays) -> Arrays:
            found = engine(inputs)
            if len(found["mask_logits"]) == at:
                found["mask_logits"][:rows] += 1
            return found

        return answer

    figures = gates.g1_parity(turned(2), graph, kind)
    assert {(row["rows"], row["rows_apart"]) for row in figures.values()} == {(1, 0), (7, 0), (4, 0), (8, 2)}
    with pytest.raises(GateFailed, match=r"G1: 3 of 20 rows differ .*; at most 10.0% may"):
        gates.g1_parity(turned(3), graph, kind)
    for failing, held in ((turned(4, at=4), kind), (turned(2), replace(kind, undecided=0.0))):
        with pytest.raises(GateFailed, match="G1: mask_logits differs from the training network by 1"):
            gates.g1_parity(failing, graph, held)


@pytest.mark.parametrize("size", [1, 64, 5000])
def test_every_size_counts(size: int) -> None:
    graph = made("bag")
    engine = torch_engine(graph)

    def wrong(inputs: Arrays) -> Arrays:
        answer = engine(inputs)
        return answer if inputs["features"].shape[1] != size else answer | {"logits": answer["logits"] + 1e-2}

    with pytest.raises(GateFailed, match=rf"G1: logits differs .* at tiles {size} "):
        gates.g1_parity(wrong, graph, kind_of(graph))


def test_a_shape_that_is_not_the_declared_one_fails() -> None:
    graph = made("step")
    present = tuple(replace(spec, dims=(2, networks.PAST, 8)) for spec in graph.outputs[1:])
    graph = replace(graph, outputs=(graph.outputs[0], *present))
    with pytest.raises(
        GateFailed, match=r"present_key at batch 1, past 1 has the shape \[1, 2, 2, 8\], .*; .* \[1, 2, 1, 8\]"
    ):
        gates.g1_parity(torch_engine(graph), graph, KINDS["step"])


def test_a_shape_that_is_not_the_networks_fails() -> None:
    """Where the network makes a size, its own is the due one."""
    graph = made("step")
    engine = torch_engine(graph)
    with pytest.raises(
        GateFailed, match=r"has the shape \[1, 2, 1, 8\], in the training network \[1, 2, 2, 8\]; .* -1"
    ):
        gates.g1_parity(
            lambda inputs: {
                name: array[:, :, -1:] if array.ndim == 4 else array for name, array in engine(inputs).items()
            },
            graph,
            KINDS["step"],
        )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_answer_that_is_no_number_fails(value: float) -> None:
    graph = made("head")
    engine = torch_engine(graph)

    def broken(inputs: Arrays) -> Arrays:
        answer = engine(inputs)
        answer["logits"][-1, 0] = value
        return answer

    with pytest.raises(GateFailed, match="G1: logits at batch 1 holds NaN or infinite values"):
        gates.g1_parity(broken, graph, kind_of(graph))


class Standardised(nn.Module):
    """Divides by a deviation over the batch, as a batch norm left in training does."""

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        return (embedding / (embedding.std(0, correction=0) + 1))[:, :3]


def test_a_batch_dependent_layer_fails() -> None:
    graph = replace(made("head"), network=Standardised().eval())
    engine = gates.onnx_runtime(export(graph, {}))
    gates.g1_parity(engine, graph, KINDS["head"])
    with pytest.raises(GateFailed, match=r"G4: logits of an input depends on its neighbours in the batch \(by "):
        gates.g4_invariance(engine, graph, KINDS["head"])


def test_an_answer_that_depends_on_the_number_of_neighbours_fails() -> None:
    graph = made("text_encoder")
    engine = torch_engine(graph)

    def counting(inputs: Arrays) -> Arrays:
        return {name: array + 1e-3 * len(array) for name, array in engine(inputs).items()}

    with pytest.raises(GateFailed, match="depends on its neighbours in the batch"):
        gates.g4_invariance(counting, graph, kind_of(graph))


def test_an_answer_that_changes_from_run_to_run_fails() -> None:
    graph, rng = made("head"), np.random.default_rng(0)
    engine = torch_engine(graph)

    def drawing(inputs: Arrays) -> Arrays:
        return {name: array + rng.normal(0, 1e-6, array.shape) for name, array in engine(inputs).items()}

    with pytest.raises(GateFailed, match="G4: logits differs between two runs on the same inputs"):
        gates.g4_invariance(drawing, graph, KINDS["head"])
    gates.g4_invariance(drawing, graph, KINDS["head"], bound=1e-4)


def test_padding_that_leaks_fails() -> None:
    gates.g4_invariance(torch_engine(made("padded_bag")), made("padded_bag"), KINDS["bag"])
    leaking = networks.padded_bag(leaks=True)
    with pytest.raises(GateFailed, match="G4: logits depends on what the padding holds"):
        gates.g4_invariance(torch_engine(leaking), leaking, KINDS["bag"])


def test_padding_of_a_fixed_length_is_held_too() -> None:
    """A prompt of always eight tokens whose caches have room for more."""
    free = made("prefill")
    graph = replace(
        free,
        inputs=tuple(replace(spec, dims=(8,)) for spec in free.inputs),
        samples=lambda sizes: free.samples(sizes | {"tokens": 8}),
    )
    engine = torch_engine(graph)

    def roomy(inputs: Arrays) -> Arrays:
        answer = engine(inputs)
        keys = np.pad(answer["present_key"], ((0, 0), (0, 0), (0, 4), (0, 0)))
        return answer | {"present_key": keys}

    figures = gates.g4_invariance(roomy, graph, KINDS["prefill"])
    assert figures["padding content"] == 0
    assert "padding length" not in figures

    def leaking(inputs: Arrays) -> Arrays:
        return roomy(inputs | {"mask": np.ones_like(inputs["mask"])})

    with pytest.raises(GateFailed, match="G4: logits depends on what the padding holds"):
        gates.g4_invariance(leaking, graph, KINDS["prefill"])


def test_padding_that_is_counted_fails() -> None:
    graph = made("padded_bag")
    engine = torch_engine(graph)

    def counting(inputs: Arrays) -> Arrays:
        answer = engine(inputs)
        return answer | {"logits": answer["logits"] / inputs["mask"].shape[1]}

    with pytest.raises(GateFailed, match="G4: logits depends on the length of the padding"):
        gates.g4_invariance(counting, graph, KINDS["bag"])


def test_an_order_that_counts_must_be_said() -> None:
    ordered = networks.bag(ordered=True)
    with pytest.raises(GateFailed, match="G4: logits depends on the order of tiles"):
        gates.g4_invariance(torch_engine(ordered), ordered, KINDS["bag"])
    said = replace(ordered, unordered=())
    assert "order of tiles" not in gates.g4_invariance(torch_engine(said), said, KINDS["bag"])


def test_a_detector_may_not_name_other_labels() -> None:
    graph = made("detector")
    engine = torch_engine(graph)

    def swapped(inputs: Arrays) -> Arrays:
        answer = engine(inputs)
        return answer | {"labels": 2 - answer["labels"]}

    with pytest.raises(GateFailed, match="G1: labels differs"):
        gates.g1_parity(swapped, graph, KINDS["detector"])


@pytest.mark.parametrize(
    ("node", "sentence"),
    [
        (("NonMaxSuppression", ["boxes", "turned"], ["kept"], ""), "kind's list: NonMaxSuppression"),
        (("Unique", ["scores"], ["kept"], ""), "kind's list: Unique"),
        (("RandomNormalLike", ["scores"], ["kept"], ""), "kind's list: RandomNormalLike"),
        (("Relu", ["scores"], ["kept"], "com.example"), "kind's list: Relu"),
    ],
)
def test_what_ends_in_another_shape_or_domain_fails(node: tuple, sentence: str) -> None:
    def add(model: onnx.ModelProto) -> None:
        operator, inputs, outputs, domain = node
        model.graph.node.append(helper.make_node("Unsqueeze", ["scores", "first"], ["turned"]))
        model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "first"))
        model.graph.node.append(helper.make_node(operator, inputs, outputs, domain=domain))
        if domain:
            model.opset_import.append(helper.make_opsetid(domain, 1))

    graph = made("detector")
    with pytest.raises(GateFailed, match=sentence):
        gates.g0_export(changed(exported("detector"), add), config_of(graph, "m"), KINDS["detector"])


def test_pixels_that_are_moved_before_they_are_cast_fail() -> None:
    def early(model: onnx.ModelProto) -> None:
        cast = next(node for node in model.graph.node if node.op_type == "Cast" and "image" in node.input)
        model.graph.node.insert(0, helper.make_node("Identity", ["image"], ["moved"]))
        cast.input[0] = "moved"

    graph = made("detector")
    with pytest.raises(GateFailed, match="G0: the UINT8 input image goes into Identity, which TensorRT refuses"):
        gates.g0_export(changed(exported("detector"), early), config_of(graph, "m"), KINDS["detector"])


def test_one_name_for_two_tensors_fails() -> None:
    """torch's exporter writes such a file without a word where an output is called like a parameter."""

    def clash(model: onnx.ModelProto) -> None:
        weight = model.graph.initializer[0]
        for node in model.graph.node:
            for names in (node.input, node.output):
                for place, name in enumerate(names):
                    if name == weight.name:
                        names[place] = "logits"
        weight.name = "logits"

    with pytest.raises(GateFailed, match="G0: inputs, outputs or weights share a name: logits"):
        gates.g0_export(changed(exported("head"), clash), config_of(made("head"), "m"), KINDS["head"])


def test_attention_as_one_operator_fails() -> None:
    """What torch writes from opset 23 on; neither runtime takes it in fp32."""
    graph = made("encoder")
    newer = export(graph, {}, 23)
    assert any(node.op_type == "Attention" for node in onnx.load_from_string(newer).graph.node)
    with pytest.raises(GateFailed, match="G0: the graph uses opset 23; in fp32, runtimes are held to 20"):
        gates.g0_export(newer, config_of(graph, "m"), KINDS["encoder"])
