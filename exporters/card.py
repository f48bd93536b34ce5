"""card.json: what the recipe and its figures say, with the digests; checked against card.schema.json."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from exporters.errors import ExportError
from training.files import sha256_bytes
from training.runs import Run

SCHEMA_FILE = Path(__file__).resolve().parents[1] / "model_repository" / "card.schema.json"
RESEARCH_USE = "research use, not a medical device"
GOLDEN_TOLERANCE = 1e-3
"""Another CPU's kernels sum in another order (1e-5 seen); a wrong constant or weight moves an output by 1e-2."""


def build_card(
    model: str, kind: str, texts: Mapping[str, Any], digests: Mapping[str, str], **more: Any
) -> dict[str, Any]:
    """A card of version 1. Raises ExportError where it does not match the schema."""
    card = {
        "schema": "pathserve-card-1",
        "name": model,
        "kind": kind,
        "version": "1",
        "labels": [],
        "operating_points": [],
        **texts,
        "digests": dict(digests),
        "golden_tolerance": GOLDEN_TOLERANCE,
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
