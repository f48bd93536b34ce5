"""Run folder to a version's folder in a repository: stage beside it, pass the gates, rename; or write nothing."""

import contextlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from exporters import ensembles, gates, golden, shapes
from exporters.card import build_card, digests_of, golden_tolerance
from exporters.errors import ExportError
from exporters.gates import onnx_runtime
from exporters.kinds import Kind, kind_of
from exporters.model_folder import ModelFolder, keep_schema, publish
from exporters.onnx_graph import export
from exporters.onnx_target import config_of
from exporters.provenance import sealed, tools
from exporters.registry import precision_of, target_named
from exporters.targets import STATES, Target, TargetArtefact
from exporters.triton_gate import answering
from exporters.verdict import Gates, merged, not_run, state_of
from exporters.versions import TARGETS, demand_own, folder_for, name_and_number, versions
from gateway.inference import ModelRepository
from gateway.operations.errors import PathserveError
from training.files import sha256_bytes
from training.graphs import Graph, graphs_of
from training.pathbench.encoders.served import RANDOM, as_run
from training.runs import Run, open_run

_ENCODER = "encoder:"


@dataclass(frozen=True, slots=True)
class _Job:
    """What is built, and as which version."""

    run: Run
    graph: Graph
    kind: Kind
    target: Target
    precision: str
    folder: str
    gates: Gates


def build(
    source: Path,
    repository: Path,
    target_name: str = "onnx",
    precision: str | None = None,
    *,
    accept_licence: bool = False,
    field_um: float | None = None,
    random_weights: bool = False,
) -> list[str]:
    """Build a run's models for a target, and their ensembles, into `repository`; the folders that were written.

    `source` is a run folder or `encoder:<id>`, for which `accept_licence` says that a person read its licence, and
    `field_um` what field its tiles show, if not its publisher's.
    `random_weights` lets tests build an encoder that nobody trained. Raises TrainingError for a run that cannot be
    used, ExportError, GateFailed (with RUN/gate-failed.json written).
    """
    torch.set_num_threads(1)  # as the engines are served, and so that figures do not depend on the number of cores
    target = target_named(target_name)
    precision = precision_of(target, precision)
    run = _open(source, field_um, accept_licence=accept_licence)
    if run.recipe.get("weights") == RANDOM and not random_weights:
        raise ExportError(
            f"The weights of {run.name} are random: nobody trained them, so nobody may be served by them."
        )
    graphs = graphs_of(run)
    links = {graph.model: _links(graph, repository, target.name, precision) for graph in graphs}
    for graph in graphs:
        _demand_same_crops(graph, links[graph.model], repository)
    jobs = [_job(run, graph, target, precision, repository) for graph in graphs]
    onnx = {job.folder: _export(job) for job in jobs}
    own = {job.graph.model: job.folder for job in jobs}
    repository.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=repository.parent, prefix=f".{repository.name}-build-") as temporary:
        staging = Path(temporary) / "staged"
        made = []
        for job in jobs:
            work = Path(temporary) / job.folder
            work.mkdir()
            with job.gates:
                artefact = target.build(run, job.graph, onnx[job.folder], job.folder, precision, work)
            network = _network(job, onnx[job.folder], artefact)
            made.append(_judged(job, onnx[job.folder], artefact, network, staging, repository))
            made[-1].write(staging)
        references = {folder: onnx_runtime(data) for folder, data in onnx.items()}
        for job in jobs:
            others = [graph.ensemble for graph in graphs if graph.ensemble and graph is not job.graph]
            if any(job.graph.model in ensemble.steps for ensemble in others):
                continue  # it is built with the graph that declares it
            known = own | links[job.graph.model]
            for plan in ensembles.planned(job.graph, job.folder, run.weights_sha256, known, repository):
                if ensembles.bring_steps(plan, staging, repository):
                    made.append(ensembles.make(plan, staging, repository, references))
                    made[-1].write(staging)
        for model in answering(made, staging, jobs[-1].gates):
            model.write(staging)
        repository.mkdir(exist_ok=True)
        keep_schema(repository)
        for model in made:
            demand_own(repository, model.folder, model.card)
            _demand_no_less(repository, model)
        for model in made:
            publish(staging / model.folder, repository / model.folder)
    with contextlib.suppress(OSError):  # there is none, or the run lies where nothing can be written
        (run.path / "gate-failed.json").unlink()
    return [model.folder for model in made]


