"""card.json: what the recipe and its figures say, with the digests; checked against card.schema.json."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from exporters.errors import ExportError
from training.files import sha256_bytes
from training.graphs import Arrays
from training.runs import Run

SCHEMA_FILE = Path(__file__).resolve().parents[1] / "model_repository" / "card.schema.json"
RESEARCH_USE = "research use, not a medical device"
GOLDEN_TOLERANCE = 1e-3
"""Of fp32: another CPU's kernels sum in another order (1e-5 seen); a wrong constant or weight moves it by 1e-2."""
_GOLDEN_RELATIVE = {"fp16": 5e-2, "bf16": 2e-1, "int8": 2e-1, "fp8": 2e-1}
"""Of lower precisions, over the answers' largest magnitude: what another processor's kernels may round elsewhere."""
OPERATING_POINT_BAND = 0.02
"""Probability around an operating point inside which an input may change sides on another engine (G3)."""


def build_card(
    *,
    model: str,
    version: str,
    kind: str,
    target: str,
    precision: str,
    texts: Mapping[str, Any],
    digests: Mapping[str, str],
    golden_tolerance: float,
    **more: Any,
) -> dict[str, Any]:
    """A card of one version. Raises ExportError where it does not match the schema."""
    card = {
        "schema": "pathserve-card-1",
        "name": model,
        "kind": kind,
        "version": version,
        "target": target,
        "precision": precision,
        "labels": [],
        **texts,
        "operating_points": [
            point | {"band": point.get("band", OPERATING_POINT_BAND)} for point in texts.get("operating_points", ())
        ],
        "digests": dict(digests),
        "golden_tolerance": golden_tolerance,
        "research_use": RESEARCH_USE,
        **more,
    }
    check_card(card)
    return card


def digests_of(run: Run, engine_sha256: str) -> dict[str, str]:
    """The chain of DESIGN.md law 5 from engine to data manifest."""
    return {
        "engine_sha256": engine_sha256,
        "weights_sha256": run.weights_sha256,
        "recipe": run.name,
        "recipe_sha256": run.manifest["recipe_sha256"],
        "manifest_sha256": sha256_bytes((run.path / "manifest.json").read_bytes()),
    }


def chain_digest(digests: Mapping[str, str]) -> str:
    """One digest of an ensemble's steps, whatever their order: over the sorted lines `step:digest`."""
    return sha256_bytes("\n".join(sorted(f"{name}:{digest}" for name, digest in digests.items())).encode())


def golden_tolerance(precision: str, answers: Arrays) -> float:
    """The greatest absolute difference from the golden answers at which an engine of this precision is the same one."""
    if precision == "fp32":
        return GOLDEN_TOLERANCE
    greatest = max(float(abs(answer).max()) for answer in answers.values())
    return float(f"{_GOLDEN_RELATIVE[precision] * greatest:.2g}")


@cache
def _validator() -> Draft202012Validator:
    schema = json.loads(SCHEMA_FILE.read_bytes())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def check_card(card: Mapping[str, Any]) -> None:
    """Raises ExportError naming the first place where a card does not match the schema."""
    for error in _validator().iter_errors(card):
        where = error.json_path.removeprefix("$.")
        raise ExportError(
            f"The card of {card.get('name')} does not match the schema at {where}: {error.message[:200]}."
        )
    indices = [label["index"] for label in card["labels"]]
    if indices != list(range(len(indices))):
        raise ExportError(f"The labels of {card['name']} are not numbered 0, 1, 2 … in the order of the logits.")
