"""The kinds of model that can be built: what each takes and gives, and how close to its training network it must be."""

from dataclasses import dataclass

from exporters.errors import ExportError
from training.graphs import Graph

MAX_BATCH = 64


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind's contract: tensor names with data types and ranks (without the batch axis), and its parity bound.

    `parity` bounds the greatest absolute difference from the training network, in units of max(1, greatest absolute
    reference value): fp32 sums round in proportion to what they sum.
    """

    inputs: dict[str, tuple[str, int]]
    outputs: dict[str, tuple[str, int]]
    parity: float = 1e-4


KINDS = {
    "encoder": Kind(inputs={"image": ("UINT8", 3)}, outputs={"embedding": ("FP32", 1)}),
    "head": Kind(inputs={"embedding": ("FP32", 1)}, outputs={"logits": ("FP32", 1)}),
}


def kind_of(graph: Graph) -> Kind:
    """A graph's kind. Raises ExportError where there is none, or where the graph's tensors are not the kind's."""
    kind = KINDS.get(graph.kind)
    if kind is None:
        raise ExportError(f"{graph.model} is of the kind {graph.kind}; known kinds are {', '.join(KINDS)}.")
    for wanted, specs in ((kind.inputs, graph.inputs), (kind.outputs, graph.outputs)):
        found = {spec.name: (spec.datatype, len(spec.dims)) for spec in specs}
        if found != wanted:
            raise ExportError(
                f"{graph.model} declares the tensors {found}, but a model of kind {graph.kind} has {wanted}."
            )
    return kind