def _job(run: Run, graph: Graph, target: Target, precision: str, repository: Path) -> _Job:
    """Raises ExportError for a graph that is not what its kind is."""
    kind = kind_of(graph)
    if "encoder" in kind.card:
        _encoder_of(graph)
    folder = folder_for(repository, graph.model, run.weights_sha256, target.name, precision)
    return _Job(run, graph, kind, target, precision, folder, Gates(run, folder, target.name, precision))


def _encoder_of(graph: Graph) -> dict[str, str]:
    """The encoder of a head or bag for its card: the one model that it needs, or of several the one that it names.

    Raises ExportError.
    """
    named = graph.card.get("encoder")
    if named is None and len(graph.needs) == 1:
        ((model, weights_sha256),) = graph.needs.items()
        return {"model": model, "weights_sha256": weights_sha256}
    if named is None or graph.needs.get(named["model"]) != named["weights_sha256"]:
        raise ExportError(
            f"{graph.model} says of {len(graph.needs)} models that it was trained on them, not of one, and names none "
            "of them as its encoder."
        )
    return dict(named)


def _demand_same_crops(graph: Graph, links: Mapping[str, str], repository: Path) -> None:
    """Raises ExportError where a slide model of cells learned from other crops than its encoder's card names, or names
    a detector that it does not need."""
    screening = graph.card.get("screening")
    if screening is None:
        return
    detector = screening["detector"]
    if detector is not None and graph.needs.get(detector["model"]) != detector["weights_sha256"]:
        raise ExportError(f"{graph.model} names a detector that is none of the models that it was trained on.")
    encoder = _encoder_of(graph)["model"]
    crop = ModelRepository(repository).card(links[encoder]).crop
    if crop is None or crop.transform_sha256 != screening["transform_sha256"]:
        raise ExportError(
            f"{graph.model} was trained on crops of another transform than {links[encoder]} names. Train it again on "
            "that encoder's crops."
        )


def _demand_no_less(repository: Path, model: ModelFolder) -> None:
    """Raises ExportError where a sound folder that was proven further would be replaced: it may be serving."""
    models = ModelRepository(repository)
    try:
        models.verify(model.folder)
        held = models.gate(model.folder).state
    except PathserveError:  # there is none, or it is harmed
        return
    if STATES.index(model.state) < STATES.index(held):
        raise ExportError(
            f"{model.folder} is {held}, and this build of it is only {model.state}, so it is not replaced. Build where "
            "all its gates can be run (PATHSERVE_DATA names the tiles), or remove its folder first."
        )


def _open(source: Path, field_um: float | None, *, accept_licence: bool) -> Run:
    if source.name.startswith(_ENCODER):
        return as_run(source.name.removeprefix(_ENCODER), field_um=field_um, accept_licence=accept_licence)
    if field_um is not None:
        raise ExportError("A run's recipe says what field its tiles show. Only encoder:ID takes another one.")
    return open_run(source)


def _links(graph: Graph, repository: Path, target: str, precision: str) -> dict[str, str]:
    """The folder of each model that the graph needs: a version of the very weights that it was trained on.

    Of several, one of the same target and precision, else the reference. Raises ExportError.
    """
    models, links = ModelRepository(repository), {}
    for model, weights_sha256 in graph.needs.items():
        present = [version for version in versions(repository) if version.model == model]
        fitting = [version for version in present if version.weights_sha256 == weights_sha256]
        if present and not fitting:
            raise ExportError(
                f"{graph.model} was trained on other weights than those of the {model} in the repository "
                f"({weights_sha256[:12]}, not {present[0].weights_sha256[:12]}). Build that run's {model} first, or "
                "train again."
            )
        fitting.sort(
            key=lambda version: (
                version.target != target,
                version.precision != precision,
                TARGETS.index(version.target),
                version.number,
            )
        )
        links[model] = fitting[0].folder if fitting else model
        try:
            models.verify(links[model])
        except PathserveError as error:
            raise ExportError(f"{graph.model} needs {model} in the repository first. {error.detail}") from None
    return links


