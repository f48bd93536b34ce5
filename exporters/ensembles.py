"""Ensembles: which ones a new artefact is a step of, and their folders, made of nothing but their steps' own files."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporters import golden
from exporters.card import build_card, chain_digest, golden_tolerance
from exporters.config import joined
from exporters.errors import ExportError
from exporters.model_folder import ModelFolder, Question, bring, read_json
from exporters.provenance import sealed
from exporters.registry import open_engine
from exporters.targets import Engine
from exporters.verdict import least, not_run
from exporters.versions import TARGETS, Version, folder_for, least_precise, name_and_number, versions
from gateway.inference import ModelRepository
from gateway.operations.errors import PathserveError
from training.graphs import Arrays, Graph

_TEXTS = ("mpp", "tile_px", "labels", "operating_points", "intended_use", "data", "metrics")
_PROMPTED = ("mpp_by_level", "prompts", "presence_by_level", "image_encoder", "text_encoder")
_TOKENS = ("tokenizer_sha256", "max_tokens", "vocabulary_size")
"""What an ensemble's card says after its last step's; the latter two where that takes prompts."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One ensemble to build: its model, the title of its card, its steps' folders; whether the run declares it."""

    model: str
    title: str
    steps: tuple[str, ...]
    declared: bool = False


def planned(graph: Graph, folder: str, weights_sha256: str, links: Mapping[str, str], repository: Path) -> list[Plan]:
    """The ensembles of a new artefact in `folder`.

    The one that its run declares, with the step versions of `links`: the models that it needs, and other graphs of the
    same run. Of a run that declares none (an encoder): a
    version of every ensemble of the repository of which another version of this artefact (the same weights) is a step,
    so that one can promote the whole of it. Raises ExportError.
    """
    if graph.ensemble:
        if set(graph.ensemble.steps) - {graph.model} - links.keys() or graph.model not in graph.ensemble.steps:
            raise ExportError(
                f"The run of {graph.model} declares {graph.ensemble.model} of the steps "
                f"{', '.join(graph.ensemble.steps)}: these must be itself and models that it was trained on."
            )
        steps = tuple(folder if step == graph.model else links[step] for step in graph.ensemble.steps)
        return [Plan(graph.ensemble.model, graph.ensemble.title, steps, declared=True)]
    plans: list[Plan] = []
    present = {version.folder: version for version in versions(repository)}
    for ensemble in present.values():
        parts = [present.get(step) for step in ensemble.steps]
        if not parts or None in parts:
            continue
        own = [part.folder for part in parts if part and part.is_of(graph.model, weights_sha256)]
        steps = tuple(folder if step in own else step for step in ensemble.steps)
        plan = Plan(ensemble.model, ensemble.title, steps)
        if own and all((plan.model, plan.steps) != (other.model, other.steps) for other in plans):
            plans.append(plan)
    return plans


def bring_steps(plan: Plan, staging: Path, repository: Path) -> bool:
    """Copy the steps that are not new into `staging`; whether the ensemble is to be built then.

    One that the run itself declares always is, and a step that is not what its sidecars say raises ExportError. Any
    other is passed over where the repository holds it already, or where another of its steps is not sound.
    """
    for step in plan.steps:
        if (staging / step).exists():
            continue
        try:
            ModelRepository(repository).verify(step)
        except PathserveError as error:
            if plan.declared:
                raise ExportError(f"{plan.model} needs {step} in the repository. {error.detail}") from None
            print(f"No version of {plan.model} is built with the new engine. {error.detail}", file=sys.stderr)
            return False
        bring(repository / step, staging / step)
    engines = _chain(_cards(plan, staging), "engine_sha256")
    return plan.declared or all(
        (version.model, version.steps, version.engine_sha256) != (plan.model, plan.steps, engines)
        for version in versions(repository)
    )


