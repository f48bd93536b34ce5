"""An fp32 ONNX graph to one whose products run in fp16 or bf16, with fp32 inputs and outputs: strongly typed engines
take their precision from the graph (TensorRT 11 has no other way).

Convolutions and matrix products run in the low type, and so does what only moves or combines their results. Whatever
sums many terms or grows fast (means, norms, softmax, powers, roots) and everything before the first product (pixel
scaling) stays fp32. Batch norms are folded into their convolutions first, in fp32, so that they are not rounded alone.
"""

from collections import Counter

import numpy as np
import onnx
import onnx.version_converter
from ml_dtypes import bfloat16
from onnx import TensorProto, helper, numpy_helper

from exporters.errors import ExportError, first_line

LOW = {"fp16": (TensorProto.FLOAT16, np.dtype(np.float16), 20), "bf16": (TensorProto.BFLOAT16, np.dtype(bfloat16), 22)}
"""ONNX type, numpy type and opset of each precision (convolutions take bf16 from opset 22 on)."""

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_FOLLOWERS = frozenset(
    {"Add", "AveragePool", "Clip", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Gelu", "HardSwish"}
    | {"Identity", "LeakyRelu", "MaxPool", "Mul", "Pad", "Relu", "Reshape", "Sigmoid", "Slice", "Split", "Squeeze"}
    | {"Sub", "Tanh", "Transpose", "Unsqueeze", "Where"}
)


def lower(engine: bytes, precision: str) -> bytes:
    """The graph in `precision` ("fp16" or "bf16"). Raises ExportError where a weight is too large for it."""
    model = prepare(engine, LOW[precision][2])
    _Lowering(model, precision).run()
    return finish(model, precision)


def prepare(engine: bytes, opset: int) -> onnx.ModelProto:
    """A graph of one operator set whose weights are plain fp32, with batch norms folded into their convolutions.

    Raises ExportError for control flow, and for a graph that cannot be brought to the operator set.
    """
    model = onnx.load_from_string(engine)
    if any(attribute.HasField("g") for node in model.graph.node for attribute in node.attribute):
        raise ExportError("A graph with branches or loops has no strongly typed engine. Export it without them.")
    if next(entry.version for entry in model.opset_import if not entry.domain) != opset:
        stamp = {entry.key: entry.value for entry in model.metadata_props}
        try:
            model = onnx.version_converter.convert_version(model, opset)
        except (onnx.version_converter.ConvertError, RuntimeError) as error:
            raise ExportError(f"The graph cannot be brought to opset {opset} ({first_line(error)}).") from None
        helper.set_model_props(model, stamp)
    _inline_constants(model.graph)
    _fold_norms(model.graph)
    return model


def finish(model: onnx.ModelProto, precision: str) -> bytes:
    """The bytes of a changed graph: unused weights gone, checked, its precision stamped. Raises ExportError."""
    _drop_unused(model.graph)
    del model.graph.value_info[:]
    stamp = {entry.key: entry.value for entry in model.metadata_props} | {"pathserve.precision": precision}
    helper.set_model_props(model, dict(sorted(stamp.items())))
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"The graph in {precision} is not valid ({first_line(error)}). Build another precision."
        ) from None
    return model.SerializeToString(deterministic=True)


