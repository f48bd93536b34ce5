"""What a typed graph's own arithmetic does to its answers, seen on a CPU before any GPU is asked.

ONNX Runtime computes fp16 and bf16 nodes in fp32 and joins them, so that nothing is rounded in between. Here each such
node is computed in fp32 and its result rounded to the low type by a pair of Casts: products summed in fp32 and stored
in 16 bits, as tensor cores do. It says nothing of TensorRT's kernels, and nothing of its order of summation.
"""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exporters import gates, shapes
from exporters.errors import GateFailed, first_line
from exporters.kinds import kind_of
from exporters.ranks import is_sorted
from exporters.targets import Engine
from training.graphs import Graph

LEAST_COSINE = {"fp16": 0.9995}
"""Bound of G3, held here already: a graph that fp16 breaks is not worth a GPU. Other precisions are measured only."""
LEAST_EQUAL = {"fp16": 0.995}
"""Least share of a graph's choices (which query speaks for a prompt) that must be those of fp32."""

_LOW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_TINY = np.finfo(np.float64).tiny


def cpu_arithmetic(graph: Graph, onnx_fp32: bytes, typed: bytes, precision: str) -> dict[str, Any]:
    """Per fp32 output at the golden inputs' sizes, against the fp32 graph: the least cosine of a row, and the largest
    difference over the largest value.

    Of integers, which are choices, the share that is equal, at the usual batch and the greatest other sizes.

    Raises GateFailed for NaN or infinite values, and outside LEAST_COSINE and LEAST_EQUAL.
    """
    engine = imitated(typed)
    inputs = shapes.inputs_of(graph, shapes.golden(graph))
    answers, due = engine(inputs), gates.onnx_runtime(onnx_fp32)(inputs)
    # Where rows are sorted by score, near ties change places: the scores alone can be compared row by row.
    ranked = kind_of(graph).ranked
    if ranked is not None and not is_sorted(due, ranked):
        ranked = None
    figures: dict[str, Any] = {}
    for spec in graph.outputs:
        if spec.datatype != "FP32" or ranked not in (None, spec.name):
            continue
        found = answers[spec.name]
        if not np.isfinite(found).all():
            raise GateFailed(f"G2: {spec.name} holds NaN or infinite values in {precision}. Build bf16 or fp32.")
        rows, reference = (array.reshape(len(array), -1).astype(np.float64) for array in (found, due[spec.name]))
        lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(reference, axis=1)
        cosine = float(((rows * reference).sum(1) / np.maximum(lengths, _TINY)).min())
        relative = float(np.abs(rows - reference).max() / max(np.abs(reference).max(), _TINY))
        figures[spec.name] = {"min_cosine": cosine, "max_abs_relative": relative}
        if not cosine >= LEAST_COSINE.get(precision, -1.0):
            raise GateFailed(
                f"G2: {spec.name} in {precision} has a worst cosine of {cosine:.6f} to fp32; the bound is "
                f"{LEAST_COSINE[precision]}.",
                figures=figures,
            )
    choices = [spec.name for spec in graph.outputs if spec.datatype != "FP32" and ranked is None]
    if choices:
        sizes = {name: dim.opt if dim is graph.batch else dim.max for name, dim in shapes.dims_of(graph).items()}
        inputs = shapes.inputs_of(graph, sizes)
        answers, due = engine(inputs), gates.onnx_runtime(onnx_fp32)(inputs)
    for name in choices:
        equal = float((answers[name] == due[name]).mean())
        figures[name] = {"equal_share": equal, "rows": due[name].size}
        if not equal >= LEAST_EQUAL.get(precision, -1.0):
            raise GateFailed(
                f"G2: {equal:.2%} of {name} in {precision} are as in fp32; the bound is {LEAST_EQUAL[precision]:.1%}.",
                figures=figures,
            )
    return figures


def imitated(typed: bytes) -> Engine:
    """A typed graph as an engine, one thread a request. Raises GateFailed where it cannot be loaded or run."""
    try:
        plain = imitation(typed)
    except onnx.shape_inference.InferenceError as error:
        raise GateFailed(f"G2: the typed graph is not valid ({first_line(error)}).") from None
    # Optimised, pairs of Casts might be taken away, and fp8 graphs with Clip are not loaded at all.
    return gates.onnx_runtime(plain, gates=("G2", "G2"), optimised=False)


def imitation(typed: bytes) -> bytes:
    """The graph with every 16-bit tensor as fp32, rounded where it is made; a graph without any is left as it is."""
    model = onnx.load_from_string(typed)
    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    low = {value.name: kind for value in inferred.value_info if (kind := value.type.tensor_type.elem_type) in _LOW}
    if not low:
        return typed
    for weight in graph.initializer:
        if weight.data_type in _LOW:
            array = numpy_helper.to_array(weight).astype(np.float32)
            weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    nodes = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type == "Cast" and node.output[0] in low:
            # Already the first of a pair.
            stored, name = f"{node.output[0]}.stored", node.output[0]
            node.output[0] = stored
            nodes.append(helper.make_node("Cast", [stored], [name], to=TensorProto.FLOAT))
            continue
        for place, name in enumerate(node.output):
            if name in low:
                node.output[place] = f"{name}.exact"
                nodes.append(helper.make_node("Cast", [f"{name}.exact"], [f"{name}.stored"], to=low[name]))
                nodes.append(helper.make_node("Cast", [f"{name}.stored"], [name], to=TensorProto.FLOAT))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return model.SerializeToString()
