"""The gates that need no server: G0 export, G1 parity, G4 invariance. Each gives its figures or raises GateFailed."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError

from exporters.config import Config, check_against_graph
from exporters.errors import ExportError, GateFailed
from exporters.kinds import Kind
from exporters.onnx_graph import BF16_OPSET, OPSET
from exporters.operators import QUANTISED
from exporters.shapes import inputs_of, odd, proven, text
from exporters.targets import Engine
from training.graphs import Arrays, Dim, Graph

Figures = dict[str, Any]

_NEIGHBOURS = 8


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


def onnx_runtime(model: bytes) -> Engine:
    """An ONNX file as an engine. Raises GateFailed where it cannot be loaded, or cannot take an input."""
    loaded = session(model)
    names = [output.name for output in loaded.get_outputs()]

    def answer(inputs: Arrays) -> Arrays:
        try:
            return dict(zip(names, loaded.run(names, dict(inputs)), strict=True))
        except Exception as error:  # as above
            raise GateFailed(f"G1: ONNX Runtime cannot run the graph ({str(error).splitlines()[0][:200]}).") from None

    return answer


def g0_export(engine: bytes, config: Config, kind: Kind, precision: str = "fp32") -> Figures:
    """Checker, opset, the kind's operators, names, and the config against the graph, of an ONNX file."""
    try:
        model = onnx.load_from_string(engine)
    except DecodeError as error:
        raise GateFailed(f"G0: the ONNX file is not valid ({str(error).splitlines()[0][:200]}).") from None
    opset, due = {entry.domain: entry.version for entry in model.opset_import}.get(""), OPSET
    if precision == "bf16":
        due = BF16_OPSET
    if opset != due:
        raise GateFailed(f"G0: the graph uses opset {opset}; in {precision}, runtimes are held to {due}.")
    _check_names(model)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GateFailed(f"G0: the ONNX file is not valid ({str(error).splitlines()[0][:200]}).") from None
    used = {node.op_type for node in model.graph.node}
    allowed = kind.operators | QUANTISED if precision in ("int8", "fp8") else kind.operators
    foreign = {node.op_type for node in model.graph.node if node.domain} | {f.name for f in model.functions}
    if refused := sorted((used - allowed) | foreign):
        raise GateFailed(f"G0: the graph holds operators that are not on its kind's list: {', '.join(refused)}.")
    try:
        check_against_graph(config, model)
    except ExportError as error:
        raise GateFailed(f"G0: {error.detail}") from None
    return {"opset": opset, "operators": sorted(used), "nodes": len(model.graph.node), "bytes": len(engine)}


def _check_names(model: onnx.ModelProto) -> None:
    """No name may stand for two tensors: torch's exporter says nothing where an output is called like a parameter."""
    given = [value.name for value in (*model.graph.input, *model.graph.initializer)]
    given += [name for node in model.graph.node for name in node.output if name]
    outputs = {value.name for value in model.graph.output}
    clash = {name for name in given if given.count(name) > 1} if len(set(given)) < len(given) else set()
    clash |= outputs & {value.name for value in (*model.graph.input, *model.graph.initializer)}
    if clash:
        raise GateFailed(f"G0: inputs, outputs or weights share a name: {', '.join(sorted(clash))}. Rename them.")


def g1_parity(engine: Engine, graph: Graph, kind: Kind) -> Figures:
    """Against the training network at the least, odd, usual and greatest sizes (`shapes.proven`)."""
    figures = {}
    for sizes in proven(graph):
        inputs = inputs_of(graph, sizes)
        with torch.inference_mode():
            answer = graph.network(*(torch.from_numpy(inputs[spec.name]) for spec in graph.inputs))
        answers = answer if isinstance(answer, tuple) else (answer,)
        found = engine(inputs)
        for spec, tensor in zip(graph.outputs, answers, strict=True):
            due, place = tensor.numpy(), f"{spec.name} at {text(sizes)}"
            if not np.isfinite(found[spec.name]).all() or not np.isfinite(due).all():
                raise GateFailed(f"G1: {place} holds NaN or infinite values.")
            gap, bound = _gap(found[spec.name], due), _bound(kind, due)
            figures[place] = {"max_abs_difference": gap, "bound": bound}
            if not gap <= bound:
                raise GateFailed(
                    f"G1: {spec.name} differs from the training network by {gap:.2e} at {text(sizes)} "
                    f"(bound {bound:.2e})."
                )
    return figures


def g4_invariance(engine: Engine, graph: Graph, kind: Kind, bound: float = 0.0) -> Figures:
    """What must not matter does not: being asked twice, neighbours in the batch, padding, order.

    Answers are equal within `bound`, 0 = bit for bit; other lengths and orders sum in another sequence and are held to
    the kind's parity bound.
    """
    sizes = {dim.name: odd(dim) for dim in _free(graph)}
    if graph.batch:
        sizes["batch"] = min(_NEIGHBOURS, graph.batch.max)
    inputs = inputs_of(graph, sizes)
    first = engine(inputs)
    figures: Figures = {"sizes": sizes, "bound": bound}
    figures["twice"] = _hold(engine(inputs), first, bound, "differs between two runs on the same inputs")
    if graph.batch:
        figures["neighbours"] = _neighbours(engine, inputs, first, bound)
    return figures


def _neighbours(engine: Engine, inputs: Arrays, together: Arrays, bound: float) -> float:
    last = len(next(iter(inputs.values()))) - 1
    gaps = []
    for place in sorted({0, last // 2, last}):
        alone = engine({name: array[place : place + 1] for name, array in inputs.items()})
        due = {name: answer[place : place + 1] for name, answer in together.items()}
        gaps.append(_hold(alone, due, bound, "of an input depends on its neighbours in the batch"))
    return max(gaps)


def _free(graph: Graph) -> list[Dim]:
    return [dim for spec in graph.inputs for dim in spec.dims if isinstance(dim, Dim)]


def _hold(found: Arrays, due: Arrays, bound: float, sentence: str) -> float:
    """The greatest difference. Raises GateFailed with the output's name and `sentence`."""
    gaps = {name: _gap(found[name], due[name]) for name in due}
    for name, gap in gaps.items():
        if not gap <= bound:
            raise GateFailed(f"G4: {name} {sentence} (by {gap:.2e}).")
    return max(gaps.values())


def _gap(found: np.ndarray, due: np.ndarray) -> float:
    """Greatest absolute difference; infinite for other shapes; NaN, which no bound passes, where one is NaN."""
    if found.shape != due.shape:
        return float("inf")
    return float(np.abs(found.astype(np.float64) - due.astype(np.float64)).max(initial=0.0))


def _bound(kind: Kind, due: np.ndarray) -> float:
    """Integers must be equal; floats within the kind's parity."""
    if not np.issubdtype(due.dtype, np.floating):
        return 0.0
    return kind.parity * max(1.0, float(np.abs(due).max(initial=0.0)))
