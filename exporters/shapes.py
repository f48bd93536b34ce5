"""The sizes at which a graph is exported, proven and tuned."""

from collections.abc import Mapping

import numpy as np
from tritonclient.utils import triton_to_np_dtype

from exporters.errors import ExportError
from training.graphs import Arrays, Dim, Graph, TensorSpec

Sizes = dict[str, int]
"""The batch and each Dim of a graph, by name."""

AFFORDABLE_ELEMENTS = 1 << 26
"""Elements of all inputs together up to which the largest sizes are run at once, and not one after another."""
GOLDEN_ELEMENTS = 1 << 20
"""Elements of all golden inputs and answers together up to which there are three rows of them."""


def dims_of(graph: Graph) -> dict[str, Dim]:
    """Every size that the caller chooses, by name, the batch first."""
    dims = {graph.batch.name: graph.batch} if graph.batch else {}
    return dims | {dim.name: dim for spec in graph.inputs for dim in spec.dims if isinstance(dim, Dim)}


def shape_of(spec: TensorSpec, graph: Graph, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """A tensor's whole shape at some sizes, the batch first; -1 where the network makes the size."""
    dims = (*([graph.batch] if graph.batch else []), *spec.dims)
    return tuple(sizes[dim.name] if isinstance(dim, Dim) else dim for dim in dims)


def inputs_of(graph: Graph, sizes: Mapping[str, int]) -> Arrays:
    """The graph's samples at these sizes, in its inputs' order. Raises ExportError where they are not as declared."""
    samples = graph.samples(sizes)
    for spec in graph.inputs:
        array, wanted = samples.get(spec.name), shape_of(spec, graph, sizes)
        if array is None or array.shape != wanted or array.dtype != triton_to_np_dtype(spec.datatype):
            found = "nothing" if array is None else f"{array.dtype} {list(array.shape)}"
            raise ExportError(
                f"The samples of {graph.model} give {found} for the input {spec.name} at {text(sizes)}; it is declared "
                f"as {spec.datatype} {list(wanted)}."
            )
    return {spec.name: np.ascontiguousarray(samples[spec.name]) for spec in graph.inputs}


def proven(graph: Graph) -> list[Sizes]:
    """Sizes for the gates: all at their least, small odd ones, the usual ones, and the greatest.

    Where all the greatest at once are more than AFFORDABLE_ELEMENTS, the greatest batch is run with the least of the
    rest and the rest at its greatest with the least batch; where that is still too much, each size alone.
    """
    dims = dims_of(graph)
    least = {name: dim.min for name, dim in dims.items()}
    rest = {name: dim.max for name, dim in dims.items() if dim is not graph.batch}
    batch = {dim.name: dim.max for dim in [graph.batch] if dim}
    greatest = [batch | rest]
    if _elements(graph, least | batch | rest) > AFFORDABLE_ELEMENTS:
        greatest = [batch, rest]
        if _elements(graph, least | rest) > AFFORDABLE_ELEMENTS:
            greatest = [batch, *({name: size} for name, size in rest.items())]
    usual = {name: dim.opt for name, dim in dims.items()}
    if _elements(graph, usual) > AFFORDABLE_ELEMENTS:
        usual = least | {name: size for name, size in usual.items() if name not in batch}
    asked = [least, {name: odd(dim) for name, dim in dims.items()}, usual, *(least | sizes for sizes in greatest)]
    return [sizes for place, sizes in enumerate(asked) if sizes not in asked[:place]]


def golden(graph: Graph) -> Sizes:
    """Small sizes for the golden inputs, which lie in the repository: smaller ones for maps of many channels."""
    dims = dims_of(graph)
    sizes = {name: odd(dim) for name, dim in dims.items()}
    sizes |= {"batch": min(3, graph.batch.max)} if graph.batch else {}
    if _elements(graph, sizes, graph.outputs) > GOLDEN_ELEMENTS:
        sizes = {
            name: max(dim.min, 2 * dim.multiple) if dim is not graph.batch else dim.min for name, dim in dims.items()
        }
    return sizes


def example(graph: Graph) -> Sizes:
    """Sizes to trace at: small, none of them 1 (which torch takes for a constant), and no two alike if possible."""
    sizes: Sizes = {}
    for name, dim in dims_of(graph).items():
        steps = range(dim.min, dim.max + 1, dim.multiple)
        free = [size for size in steps[: len(sizes) + 3] if size > 1]
        sizes[name] = next((size for size in free if size not in sizes.values()), free[-1])
    return sizes


def odd(dim: Dim) -> int:
    """Seven steps, which no power of two divides; the nearest size that the Dim has."""
    return min(max(7 * dim.multiple, dim.min), dim.max)


def profile(graph: Graph) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Per input its least, usual and greatest shape, the batch first: an optimisation profile of TensorRT."""
    dims = dims_of(graph)
    sizes = [{name: getattr(dim, bound) for name, dim in dims.items()} for bound in ("min", "opt", "max")]
    least, usual, greatest = sizes
    return {
        spec.name: (shape_of(spec, graph, least), shape_of(spec, graph, usual), shape_of(spec, graph, greatest))
        for spec in graph.inputs
    }


def text(sizes: Mapping[str, int]) -> str:
    """“batch 7, tiles 500”."""
    return ", ".join(f"{name} {size}" for name, size in sizes.items()) or "its one size"


def _elements(graph: Graph, sizes: Mapping[str, int], more: tuple[TensorSpec, ...] = ()) -> int:
    return sum(abs(int(np.prod(shape_of(spec, graph, sizes)))) for spec in (*graph.inputs, *more))