def make(plan: Plan, staging: Path, repository: Path, references: Mapping[str, Engine]) -> ModelFolder:
    """The folder of an ensemble whose steps lie in `staging`; `references` are the fp32 ONNX of new steps, by folder.

    Raises ExportError where the steps do not fit one another.
    """
    known = {version.folder: version for version in versions(staging)}
    steps = [known[step] for step in plan.steps]
    cards = _cards(plan, staging)
    origins = {step: read_json(staging / step / "provenance.json") for step in plan.steps}
    gates = [read_json(staging / step / "gate.json") for step in plan.steps]
    last, origin = cards[plan.steps[-1]], origins[plan.steps[-1]]
    lowest, weights = least_precise(steps), _chain(cards, "weights_sha256")
    folder = folder_for(repository, plan.model, weights, lowest.target, lowest.precision, staging)
    contracts = ModelRepository(staging).contract
    config = joined(folder, [contracts(step) for step in plan.steps])
    question = _answered(steps, staging, repository, references, batched=config.max_batch_size > 0)
    unrun = [card["not_executed"] for card in cards.values() if "not_executed" in card]
    card = build_card(
        model=plan.model,
        version=name_and_number(folder)[1],
        kind="ensemble",
        target=lowest.target,
        precision=lowest.precision,
        texts={key: last[key] for key in (*_TEXTS, *(_PROMPTED + _TOKENS if "prompts" in last else ()))}
        | {
            "title": plan.title,
            "limits": list(dict.fromkeys(limit for card in cards.values() for limit in card["limits"])),
            "pretraining": [entry for card in cards.values() for entry in card["pretraining"]],
        },
        digests=last["digests"] | {"engine_sha256": _chain(cards, "engine_sha256"), "weights_sha256": weights},
        golden_tolerance=golden_tolerance(lowest.precision, question[1]),
        steps=list(plan.steps),
        **({"not_executed": unrun[0]} if unrun else {}),
    )
    files = sealed(
        card,
        {"config.pbtxt": config.text().encode(), "golden.npz": golden.pack(*question)},
        opset=max(entry["opset"] for entry in origins.values()),
        onnx_sha256=chain_digest({step: entry["onnx_sha256"] for step, entry in origins.items()}),
        git_commit=origin["git_commit"],
        starts_from=origin["starts_from"],
        calibration=None,
        made_with=origin["tools"],
    )
    held = f"Held by each step: see the gate.json of {' and '.join(plan.steps)}."
    return ModelFolder(
        folder=folder,
        card=card,
        files={f"{card['version']}/.gitkeep": b"", **files},
        gates=[not_run(gate, held) for gate in ("G0", "G1", "G3", "G4")],
        state=least([gate["state"] for gate in gates]),
        reduced=any(gate["reduced"] for gate in gates),
        questions=[question],
    )


def _cards(plan: Plan, staging: Path) -> dict[str, dict[str, Any]]:
    return {step: read_json(staging / step / "card.json") for step in plan.steps}


def _chain(cards: Mapping[str, dict[str, Any]], digest: str) -> str:
    return chain_digest({step: card["digests"][digest] for step, card in cards.items()})


def _answered(
    steps: list[Version], staging: Path, repository: Path, references: Mapping[str, Engine], *, batched: bool
) -> Question:
    """The steps' golden inputs that no step before gives, and the last step's answers, of as many rows as all have.

    An engine that cannot run here is spoken for by the fp32 ONNX of its weights: where it takes nothing but its golden
    inputs, by its golden answers.
    """
    held = [golden.unpack((staging / step.folder / "golden.npz").read_bytes()) for step in steps]
    rows = min(len(array) for inputs, _ in held for array in inputs.values()) if batched else None
    inputs: Arrays = {}
    known: Arrays = {}
    answers: Arrays = {}
    for step, (asked, expected) in zip(steps, held, strict=True):
        own = {name: array[:rows] for name, array in asked.items() if name not in known}
        inputs |= own
        known |= own
        engine = open_engine(step, staging) or references.get(step.folder)
        if engine is None and len(own) == len(asked):
            answers = {name: array[:rows] for name, array in expected.items()}
        else:
            answers = (engine or _reference(step, repository))({name: known[name] for name in asked})
        known |= answers
    return inputs, answers


def _reference(step: Version, repository: Path) -> Engine:
    """The fp32 ONNX of a step's weights, which is another version in the repository. Raises ExportError."""
    for version in versions(repository):
        if version.is_of(step.model, step.weights_sha256) and version.target == TARGETS[0]:
            engine = open_engine(version, repository)
            assert engine is not None
            return engine
    raise ExportError(
        f"{step.folder} cannot run here, so an ensemble with it has no golden answers. Build {step.model} for the "
        "target onnx first."
    )
