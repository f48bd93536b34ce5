"""PyTorch to ONNX: opset 20, free sizes, weights as fp16 where that loses nothing, provenance stamped last."""

import logging
import math
import warnings
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript import FLOAT, opset20
from onnxscript.optimizer import fold_constants_ir
from torch import nn

from exporters.errors import ExportError, first_line
from exporters.shapes import example, inputs_of
from training.graphs import Dim, Graph

OPSET, BF16_OPSET = 20, 22
"""Convolutions in bf16 need 22. From 23 attention becomes one operator that neither runtime takes in fp32."""
_FILE_LIMIT_BYTES = (1 << 31) - (1 << 24)
"""What one protobuf message holds, less room for the nodes."""
_EXPANDED_FROM = 4096
"""Elements from which a constant that is only another one repeated is not written out."""
_HALF_FROM = 1024
"""Elements from which a weight may be stored as fp16; smaller ones are not worth a Cast."""


def _sqrt(size: FLOAT) -> FLOAT:
    return opset20.Sqrt(opset20.Cast(size, to=TensorProto.FLOAT))


_TRANSLATIONS = {torch.sym_sqrt: _sqrt}
"""Sizes that torch can trace and cannot write. TransMIL lays its N tiles on a square of side ceil(sqrt(N)); fp32 is
exact for squares below 2**24."""


class _Named(nn.Module):
    """The network with its outputs renamed at the graph's rim, so that no output shares a parameter's name."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        answer = self.network(*inputs)
        return answer if isinstance(answer, tuple) else (answer,)


def export(graph: Graph, provenance: Mapping[str, str], opset: int = OPSET) -> bytes:
    """The graph as the bytes of an ONNX file; the same network and provenance give the same bytes.

    Raises ExportError where torch cannot export the network with the sizes that the graph declares as free, and where
    the weights are more than one file holds.
    """
    sample = tuple(torch.from_numpy(array) for array in inputs_of(graph, example(graph)).values())
    # torch warns of its own deprecations, and of torchvision, which is not needed.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _Named(graph.network).eval(),
                sample,
                dynamo=True,
                opset_version=opset,
                optimize=False,
                dynamic_shapes=(_free_sizes(graph),),
                input_names=[spec.name for spec in graph.inputs],
                output_names=[spec.name for spec in graph.outputs],
                custom_translation_table=_TRANSLATIONS,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # torch raises what its tracer, its solver of sizes and its converter raise
        raise ExportError(
            f"The network of {graph.model} cannot be exported with the sizes that it declares as free: {_cause(error)}"
        ) from error
    assert program is not None
    # Only constants are folded. Fusing batch norms into convolutions, as the full optimiser does, would change weights
    # that fp16 holds exactly; the runtimes fuse them when they load the graph.
    # Types are inferred so that CastLike, which the exporter writes into attention, becomes Cast or nothing.
    fold_constants_ir(program.model, onnx_shape_inference=True, should_fold=_is_to_be_folded)
    RemoveUnusedNodesPass()(program.model)
    model = program.model_proto
    _strip(model)
    _name_sizes(model, graph)
    _halve(model)
    if sum(weight.ByteSize() for weight in model.graph.initializer) > _FILE_LIMIT_BYTES:
        raise ExportError(
            f"The weights of {graph.model} do not fit into one ONNX file, which holds 2 GiB. Round them to fp16 in "
            "training, so that they are stored as such."
        )
    helper.set_model_props(model, dict(sorted(provenance.items())))
    return model.SerializeToString(deterministic=True)


def _is_to_be_folded(node: ir.Node) -> bool | None:
    """A constant that is repeated to many times its size stays as it is, or the file would hold all its copies. None:
    as the folding sees fit."""
    shape = node.outputs[0].shape
    if node.op_type != "Expand" or shape is None or not shape.is_static():
        return None
    return False if math.prod(shape.numpy()) >= _EXPANDED_FROM else None


def _free_sizes(graph: Graph) -> tuple[dict[int, object], ...]:
    """Per input, torch's dimension for each free axis."""
    known: dict[str, object] = {}
    axes = []
    for spec in graph.inputs:
        dims = (*([graph.batch] if graph.batch else []), *spec.dims)
        axes.append({axis: _free(dim, known) for axis, dim in enumerate(dims) if isinstance(dim, Dim)})
    return tuple(axes)


def _free(dim: Dim, known: dict[str, object]) -> object:
    if dim.name not in known:
        # torch knows multiples only as products of another dimension.
        base = torch.export.Dim(
            dim.name if dim.multiple == 1 else f"{dim.name}_steps",
            min=dim.min // dim.multiple,
            max=dim.max // dim.multiple,
        )
        known[dim.name] = base if dim.multiple == 1 else dim.multiple * base
    return known[dim.name]


def _name_sizes(model: onnx.ModelProto, graph: Graph) -> None:
    """Call each free axis of the inputs what the graph calls it, and so the outputs' that are of the same size.

    Raises ExportError where torch took a size for a constant, which it does without a word.
    """
    specs, names = {spec.name: spec for spec in graph.inputs}, {}
    for value in model.graph.input:
        dims = (*([graph.batch] if graph.batch else []), *specs[value.name].dims)
        for axis, dim in zip(value.type.tensor_type.shape.dim, dims, strict=True):
            if not isinstance(dim, Dim):
                continue
            if not axis.dim_param:
                raise ExportError(
                    f"The network of {graph.model} fixes the size {dim.name} at {axis.dim_value}, which the graph "
                    "declares as free. Keep it out of int(), of the functions of math but ceil, and of conditions."
                )
            names[axis.dim_param] = dim.name
    for value in (*model.graph.input, *model.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in names:
                axis.dim_param = names[axis.dim_param]


def _cause(error: BaseException) -> str:
    """The first line of what went wrong first: the exporter wraps it twice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def _strip(model: onnx.ModelProto) -> None:
    """Remove what nobody reads or what depends on the machine: source lines, stack traces, unused weights."""
    model.doc_string = ""
    model.producer_name, model.producer_version = "pathserve", ""
    del model.metadata_props[:]
    graph = model.graph
    graph.name, graph.doc_string = "graph", ""
    del graph.metadata_props[:]
    del graph.value_info[:]
    used = {name for node in graph.node for name in node.input}
    kept = [weight for weight in graph.initializer if weight.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]


def _halve(model: onnx.ModelProto) -> None:
    """Store each large fp32 weight that fp16 represents exactly as fp16, with a Cast before its users."""
    graph = model.graph
    casts = []
    for weight in graph.initializer:
        array = numpy_helper.to_array(weight)
        if weight.data_type != TensorProto.FLOAT or array.size < _HALF_FROM:
            continue
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), array):
            continue
        name = weight.name
        weight.CopyFrom(numpy_helper.from_array(half, f"{name}.fp16"))
        casts.append(helper.make_node("Cast", [f"{name}.fp16"], [name], name=f"cast.{name}", to=TensorProto.FLOAT))
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts, *nodes])
