"""docs/engines.md: the models of a repository and the figures of their gates, made of their own files."""

import json
from pathlib import Path
from typing import Any

from exporters.errors import ExportError
from gateway.inference import ModelRepository
from gateway.operations.errors import PathserveError

_HEAD = """\
# Engines

A model reaches `model_repository` by one way only, `exporters`: run folder, ONNX, gates, folder. A failed gate writes
nothing there; its figures are then in `gate-failed.json` of the run folder.

    python -m training.tissue.train training/recipes/tissue-encoder-small.toml
    python -m training.tissue.train training/recipes/tissue-head-small.toml
    python -m exporters build training/released/tile_encoder --target onnx --out model_repository
    python -m exporters build training/released/tissue_head --target onnx --out model_repository

`make engines` runs the last two. The head is built after its encoder, and again after every new encoder: it is only
right on the weights that it was trained on, and the exporter compares their digests.

| gate | passes when |
|---|---|
| G0 | the ONNX checker finds no fault; opset 20; only listed operators; names, types and dimensions are the config's |
| G1 | the greatest difference from the training network at batch 1, 7, 64 is at most 1e-4 × max(1, greatest value) |
| G4 | an input's answer alone, among others and twice is the same bit for bit |
| G5 | a real Triton loads the folder and gives the same answers over its protocol, to 1e-3 |

This page is made by `python -m exporters page model_repository --out docs/engines.md`.

| model | kind | target | engine bytes | engine sha256 | G1 greatest difference | G4 | G5 greatest difference |
|---|---|---|---|---|---|---|---|
"""


def page(repository: Path) -> str:
    """The page in Markdown. Raises ExportError where there is no model, or one has no readable gate.json."""
    models = ModelRepository(repository)
    if not models.names:
        raise ExportError(f"There is no model in {repository.name}. Build one there, or name another repository.")
    return _HEAD + "".join(f"{_row(models, name)}\n" for name in models.names)


def _row(models: ModelRepository, name: str) -> str:
    try:
        contract, card = models.check(name), models.document(name)
        gates = {
            gate["gate"]: gate["figures"]
            for gate in json.loads((models.path / name / "gate.json").read_bytes())["gates"]
        }
    except (OSError, ValueError, KeyError, PathserveError):
        raise ExportError(f"The model {name} is not whole: build it again before its page is made.") from None
    ensemble = bool(contract.steps)
    parity = "of its steps" if ensemble else f"{max(f['max_abs_difference'] for f in gates['G1'].values()):.1e}"
    invariance = "of its steps" if ensemble else "bit-identical"
    triton: dict[str, Any] = gates["G5"][name]
    answer = "0, bit-identical" if triton["bit_identical"] else f"{triton['max_abs_difference']:.1e}"
    size = "–" if ensemble else f"{(models.path / name / '1' / contract.artefact).stat().st_size:,}"
    digest = card["digests"]["engine_sha256"][:12]
    return f"| `{name}` | {card['kind']} | onnx | {size} | `{digest}` | {parity} | {invariance} | {answer} |"
