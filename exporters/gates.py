"""The gates that need no server: G0 export, G1 parity, G4 invariance. Each gives its figures or raises GateFailed."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError

from exporters.config import Config, check_against_graph
from exporters.errors import ExportError, GateFailed, first_line
from exporters.kinds import Kind
from exporters.onnx_graph import BF16_OPSET, OPSET
from exporters.operators import QUANTISED
from exporters.ranks import aligned, is_sorted
from exporters.shapes import dims_of, inputs_of, odd, proven, shape_of, text
from exporters.targets import Engine
from training.graphs import Arrays, Dim, Graph, TensorSpec

Figures = dict[str, Any]

_NEIGHBOURS = 8


def onnx_runtime(model: bytes, *, gates: tuple[str, str] = ("G0", "G1"), optimised: bool = True) -> Engine:
    """An ONNX file as ONNX Runtime serves it: one thread a request, no spinning.

    Raises GateFailed, of the first of `gates` where the file cannot be loaded, of the second where it cannot be run.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises a dozen classes without a common base
        raise GateFailed(f"{gates[0]}: ONNX Runtime cannot load the graph ({first_line(error)}).") from None
    names = [output.name for output in session.get_outputs()]

    def answer(inputs: Arrays) -> Arrays:
        try:
            return dict(zip(names, session.run(names, dict(inputs)), strict=True))
        except Exception as error:  # as above
            raise GateFailed(f"{gates[1]}: ONNX Runtime cannot run the graph ({first_line(error)}).") from None

    return answer


def g0_export(engine: bytes, config: Config, kind: Kind, precision: str = "fp32") -> Figures:
    """Checker, opset, the kind's operators, names, and the config against the graph, of an ONNX file."""
    try:
        model = onnx.load_from_string(engine)
    except DecodeError as error:
        raise GateFailed(f"G0: the ONNX file is not valid ({first_line(error)}).") from None
    opset, due = {entry.domain: entry.version for entry in model.opset_import}.get(""), OPSET
    if precision == "bf16":
        due = BF16_OPSET
    if opset != due:
        raise GateFailed(f"G0: the graph uses opset {opset}; in {precision}, runtimes are held to {due}.")
    _check_names(model)
    _check_pixels(model)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GateFailed(f"G0: the ONNX file is not valid ({first_line(error)}).") from None
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


def _check_pixels(model: onnx.ModelProto) -> None:
    """TensorRT takes the values of UINT8 into a Cast and into nothing else."""
    pixels = {v.name for v in model.graph.input if v.type.tensor_type.elem_type == onnx.TensorProto.UINT8}
    for node in model.graph.node:
        if node.op_type not in ("Cast", "Shape") and (straight := sorted(pixels & set(node.input))):
            raise GateFailed(
                f"G0: the UINT8 input {straight[0]} goes into {node.op_type}, which TensorRT refuses. Make it float "
                "before anything else."
            )


def g1_parity(engine: Engine, graph: Graph, kind: Kind) -> Figures:
    """Against the training network at the least, odd, usual and greatest sizes (`shapes.proven`).

    Where the kind decides inside, its `undecided` share of all rows may differ by more, but never all of several rows
    of a size. (That a row alone is answered as it is among others is G4's.)
    """
    figures: Figures = {}
    rows, apart = 0, 0
    for sizes in proven(graph):
        inputs = inputs_of(graph, sizes)
        found, due = engine(inputs), _reference(graph, inputs)
        for spec in graph.outputs:
            declared, shape = shape_of(spec, graph, sizes), due[spec.name].shape
            if found[spec.name].shape != shape or not _fits(shape, declared):
                raise GateFailed(
                    f"G1: {spec.name} at {text(sizes)} has the shape {list(found[spec.name].shape)}, in the training "
                    f"network {list(shape)}; it is declared as {list(declared)}.",
                    figures=figures,
                )
            if not np.isfinite(found[spec.name]).all() or not np.isfinite(due[spec.name]).all():
                raise GateFailed(f"G1: {spec.name} at {text(sizes)} holds NaN or infinite values.", figures=figures)
        more: Figures = {}
        if kind.ranked and is_sorted(due, kind.ranked):
            bounds = {name: _bound(kind, array) for name, array in due.items()}
            found, given = aligned(found, due, kind.ranked, bounds)
            more = {"rows_at_the_cut": given}
        over = {spec.name: _over(spec, graph, kind, found, due) for spec in graph.outputs}
        if kind.undecided:
            apart_N = np.any([over_N for over_N, _, _ in over.values()], axis=0)
            rows, apart = rows + len(apart_N), apart + int(apart_N.sum())
            more = {"rows": len(apart_N), "rows_apart": int(apart_N.sum())}
        for name, (over_N, gap, bound) in over.items():
            figures[f"{name} at {text(sizes)}"] = {"max_abs_difference": gap, "bound": bound, **more}
            if over_N.any() and (not kind.undecided or (len(over_N) > 1 and over_N.all())):
                raise GateFailed(
                    f"G1: {name} differs from the training network by {gap:.2e} at {text(sizes)} (bound {bound:.2e}).",
                    figures=figures,
                )
    if apart > kind.undecided * rows:
        raise GateFailed(
            f"G1: {apart} of {rows} rows differ from the training network by more than their bound; at most "
            f"{kind.undecided:.1%} may.",
            figures=figures,
        )
    return figures