def stamp_of(run: Run, graph: Graph) -> dict[str, str]:
    """What the ONNX file itself says of where it comes from."""
    return {
        "pathserve.model": graph.model,
        "pathserve.kind": graph.kind,
        "pathserve.weights_sha256": run.weights_sha256,
        "pathserve.recipe": run.name,
        "pathserve.recipe_sha256": run.manifest["recipe_sha256"],
        "pathserve.git_commit": run.manifest["git_commit"],
    }


def _export(job: _Job) -> bytes:
    """The fp32 ONNX, which every engine of the run comes from, through its gates. Equal runs give equal bytes."""
    graph = job.graph
    with job.gates:
        onnx = export(graph, stamp_of(job.run, graph))
    job.gates.measure("G0", lambda: gates.g0_export(onnx, config_of(graph, graph.model), job.kind))
    with job.gates:
        engine = onnx_runtime(onnx)
    job.gates.measure("G1", lambda: gates.g1_parity(engine, graph, job.kind))
    job.gates.measure("G4", lambda: gates.g4_invariance(engine, graph, job.kind))
    return onnx


def _network(job: _Job, onnx: bytes, artefact: TargetArtefact) -> ModelFolder:
    """The network's folder before its engine was asked anything. Golden answers are those of its fp32 ONNX."""
    run, graph = job.run, job.graph
    inputs = shapes.inputs_of(graph, shapes.golden(graph))
    answers = onnx_runtime(onnx)(inputs)
    more: dict[str, Any] = {"not_executed": artefact.not_executed} if artefact.not_executed else {}
    if "encoder" in job.kind.card:
        more["encoder"] = _encoder_of(graph)
    card = build_card(
        model=graph.model,
        version=name_and_number(job.folder)[1],
        kind=graph.kind,
        target=job.target.name,
        precision=job.precision,
        texts=graph.card,
        digests=digests_of(run, artefact.engine_sha256),
        golden_tolerance=golden_tolerance(job.precision, answers),
        **more,
    )
    beside = {path: data for path, data in artefact.files.items() if path not in artefact.engine}
    files = sealed(
        card,
        {"config.pbtxt": artefact.config.encode(), "golden.npz": golden.pack(inputs, answers), **beside, **graph.files},
        opset=job.gates.figures("G0")["opset"],
        onnx_sha256=sha256_bytes(onnx),
        git_commit=run.manifest["git_commit"],
        starts_from=run.manifest["starts_from"],
        calibration=artefact.calibration,
        made_with=tools(artefact.tools),
    )
    return ModelFolder(
        folder=job.folder,
        card=card,
        files={**{path: artefact.files[path] for path in artefact.engine}, **files},
        gates=merged(job.gates.entries, artefact.gates),
        state=artefact.state,
        reduced=False,
        questions=[],
    )


def _judged(
    job: _Job, onnx: bytes, artefact: TargetArtefact, network: ModelFolder, staging: Path, repository: Path
) -> ModelFolder:
    """The network's folder with G3, where its engine is not the fp32 ONNX itself, and the questions for G5."""
    network.write(staging)
    engine = job.target.open(staging / job.folder)
    if engine is None:
        return network.with_gate(not_run("G3", "The engine cannot run on this machine, so it was asked nothing."))
    reduced = False
    if job.target.name != "onnx":
        from exporters.agreement import g3_agreement  # it reads slides, which the reference itself does not need

        reduced = job.gates.measure("G3", lambda: g3_agreement(job.graph, onnx, engine, repository))["reduced"]
        network = network.with_gate(job.gates.entries[-1])
    asked = [shapes.inputs_of(job.graph, sizes) for sizes in shapes.proven(job.graph)]
    return replace(
        network,
        state=state_of(artefact, reduced=reduced),
        reduced=reduced,
        questions=[(inputs, engine(inputs)) for inputs in asked],
    )
