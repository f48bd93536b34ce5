"""What a run serves. Each system's `export.py` has one function `declare(run) -> Graph`; exporters do the rest."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
from torch import nn

from training.errors import RunInvalid
from training.runs import Run

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a graph: Triton's data type name, and dims without the batch axis."""

    name: str
    datatype: str
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Models in a chain, each step's output being the next one's input, served under one name."""

    model: str
    title: str
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """One network with its weights, its tensors and the texts of its card.

    `samples(count)` gives inputs that look like real ones, by seed and without data files: for gates and golden inputs.
    `card` is the part of card.json that the recipe and its figures say. `needs` maps each model that must lie in the
    repository already to the digest of the weights that this network was trained on.
    """

    model: str
    kind: str
    network: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    samples: Callable[[int], Arrays]
    card: Mapping[str, Any]
    needs: Mapping[str, str] = field(default_factory=dict)
    ensemble: Ensemble | None = None


def declare(run: Run) -> Graph:
    """The graph of a run, by the system that its recipe names. Raises RunInvalid, WeightsInvalid, RecipeInvalid."""
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
        graph: Graph = module.declare(run)
    except KeyError as error:
        raise RunInvalid(
            f"The run {run.path.name} has no {error} in its figures or manifest. Train it again."
        ) from None
    return graph