def _over(spec: TensorSpec, graph: Graph, kind: Kind, found: Arrays, due: Arrays) -> tuple[np.ndarray, float, float]:
    """Of an output: the rows (N,) that differ by more than the bound, the greatest difference, and the bound.

    A row is an entry of the batch and of the sizes along which entries are apart.
    """
    dims = (*([graph.batch] if graph.batch else []), *spec.dims)
    own = [isinstance(dim, Dim) and (dim == graph.batch or dim.name in graph.apart) for dim in dims]
    leading = own.index(False) if False in own else len(own)
    gap = np.abs(found[spec.name].astype(np.float64) - due[spec.name].astype(np.float64))
    gap_N = gap.reshape(int(np.prod(gap.shape[:leading])), -1).max(1, initial=0.0)
    bound = _bound(kind, due[spec.name])
    return ~(gap_N <= bound), float(gap_N.max(initial=0.0)), bound


def _fits(shape: tuple[int, ...], declared: tuple[int, ...]) -> bool:
    return len(shape) == len(declared) and all(due in (-1, size) for size, due in zip(shape, declared, strict=True))


def _reference(graph: Graph, inputs: Arrays) -> Arrays:
    with torch.inference_mode():
        answer = graph.network(*(torch.from_numpy(inputs[spec.name]) for spec in graph.inputs))
    answers = answer if isinstance(answer, tuple) else (answer,)
    return {spec.name: tensor.numpy() for spec, tensor in zip(graph.outputs, answers, strict=True)}


def g4_invariance(engine: Engine, graph: Graph, kind: Kind, bound: float = 0.0) -> Figures:
    """What must not matter does not: being asked twice, neighbours in the batch, what padding holds, order.

    Answers are equal within `bound`, 0 = bit for bit. Another number of neighbours is held to the kind's `rounding`;
    other lengths and orders, which sum in another sequence, to its parity.
    """
    sizes = {name: odd(dim) for name, dim in dims_of(graph).items()}
    if graph.batch:
        sizes["batch"] = min(_NEIGHBOURS, graph.batch.max)
    inputs = inputs_of(graph, sizes)
    first = engine(inputs)
    figures: Figures = {"sizes": sizes, "bound": bound}
    try:
        figures["twice"] = _hold(engine(inputs), first, bound, "differs between two runs on the same inputs")
        if graph.batch:
            figures |= _neighbours(engine, graph, kind, inputs, first, graph.batch, bound)
        for dim in (dim for dim in dims_of(graph).values() if dim.name in graph.apart):
            apart = _neighbours(engine, graph, kind, inputs, first, dim, bound)
            figures |= {f"{dim.name} {name}": figure for name, figure in apart.items()}
        figures |= _padding(engine, graph, kind, inputs, bound)
        for name in graph.unordered:
            figures[f"order of {name}"] = _order(engine, graph, kind, inputs, first, name)
    except GateFailed as failure:
        raise GateFailed(failure.detail, figures=figures) from None
    return figures


