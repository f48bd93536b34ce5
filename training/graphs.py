"""What a run serves. Each system's `export.py` has one function `declare(run)`; exporters do the rest.

It gives a Graph, or a tuple of them where one network is served in parts.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
from torch import nn

from training.errors import RunInvalid
from training.runs import Run

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Dim:
    """A size that the caller chooses: from `min` to `max` in steps of `multiple`; engines are tuned for `opt`.

    Tensors that hold the same Dim have the same size there.
    """

    name: str
    min: int
    opt: int
    max: int
    multiple: int = 1


BATCH = Dim("batch", 1, 32, 64)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a graph: Triton's data type name, and dims without the batch axis.

    A dim is a fixed size, a Dim, or (outputs only) -1 for a size that the network makes of its inputs' sizes.
    """

    name: str
    datatype: str
    dims: tuple[int | Dim, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The dims as config.pbtxt says them: -1 where the size is free."""
        return tuple(-1 if isinstance(dim, Dim) else dim for dim in self.dims)


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Models in order, joined by the names of their tensors, served under one name: a step takes what others gave."""

    model: str
    title: str
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """One network with its weights, its tensors and the texts of its card.

    `batch` is the free first axis that every tensor has besides its dims; None = there is none (a bag, whose dims begin
    with a fixed 1). `samples(sizes)` gives inputs that look like real ones, by seed and without data files, with the
    sizes asked for by name ("batch", and each Dim): for gates and golden inputs. A mask in them is all true. `every`
    gives all inputs that are ever served, where they can be counted.
    `unordered` names the Dims along which order means nothing: shuffled inputs give the same answer. `apart` names
    those whose entries know nothing of one another, as the rows of a batch do.
    `card` is the part of card.json that the recipe and its figures say, `files` what lies beside it, by name. `needs`
    maps each model that must lie in the repository already to the digest of the weights that this network was trained
    on; other graphs of the same run are none of them.
    """

    model: str
    kind: str
    network: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    samples: Callable[[Mapping[str, int]], Arrays]
    card: Mapping[str, Any]
    every: Callable[[], Iterable[Arrays]] | None = None
    batch: Dim | None = BATCH
    unordered: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    needs: Mapping[str, str] = field(default_factory=dict)
    ensemble: Ensemble | None = None

    @property
    def max_batch_size(self) -> int:
        """Triton's: 0 where the tensors have no batch axis."""
        return self.batch.max if self.batch else 0


def graphs_of(run: Run) -> tuple[Graph, ...]:
    """The graphs of a run, by the system that its recipe names; each after those whose outputs it takes.

    Raises RunInvalid, WeightsInvalid, RecipeInvalid.
    """
    system = str(run.recipe.get("system", ""))
    if not system.isidentifier():
        raise RunInvalid(f"The recipe of the run {run.path.name} names no system.")
    try:
        module = import_module(f"training.{system}.export")
    except ModuleNotFoundError:
        raise RunInvalid(
            f"The recipe of the run {run.path.name} names the system {system}, which is not here."
        ) from None
    try:
        declared: Graph | tuple[Graph, ...] = module.declare(run)
    except KeyError as error:
        raise RunInvalid(
            f"The run {run.path.name} has no {error} in its figures or manifest. Train it again."
        ) from None
    return (declared,) if isinstance(declared, Graph) else declared


def declare(run: Run) -> Graph:
    """The graph of a run that serves one. Raises RunInvalid also where it serves several; as `graphs_of` does."""
    graph, *others = graphs_of(run)
    if others:
        raise RunInvalid(f"The run {run.path.name} serves {len(others) + 1} graphs, and one was asked for.")
    return graph
