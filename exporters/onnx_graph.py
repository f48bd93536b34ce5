"""PyTorch to ONNX: opset 20, dynamic batch, weights as fp16 where that loses nothing, provenance stamped last."""

import logging
import warnings
from collections.abc import Mapping

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript.optimizer import fold_constants_ir
from torch import nn

from exporters.kinds import MAX_BATCH
from training.graphs import Graph

OPSET = 20
_HALF_FROM = 1024
"""Elements from which a weight may be stored as fp16; smaller ones are not worth a Cast."""


class _Named(nn.Module):
    """The network with its outputs renamed at the graph's rim, so that no output shares a parameter's name."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        answer = self.network(*inputs)
        return answer if isinstance(answer, tuple) else (answer,)


def export(graph: Graph, provenance: Mapping[str, str]) -> bytes:
    """The graph as the bytes of an ONNX file; the same network and provenance give the same bytes."""
    sample = tuple(torch.from_numpy(array) for array in graph.samples(2).values())
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    # torch warns of its own deprecations, and of torchvision, which is not needed.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Named(graph.network).eval(),
            sample,
            dynamo=True,
            opset_version=OPSET,
            optimize=False,
            dynamic_shapes=(tuple({0: batch} for _ in sample),),
            input_names=[spec.name for spec in graph.inputs],
            output_names=[spec.name for spec in graph.outputs],
            external_data=False,
            verbose=False,
        )
    assert program is not None
    # Only constants are folded. Fusing batch norms into convolutions, as the full optimiser does, would change weights
    # that fp16 holds exactly; the runtimes fuse them when they load the graph.
    fold_constants_ir(program.model)
    RemoveUnusedNodesPass()(program.model)
    model = program.model_proto
    _strip(model)
    _halve(model)
    helper.set_model_props(model, dict(sorted(provenance.items())))
    return model.SerializeToString(deterministic=True)


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
