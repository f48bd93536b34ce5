"""Run folder to model folders in a repository: stage beside it, pass the gates, rename; else nothing is written."""

import io
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exporters import gates, shapes
from exporters.card import SCHEMA_FILE, build_card, chain_digest, digests_of
from exporters.config import EnsembleConfig, OnnxRuntimeConfig, Step, check_config
from exporters.errors import ExportError, GateFailed
from exporters.kinds import kind_of
from exporters.onnx_graph import OPSET, export
from exporters.triton_gate import g5_triton
from gateway.inference import ModelRepository
from gateway.operations.errors import PathserveError
from training.files import exchange, json_bytes, sha256_bytes, write_atomic
from training.graphs import Arrays, Ensemble, Graph, TensorSpec, declare
from training.runs import Run, open_run

VERSION = "1"
_TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "tritonclient")

Gate = tuple[str, Callable[[], dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Artefact:
    """One model folder's content: relative path to bytes."""

    model: str
    files: dict[str, bytes]

    @property
    def engine(self) -> bytes:
        return self.files[f"{VERSION}/model.onnx"]

    def write(self, repository: Path) -> None:
        for path, data in self.files.items():
            (repository / self.model / path).parent.mkdir(parents=True, exist_ok=True)
            (repository / self.model / path).write_bytes(data)


def build(run_path: Path, repository: Path) -> list[str]:
    """Build the run's model, and its ensemble, into `repository`; the names of what was written.

    Raises TrainingError for a run that cannot be used, ExportError, GateFailed (with RUN/gate-failed.json written).
    """
    torch.set_num_threads(1)  # as the engines are served, and so that figures do not depend on the number of cores
    run = open_run(run_path)
    graph = declare(run)
    kind = kind_of(graph)
    present = ModelRepository(repository)
    _check_needs(graph, present)
    artefact = network_artefact(run, graph)
    repository.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=repository.parent, prefix=f".{repository.name}-build-") as temporary:
        staging = Path(temporary) / "staged"
        artefact.write(staging)
        built = [artefact]
        engine = gates.onnx_runtime(artefact.engine)
        asked = [shapes.inputs_of(graph, sizes) for sizes in shapes.proven(graph)]
        questions = {graph.model: [(inputs, engine(inputs)) for inputs in asked]}
        if graph.ensemble:
            for step in graph.ensemble.steps:
                if step != graph.model:
                    shutil.copytree(repository / step, staging / step)
            ensemble, question = ensemble_artefact(run, graph, graph.ensemble, ModelRepository(staging))
            ensemble.write(staging)
            built.append(ensemble)
            questions[graph.ensemble.model] = [question]
        config = _config(graph)
        passed = _pass(
            run,
            [
                ("G0", lambda: gates.g0_export(artefact.engine, config, kind)),
                ("G1", lambda: gates.g1_parity(engine, graph, kind)),
                ("G4", lambda: gates.g4_invariance(engine, graph, kind)),
                ("G5", lambda: g5_triton(staging, questions)),
            ],
        )
        repository.mkdir(exist_ok=True)
        write_atomic(repository / SCHEMA_FILE.name, SCHEMA_FILE.read_bytes())
        for model in built:
            document = {"schema": "pathserve-gate-1", "model": model.model, "passed": True, "gates": passed}
            (staging / model.model / "gate.json").write_bytes(json_bytes(document))
            _publish(staging / model.model, repository / model.model)
    (run.path / "gate-failed.json").unlink(missing_ok=True)
    return [model.model for model in built]


def network_artefact(run: Run, graph: Graph) -> Artefact:
    """A network's folder, but for its gate.json. Equal runs give equal bytes."""
    config = _config(graph)
    check_config(config)
    stamp = {
        "pathserve.model": graph.model,
        "pathserve.kind": graph.kind,
        "pathserve.weights_sha256": run.weights_sha256,
        "pathserve.recipe": run.name,
        "pathserve.recipe_sha256": run.manifest["recipe_sha256"],
        "pathserve.git_commit": run.manifest["git_commit"],
    }
    engine = export(graph, stamp)
    digests = digests_of(run, sha256_bytes(engine))
    more: dict[str, Any] = {}
    if graph.kind == "head":
        ((encoder, weights_sha256),) = graph.needs.items()
        more["encoder"] = {"model": encoder, "weights_sha256": weights_sha256}
    card = build_card(graph.model, graph.kind, graph.card, digests, **more)
    golden = _golden(*_answered(engine, shapes.inputs_of(graph, shapes.golden(graph))))
    return Artefact(
        graph.model,
        {
            f"{VERSION}/model.onnx": engine,
            "config.pbtxt": config.text().encode(),
            "card.json": json_bytes(card),
            "golden.npz": golden,
            "provenance.json": _provenance(run, graph.model, graph.kind, digests, golden),
        },
    )


def ensemble_artefact(
    run: Run, graph: Graph, ensemble: Ensemble, staged: ModelRepository
) -> tuple[Artefact, tuple[Arrays, Arrays]]:
    """An ensemble's folder, and inputs with the answers due. Its card is its last step's, under its own name.

    Raises ExportError where the steps do not fit one another.
    """
    contracts = [staged.contract(step) for step in ensemble.steps]
    for first, second in pairwise(contracts):
        if len(first.outputs) != 1 or first.outputs != second.inputs:
            raise ExportError(f"{second.name} does not take what {first.name} gives, so they cannot be chained.")
    config = EnsembleConfig(
        name=ensemble.model,
        steps=tuple(
            Step(each.name, tuple(spec.name for spec in each.inputs), tuple(spec.name for spec in each.outputs))
            for each in contracts
        ),
        inputs=tuple(TensorSpec(spec.name, spec.datatype, spec.dims) for spec in contracts[0].inputs),
        outputs=tuple(TensorSpec(spec.name, spec.datatype, spec.dims) for spec in contracts[-1].outputs),
        max_batch_size=min(contract.max_batch_size for contract in contracts),
    )
    check_config(config)
    cards = {step: staged.document(step) for step in ensemble.steps}
    digests = digests_of(run, chain_digest({step: card["digests"]["engine_sha256"] for step, card in cards.items()}))
    digests["weights_sha256"] = chain_digest({s: card["digests"]["weights_sha256"] for s, card in cards.items()})
    texts = dict(graph.card) | {
        "title": ensemble.title,
        "pretraining": [entry for card in cards.values() for entry in card["pretraining"]],
        "limits": list(dict.fromkeys(limit for card in cards.values() for limit in card["limits"])),
    }
    card = build_card(ensemble.model, "ensemble", texts, digests, steps=list(ensemble.steps))
    golden = staged.golden(ensemble.steps[0])
    if golden is None:
        raise ExportError(f"{ensemble.steps[0]} has no golden inputs. Build it again, then this one.")
    answers = golden.inputs
    for step in ensemble.steps:
        answers = gates.onnx_runtime((staged.path / step / VERSION / "model.onnx").read_bytes())(answers)
    packed = _golden(golden.inputs, answers)
    files = {
        f"{VERSION}/.gitkeep": b"",
        "config.pbtxt": config.text().encode(),
        "card.json": json_bytes(card),
        "golden.npz": packed,
        "provenance.json": _provenance(run, ensemble.model, "ensemble", digests, packed),
    }
    return Artefact(ensemble.model, files), (golden.inputs, answers)


def _check_needs(graph: Graph, repository: ModelRepository) -> None:
    """A head is only right on the very weights that it was trained on."""
    for model, weights_sha256 in graph.needs.items():
        try:
            repository.check(model)
            found = repository.card(model).version.weights_sha256
        except PathserveError as error:
            raise ExportError(f"{graph.model} needs {model} in the repository first. {error.detail}") from None
        if found != weights_sha256:
            raise ExportError(
                f"{graph.model} was trained on other weights than those of the {model} in the repository "
                f"({weights_sha256[:12]}, not {found[:12]}). Build that run's {model} first, or train again."
            )


def _config(graph: Graph) -> OnnxRuntimeConfig:
    return OnnxRuntimeConfig(
        name=graph.model, inputs=graph.inputs, outputs=graph.outputs, max_batch_size=graph.max_batch_size
    )


def _answered(engine: bytes, inputs: Arrays) -> tuple[Arrays, Arrays]:
    return inputs, gates.onnx_runtime(engine)(inputs)


def _golden(inputs: Arrays, answers: Arrays) -> bytes:
    """golden.npz; numpy writes a fixed date into it, so equal arrays give equal bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **inputs, **{f"expected.{name}": array for name, array in answers.items()})
    return buffer.getvalue()


def _provenance(run: Run, model: str, kind: str, digests: Mapping[str, str], golden: bytes) -> bytes:
    return json_bytes(
        {
            "schema": "pathserve-provenance-1",
            "model": model,
            "kind": kind,
            "opset": OPSET,
            **digests,
            "golden_sha256": sha256_bytes(golden),
            "git_commit": run.manifest["git_commit"],
            "starts_from": run.manifest["starts_from"],
            "tools": {name: metadata.version(name) for name in _TOOLS},
        }
    )


def _pass(run: Run, steps: list[Gate]) -> list[dict[str, Any]]:
    """Every gate's figures; at the first that fails, gate-failed.json goes to the run folder (else to stderr)."""
    passed: list[dict[str, Any]] = []
    for name, gate in steps:
        try:
            passed.append({"gate": name, "passed": True, "figures": gate()})
        except GateFailed as error:
            tried = [*passed, {"gate": name, "passed": False, "reason": error.detail}]
            document = json_bytes({"schema": "pathserve-gate-1", "passed": False, "gates": tried})
            try:
                write_atomic(run.path / "gate-failed.json", document)
            except OSError:
                sys.stderr.write(document.decode())
            raise GateFailed(error.detail, tried) from None
    return passed


def _publish(staged: Path, target: Path) -> None:
    """Put a whole folder in the place of another in one step: no reader, and no kill, finds neither or half of one."""
    try:
        if target.exists():
            exchange(staged, target)
        else:
            staged.rename(target)
    except OSError as error:
        raise ExportError(
            f"The folder of {target.name} cannot be replaced in the repository ({error.strerror}). Build into a "
            "repository on a local file system, and copy it from there."
        ) from None
