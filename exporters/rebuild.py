"""Every released run built again beside a repository, and only what is not as built put into it.

Some bytes are not the same on every machine: PyTorch's reference in G1 differs by its last bits, golden answers by the
processor's kernels. Those alone never replace a folder, so that a clean checkout stays as it is.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from exporters import golden
from exporters.build import build
from exporters.errors import ExportError
from exporters.gates import gap_of
from exporters.model_folder import bring, keep_schema, publish, read_json
from exporters.versions import TARGETS, versions
from gateway.inference import ModelRepository
from gateway.operations.errors import PathserveError
from training.graphs import graphs_of
from training.runs import open_run

_OF_THE_MACHINE = ("golden_sha256", "files", "tools")
"""Of provenance.json: what differs where the answers' last bits do, and what the next version of a tool changes."""


def rebuild(released: Path, repository: Path) -> list[str]:
    """Build the runs below `released` for ONNX Runtime; the folders of `repository` that were replaced or added.

    Versions for processors are built again where they are not sound, or came from another fp32 ONNX than the run gives
    now. Raises TrainingError, ExportError or GateFailed where a run cannot be built, where this machine does not give
    the golden answers of a sound folder or cannot prove as much as was proven of it, or where a version for a GPU would
    be out of date: then nothing is replaced.
    """
    repository.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=repository.parent, prefix=f".{repository.name}-build-") as temporary:
        beside = Path(temporary) / repository.name
        bring(repository, beside)
        built = dict.fromkeys(folder for run in _in_order(released) for folder in _built(run, beside))
        stale = [folder for folder in built if not _stands(repository, beside, folder)]
        for folder in stale:
            publish(beside / folder, repository / folder)
        keep_schema(repository)
    return stale


def _in_order(released: Path) -> Iterator[Path]:
    """The run folders, each after those whose models it needs. Raises ExportError where that cannot be."""
    waiting = {
        path: graphs_of(open_run(path)) for path in sorted(file.parent for file in released.glob("*/recipe.toml"))
    }
    if not waiting:
        raise ExportError(f"There is no run folder in {released.name}. Name the folder that holds the released runs.")
    while waiting:
        models = {graph.model for graphs in waiting.values() for graph in graphs}
        ready = [path for path, graphs in waiting.items() if not any(models & set(graph.needs) for graph in graphs)]
        if not ready:
            raise ExportError(f"The runs {', '.join(path.name for path in waiting)} need one another.")
        for path in ready:
            del waiting[path]
        yield from ready


def _built(run: Path, repository: Path) -> list[str]:
    """Build a run as the reference, then what is to come from it and does not. Raises as `rebuild` does."""
    folders = build(run, repository)
    models = ModelRepository(repository)
    references = {models.provenance(folder).model: folder for folder in folders}
    for version in versions(repository):
        reference = references.get(version.model)
        if version.kind == "ensemble" or version.target == TARGETS[0] or reference is None:
            continue
        origin = models.provenance(reference)
        if version.weights_sha256 != origin.weights_sha256:
            continue
        try:
            models.verify(version.folder)
            came_from = models.provenance(version.folder).onnx_sha256
        except PathserveError:
            came_from = None
        if came_from == origin.onnx_sha256:
            continue
        if version.target == "tensorrt":
            raise ExportError(
                f"{version.folder} is not sound, or came from another fp32 ONNX than {reference} has now. Build it "
                "again where its GPU is, or remove its folder."
            )
        folders += build(run, repository, version.target, version.precision)
    return folders


def _stands(repository: Path, beside: Path, folder: str) -> bool:
    """Whether a folder of the repository is what was built, but for what differs between machines."""
    try:
        ModelRepository(repository).verify(folder)
    except PathserveError:
        return False
    here, new = repository / folder, beside / folder
    if any((here / file).read_bytes() != (new / file).read_bytes() for file in ("card.json", "config.pbtxt")):
        return False
    if _origin(here) != _origin(new) or _verdict(here) != _verdict(new):
        return False
    _hold_answers(here, new)
    return True


def _origin(folder: Path) -> dict[str, Any]:
    document = read_json(folder / "provenance.json")
    return {key: value for key, value in document.items() if key not in _OF_THE_MACHINE}


def _verdict(folder: Path) -> dict[str, Any]:
    """gate.json without its figures."""
    document = read_json(folder / "gate.json")
    return document | {"gates": [(entry["gate"], entry["passed"]) for entry in document["gates"]]}


def _hold_answers(here: Path, new: Path) -> None:
    """Raises ExportError where this machine does not answer the golden inputs as the folder says."""
    tolerance = read_json(here / "card.json")["golden_tolerance"]
    (inputs, answers), (asked, found) = (golden.unpack((at / "golden.npz").read_bytes()) for at in (here, new))
    if inputs.keys() != asked.keys() or not all(np.array_equal(inputs[name], asked[name]) for name in inputs):
        raise ExportError(
            f"The golden inputs of {here.name} are not those that its run gives. Remove its folder first."
        )
    gap = float(np.max([gap_of(found[name], answers[name]) for name in answers]))
    if not gap <= tolerance:
        raise ExportError(
            f"{here.name} answers its golden inputs on this machine with a difference of {gap:.2e}; the bound is "
            f"{tolerance:.0e}. Its folder is left as it is: look for what is wrong with this machine or its runtime."
        )
