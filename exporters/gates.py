"""The gates that need no server: G0 export, G1 parity, G4 invariance. Each gives its figures or raises GateFailed."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError

from exporters.config import OnnxRuntimeConfig, check_against_graph
from exporters.errors import ExportError, GateFailed
from exporters.kinds import MAX_BATCH, Kind
from exporters.onnx_graph import OPSET
from training.graphs import Arrays, Graph

Figures = dict[str, Any]

OPERATORS = frozenset(
    {"Add", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv", "Div"}
    | {"Expand", "Flatten", "Gather", "Gemm", "GlobalAveragePool", "Identity", "MatMul", "Mul", "Pad", "ReduceMean"}
    | {"Relu", "Reshape", "Shape", "Slice", "Sqrt", "Squeeze", "Sub", "Transpose", "Unsqueeze"}
)
"""What a graph may hold: no operator whose output shape depends on the data (NonZero, NonMaxSuppression), no control
flow, no custom domain."""

BATCHES = (1, 7, MAX_BATCH)


def session(engine: bytes) -> onnxruntime.InferenceSession:
    """ONNX Runtime as it serves: one thread, no spinning. Raises GateFailed where it cannot load the graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(engine, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises a dozen classes without a common base
        raise GateFailed(f"G0: ONNX Runtime cannot load the graph ({str(error).splitlines()[0][:200]}).") from None


def run(engine: onnxruntime.InferenceSession, inputs: Mapping[str, np.ndarray]) -> Arrays:
    names = [output.name for output in engine.get_outputs()]
    return dict(zip(names, engine.run(names, dict(inputs)), strict=True))


def g0_export(engine: bytes, config: OnnxRuntimeConfig) -> Figures:
    """Checker, operator set, allow-list, names, and the config against the graph."""
    try:
        model = onnx.load_from_string(engine)
        onnx.checker.check_model(model, full_check=True)
    except (DecodeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GateFailed(f"G0: the ONNX file is not valid ({str(error).splitlines()[0][:200]}).") from None
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets.get("") != OPSET:
        raise GateFailed(f"G0: the graph uses opset {opsets.get('')}; runtimes are held to {OPSET}.")
    used = {node.op_type for node in model.graph.node}
    foreign = {node.op_type for node in model.graph.node if node.domain} | {f.name for f in model.functions}
    if refused := sorted((used - OPERATORS) | foreign):
        raise GateFailed(f"G0: the graph holds operators that are not on the list: {', '.join(refused)}.")
    rim = {value.name for value in (*model.graph.input, *model.graph.output)}
    if clash := sorted(rim & {weight.name for weight in model.graph.initializer}):
        raise GateFailed(f"G0: inputs or outputs share a weight's name: {', '.join(clash)}.")
    try:
        check_against_graph(config, model)
    except ExportError as error:
        raise GateFailed(f"G0: {error.detail}") from None
    return {"opset": OPSET, "operators": sorted(used), "nodes": len(model.graph.node), "bytes": len(engine)}


def g1_parity(engine: bytes, graph: Graph, kind: Kind) -> Figures:
    """Against the training network at the smallest, an odd and the largest batch."""
    loaded, figures = session(engine), {}
    for batch in BATCHES:
        inputs = graph.samples(batch)
        with torch.inference_mode():
            answer = graph.network(*(torch.from_numpy(inputs[spec.name]) for spec in graph.inputs))
        answers = answer if isinstance(answer, tuple) else (answer,)
        expected = {spec.name: tensor for spec, tensor in zip(graph.outputs, answers, strict=True)}
        for name, found in run(loaded, inputs).items():
            reference = expected[name].numpy()
            bound = kind.parity * max(1.0, float(np.abs(reference).max()))
            gap = float(np.abs(found - reference).max()) if found.shape == reference.shape else float("inf")
            figures[f"{name} at batch {batch}"] = {"max_abs_difference": gap, "bound": bound}
            if not gap <= bound:
                raise GateFailed(
                    f"G1: {name} differs from the training network by {gap:.2e} at batch {batch} (bound {bound:.2e})."
                )
    return figures


def g4_invariance(engine: bytes, graph: Graph) -> Figures:
    """The same input alone, among others, and twice: bit for bit the same answer."""
    loaded = session(engine)
    inputs = graph.samples(8)
    together, again = run(loaded, inputs), run(loaded, inputs)
    last = len(next(iter(inputs.values()))) - 1
    for place in (0, 3, last):
        alone = run(loaded, {name: array[place : place + 1] for name, array in inputs.items()})
        for name, answer in alone.items():
            if not np.array_equal(answer[0], together[name][place]):
                gap = float(np.abs(answer[0] - together[name][place]).max())
                raise GateFailed(f"G4: {name} of an input depends on its neighbours in the batch (by {gap:.2e}).")
    for name, answer in again.items():
        if not np.array_equal(answer, together[name]):
            raise GateFailed(f"G4: {name} differs between two runs on the same inputs.")
    return {"batches": [1, last + 1], "bit_identical": True}
