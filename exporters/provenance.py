"""provenance.json: the chain from an engine back to its run, and the digests of the files beside it.

No clock time and no machine: the same run gives the same bytes with the same tools.
"""

from collections.abc import Mapping
from importlib import metadata
from typing import Any

from training.files import json_bytes, sha256_bytes

SCHEMA = "pathserve-provenance-2"
_TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "tritonclient")


def tools(more: Mapping[str, str]) -> dict[str, str]:
    """Names with versions of what made an artefact."""
    return {name: metadata.version(name) for name in _TOOLS} | dict(more)


def sealed(
    card: Mapping[str, Any],
    files: Mapping[str, bytes],
    *,
    opset: int,
    onnx_sha256: str,
    git_commit: str,
    starts_from: Mapping[str, Any],
    calibration: Mapping[str, Any] | None,
    made_with: Mapping[str, str],
) -> dict[str, bytes]:
    """`files` (config.pbtxt, golden.npz, and what is neither sidecar nor engine) with card.json and provenance.json.

    provenance.json holds the digest of every one of them; gate.json, which comes last, names the engine's itself.
    """
    digests = card["digests"]
    files = {"card.json": json_bytes(card), **files}
    document = {
        "schema": SCHEMA,
        "model": card["name"],
        "version": card["version"],
        "kind": card["kind"],
        "target": card["target"],
        "precision": card["precision"],
        "opset": opset,
        "recipe": digests["recipe"],
        "recipe_sha256": digests["recipe_sha256"],
        "git_commit": git_commit,
        "manifest_sha256": digests["manifest_sha256"],
        "weights_sha256": digests["weights_sha256"],
        "onnx_sha256": onnx_sha256,
        "engine_sha256": digests["engine_sha256"],
        "golden_sha256": sha256_bytes(files["golden.npz"]),
        "files": {name: sha256_bytes(data) for name, data in sorted(files.items())},
        "starts_from": starts_from,
        "calibration": calibration,
        "tools": dict(made_with),
    }
    return {**files, "provenance.json": json_bytes(document)}