class _Lowering:
    """One pass over a graph: a node's precision follows from those of its inputs; Casts stand where they differ."""

    def __init__(self, model: onnx.ModelProto, precision: str) -> None:
        self._graph, self._precision = model.graph, precision
        self._low, self._dtype, _ = LOW[precision]
        self._types = _float_types(model)
        self._weights = {weight.name: weight for weight in model.graph.initializer}
        self._nodes: list[onnx.NodeProto] = []
        self._made: dict[str, str | None] = {}

    def run(self) -> None:
        for node in self._graph.node:
            low = self._runs_low(node)
            for place, name in enumerate(node.input):
                if name in self._weights:
                    node.input[place] = (self._weight(name) if low and name in self._types else None) or name
                elif name in self._types:
                    node.input[place] = self._cast(name, self._low if low else TensorProto.FLOAT)
            if low:
                self._types |= {name: self._low for name in node.output if name in self._types}
            self._nodes.append(node)
        for output in self._graph.output:
            if self._types.get(output.name) == self._low:
                self._end_in_fp32(output.name)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)

    def _runs_low(self, node: onnx.NodeProto) -> bool:
        """A product always does; a follower does where all that is computed reaches it low and its constants fit."""
        floats = [name for name in node.input if name in self._types]
        constants = [name for name in floats if name in self._weights]
        computed = [name for name in floats if name not in self._weights]
        if node.op_type in _PRODUCTS:
            if large := [name for name in constants if self._weight(name) is None]:
                raise ExportError(
                    f"The weight {large[0]} does not fit into {self._precision}. Build it in fp32 or bf16."
                )
            return True
        follows = node.op_type in _FOLLOWERS and computed and all(self._types[name] == self._low for name in computed)
        return bool(follows) and all(self._weight(name) is not None for name in constants)

    def _weight(self, name: str) -> str | None:
        """The name of a weight's copy in the low type, made once; None where a value is too large for it."""
        if name not in self._made:
            with np.errstate(over="ignore"):
                array = numpy_helper.to_array(self._weights[name]).astype(self._dtype)
            fits = bool(np.isfinite(array.astype(np.float32)).all())
            self._made[name] = f"{name}.{self._precision}" if fits else None
            if fits:
                self._graph.initializer.append(numpy_helper.from_array(array, f"{name}.{self._precision}"))
        return self._made[name]

    def _cast(self, name: str, to: int) -> str:
        """A computed tensor in the type `to`, with one Cast for all its users."""
        if self._types[name] == to:
            return name
        cast = f"{name}.{self._precision if to == self._low else 'fp32'}"
        if cast not in self._made:
            self._made[cast] = cast
            self._nodes.append(helper.make_node("Cast", [name], [cast], name=f"cast.{cast}", to=to))
        return cast

    def _end_in_fp32(self, output: str) -> None:
        """An output keeps its name and fp32: inside, it gets another name, and a Cast is put behind it."""
        inner = f"{output}.{self._precision}"
        for node in self._nodes:
            for names in (node.input, node.output):
                for place, name in enumerate(names):
                    if name == output:
                        names[place] = inner
        self._nodes.append(helper.make_node("Cast", [inner], [output], name=f"cast.{inner}", to=TensorProto.FLOAT))


def _float_types(model: onnx.ModelProto) -> dict[str, int]:
    """The type of every fp32 tensor of a graph; other tensors (pixels, shapes, labels) are left as they are."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {weight.name: weight.data_type for weight in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    return {name: kind for name, kind in types.items() if kind == TensorProto.FLOAT}


def _inline_constants(graph: onnx.GraphProto) -> None:
    """Constants and half-size stored weights become plain weights: Constant nodes, and the Cast of a weight."""
    weights = {weight.name: weight for weight in graph.initializer}
    kept = []
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            array = numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type == "Cast" and node.input[0] in weights:
            to = next(item.i for item in node.attribute if item.name == "to")
            array = numpy_helper.to_array(weights[node.input[0]]).astype(helper.tensor_dtype_to_np_dtype(to))
        else:
            kept.append(node)
            continue
        weights[node.output[0]] = numpy_helper.from_array(array, node.output[0])
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(weights.values())
    _drop_unused(graph)


def _fold_norms(graph: onnx.GraphProto) -> None:
    """y = γ·(conv(x) − μ)/√(σ² + ε) + β becomes one convolution, where nobody else reads conv(x)."""
    weights = {weight.name: numpy_helper.to_array(weight) for weight in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(value.name for value in graph.output)
    makers = {node.output[0]: node for node in graph.node if node.op_type == "Conv"}
    kept = []
    for node in graph.node:
        conv = makers.get(node.input[0]) if node.op_type == "BatchNormalization" else None
        constants = (*node.input[1:], *conv.input[1:]) if conv is not None else ()
        if conv is None or readers[node.input[0]] > 1 or not all(name in weights for name in constants):
            kept.append(node)
            continue
        gamma, beta, mean, variance = (weights[name].astype(np.float64) for name in node.input[1:5])
        epsilon = next((item.f for item in node.attribute if item.name == "epsilon"), 1e-5)
        factor = gamma / np.sqrt(variance + epsilon)
        kernel = weights[conv.input[1]]
        bias = weights[conv.input[2]] if len(conv.input) > 2 else 0.0
        folded = {
            f"{node.output[0]}.weight": kernel * factor.reshape(-1, *[1] * (kernel.ndim - 1)),
            f"{node.output[0]}.bias": (bias - mean) * factor + beta,
        }
        for name, array in folded.items():
            graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
        del conv.input[1:]
        conv.input.extend(folded)
        conv.output[0] = node.output[0]
    del graph.node[:]
    graph.node.extend(kept)


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [weight for weight in graph.initializer if weight.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
