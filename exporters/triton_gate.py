"""G5: the model, as it will lie in the repository, loaded by a real Triton and asked over its own protocol."""

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from exporters.card import GOLDEN_TOLERANCE
from exporters.errors import GateFailed
from gateway.inference import TritonEngine
from gateway.operations.errors import PathserveError
from gateway.operations.settings import Settings
from training.graphs import Arrays

Questions = dict[str, list[tuple[Arrays, Arrays]]]
"""Per model: inputs with the answers that are due."""


def g5_triton(repository: Path, questions: Questions) -> dict[str, Any]:
    """Greatest difference from the due answers per model. Raises GateFailed."""
    with tempfile.TemporaryDirectory(prefix="pathserve-gate-") as state:
        settings = Settings(state=Path(state), model_repository=repository, triton_url=None)
        try:
            return asyncio.run(_ask(settings, questions))
        except GateFailed:
            raise
        except PathserveError as error:
            raise GateFailed(f"G5: {error.detail}") from None


async def _ask(settings: Settings, questions: Questions) -> dict[str, Any]:
    figures = {}
    async with TritonEngine.open(settings, sorted(questions)) as engine:
        for model, pairs in questions.items():
            gaps, identical = [], True
            for inputs, expected in pairs:
                answers = await engine.infer(model, inputs)
                for name, due in expected.items():
                    gaps.append(float(np.abs(answers[name] - due).max()))
                    identical &= np.array_equal(answers[name], due)
            figures[model] = {
                "max_abs_difference": max(gaps),
                "bound": GOLDEN_TOLERANCE,
                "bit_identical": bool(identical),
                "batches": [len(next(iter(inputs.values()))) for inputs, _ in pairs],
            }
            if not max(gaps) <= GOLDEN_TOLERANCE:
                raise GateFailed(
                    f"G5: {model} answers through Triton with a difference of {max(gaps):.2e}; "
                    f"the bound is {GOLDEN_TOLERANCE:.0e}."
                )
    return figures
