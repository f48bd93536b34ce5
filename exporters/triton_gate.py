"""G5: the model, as it will lie in the repository, loaded by a real Triton and asked over its own protocol."""

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exporters.card import GOLDEN_TOLERANCE
from exporters.errors import GateFailed
from exporters.model_folder import ModelFolder, Question, read_json
from exporters.verdict import Entry, Gates, not_run
from gateway.inference import TritonEngine
from gateway.operations.errors import PathserveError
from gateway.operations.settings import Settings
from training.files import json_bytes

_NO_SERVER = "A TensorRT engine runs on a GPU only, and the server that this gate starts has none."


def answering(made: Sequence[ModelFolder], staging: Path, gates: Gates) -> list[ModelFolder]:
    """`made` with the gate G5 each: its figures, or why it was not run. Raises GateFailed."""
    asked = {model.folder: model.questions for model in made if "tensorrt" not in _targets(model, staging)}
    figures: dict[str, Any] = {}
    if asked:
        _pass_for_approved(staging)
        figures = gates.measure("G5", lambda: g5_triton(staging, asked))
    entries: dict[str, Entry] = {
        folder: {"gate": "G5", "passed": True, "figures": found} for folder, found in figures.items()
    }
    return [model.with_gate(entries.get(model.folder) or not_run("G5", _NO_SERVER)) for model in made]


def g5_triton(repository: Path, questions: Mapping[str, Sequence[Question]]) -> dict[str, Any]:
    """Greatest difference from the due answers per folder. Raises GateFailed."""
    with tempfile.TemporaryDirectory(prefix="pathserve-gate-") as state:
        settings = Settings(state=Path(state), model_repository=repository, triton_url=None)
        try:
            return asyncio.run(_ask(settings, questions))
        except GateFailed:
            raise
        except PathserveError as error:
            raise GateFailed(f"G5: {error.detail}") from None


async def _ask(settings: Settings, questions: Mapping[str, Sequence[Question]]) -> dict[str, Any]:
    figures = {}
    async with TritonEngine.open(settings, sorted(questions)) as engine:
        for folder, pairs in questions.items():
            gaps, identical = [], True
            for inputs, expected in pairs:
                answers = await engine.infer(folder, inputs)
                for name, due in expected.items():
                    if answers[name].shape != due.shape or not np.isfinite([answers[name], due]).all():
                        raise GateFailed(
                            f"G5: {folder} answers through Triton with {name} of another shape, or NaN or infinite."
                        )
                    gaps.append(float(np.abs(answers[name] - due).max()))
                    identical &= np.array_equal(answers[name], due)
            figures[folder] = {
                "max_abs_difference": max(gaps),
                "bound": GOLDEN_TOLERANCE,
                "bit_identical": bool(identical),
                "batches": [len(next(iter(inputs.values()))) for inputs, _ in pairs],
            }
            if not max(gaps) <= GOLDEN_TOLERANCE:
                raise GateFailed(
                    f"G5: {folder} answers through Triton with a difference of {max(gaps):.2e}; "
                    f"the bound is {GOLDEN_TOLERANCE:.0e}.",
                    figures=figures,
                )
    return figures


def _targets(model: ModelFolder, staging: Path) -> set[str]:
    """What the engines behind a model run on."""
    steps = model.card.get("steps", ())
    return {read_json(staging / step / "card.json")["target"] for step in steps} | {model.card["target"]}


def _pass_for_approved(staging: Path) -> None:
    """Let the server take what is staged, whatever its state: nothing but an approved engine is served by it."""
    for path in staging.glob("*/gate.json"):
        path.write_bytes(json_bytes(read_json(path) | {"state": "APPROVED", "reduced": False}))