def _neighbours(
    engine: Engine, graph: Graph, kind: Kind, inputs: Arrays, together: Arrays, dim: Dim, bound: float
) -> Figures:
    """Three entries along a size, of a batch or of those that are apart: among quite other neighbours, and alone."""
    axes = {spec.name: _axis(spec, graph, dim) for spec in (*graph.inputs, *graph.outputs)}
    taken = {name: axis for name, axis in axes.items() if name in inputs and axis is not None}
    count = next(inputs[name].shape[axis] for name, axis in taken.items())
    of_what = "the batch" if dim is graph.batch else dim.name
    sentence = f"of an input depends on its neighbours in {of_what}"
    others, gaps, alone = {name: _other(inputs[name], axis) for name, axis in taken.items()}, [0.0], [0.0]
    for place in sorted({0, (count - 1) // 2, count - 1}):
        own = np.arange(count) == place
        among, single = dict(inputs), dict(inputs)
        for name, axis in taken.items():
            array = inputs[name]
            among[name] = np.where(_column(own, array.ndim - axis), array, others[name])
            single[name] = np.take(array, [place], axis)
        due = {name: np.take(answer, [place], axes[name]) for name, answer in together.items()}
        found = {name: np.take(answer, [place], axes[name]) for name, answer in engine(among).items()}
        gaps.append(_hold(found, due, bound, sentence))
        for name, answer in engine(single).items():
            near = max(bound, kind.rounding / kind.parity * _bound(kind, due[name]))
            alone.append(_hold({name: answer}, {name: due[name]}, near, sentence))
    return {"neighbours": max(gaps), "alone": max(alone)}


def _axis(spec: TensorSpec, graph: Graph, dim: Dim) -> int | None:
    """Where a tensor has a size, the batch counted; None where it has not."""
    dims = (*([graph.batch] if graph.batch else []), *spec.dims)
    return next((axis for axis, size in enumerate(dims) if size == dim), None)


def _padding(engine: Engine, graph: Graph, kind: Kind, inputs: Arrays, bound: float) -> Figures:
    """Where the kind has a mask: other content under it, and (for a free length) none of it, give the same answer.

    Three fifths of the length stay.
    """
    figures: Figures = {}
    slots = {spec.name: kind.slot(spec, graph) for spec in (*graph.inputs, *graph.outputs)}
    mask = next((spec for spec in graph.inputs if slots[spec.name].mask), None)
    if mask is None:
        return figures
    length, size = inputs[mask.name].shape[-1], mask.dims[-1]
    valid = max(1, length * 3 // 5)
    if isinstance(size, Dim):
        valid = max(size.min, valid // size.multiple * size.multiple)
    axes = {name: slot.masked for name, slot in slots.items() if slot.masked is not None}
    padded, other = dict(inputs), dict(inputs)
    for name, array in inputs.items():
        if name not in axes or array.shape[axes[name]] != length:
            continue
        padding = _column(np.arange(length) >= valid, -axes[name])
        if slots[name].mask:
            padded[name] = other[name] = np.where(padding, np.zeros_like(array), array)
        else:
            other[name] = np.where(padding, _other(array, axes[name]), array)
    first, second = (_valid(engine(each), axes, valid) for each in (padded, other))
    figures["padding content"] = _hold(second, first, bound, "depends on what the padding holds")
    if isinstance(size, Dim) and valid < length:
        without = {name: _cut(array, axes.get(name), valid, length) for name, array in padded.items()}
        alone = _valid(engine(without), axes, valid)
        figures["padding length"] = _near(kind, alone, first, "depends on the length of the padding")
    return figures


def _order(engine: Engine, graph: Graph, kind: Kind, inputs: Arrays, first: Arrays, name: str) -> float:
    """Shuffled along one size, the answer is the same, its rows along that size shuffled alike."""

    def shuffled(specs: tuple[TensorSpec, ...], arrays: Arrays) -> Arrays:
        turned = dict(arrays)
        for spec in specs:
            for axis, dim in enumerate(spec.dims, start=graph.batch is not None):
                if isinstance(dim, Dim) and dim.name == name:
                    order = np.random.default_rng(0).permutation(turned[spec.name].shape[axis])
                    turned[spec.name] = np.take(turned[spec.name], order, axis)
        return turned

    answer = engine(shuffled(graph.inputs, inputs))
    return _near(kind, answer, shuffled(graph.outputs, first), f"depends on the order of {name}")


def _valid(answers: Arrays, axes: Mapping[str, int], valid: int) -> Arrays:
    """The answers without what stands under the mask."""
    return {name: _cut(array, axes.get(name), valid) for name, array in answers.items()}


def _cut(array: np.ndarray, axis: int | None, valid: int, length: int | None = None) -> np.ndarray:
    if axis is None or (length is not None and array.shape[axis] != length):
        return array
    return np.ascontiguousarray(np.take(array, np.arange(min(valid, array.shape[axis])), axis))


def _hold(found: Arrays, due: Arrays, bound: float, sentence: str) -> float:
    """The greatest difference. Raises GateFailed with the output's name and `sentence`."""
    gaps = {name: gap_of(found[name], due[name]) for name in due}
    for name, gap in gaps.items():
        if not gap <= bound:
            raise GateFailed(f"G4: {name} {sentence} (by {gap:.2e}).")
    return max(gaps.values())


def _other(array: np.ndarray, axis: int) -> np.ndarray:
    """Quite other values that the input can have: the negative image, far greater features, other tokens."""
    match array.dtype.kind:
        case "f":
            return np.flip(array, axis) * np.float32(-100)
        case "u":
            return 255 - array
    return np.flip(array, axis)


def _column(flags: np.ndarray, axes: int) -> np.ndarray:
    """Flags along the first of so many axes."""
    return flags.reshape(-1, *(1,) * (axes - 1))


def _near(kind: Kind, found: Arrays, due: Arrays, sentence: str) -> float:
    """As `_hold`, within the kind's parity."""
    return max(_hold({name: found[name]}, {name: due[name]}, _bound(kind, due[name]), sentence) for name in due)


def gap_of(found: np.ndarray, due: np.ndarray) -> float:
    """Greatest absolute difference; infinite for other shapes; NaN, which no bound passes, where one is NaN."""
    if found.shape != due.shape:
        return float("inf")
    return float(np.abs(found.astype(np.float64) - due.astype(np.float64)).max(initial=0.0))


def _bound(kind: Kind, due: np.ndarray) -> float:
    """Integers must be equal; floats within the kind's parity."""
    if not np.issubdtype(due.dtype, np.floating):
        return 0.0
    return kind.parity * max(1.0, float(np.abs(due).max(initial=0.0)))
