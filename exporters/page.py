"""docs/engines.md: the models of a repository and the figures of their gates, made of their own files."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from exporters.errors import ExportError
from exporters.model_folder import read_json
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

"""

_TABLE = """\
| model | version | kind | target | precision | state | engine | G1 | G3 | G4 | G5 |
|---|---|---|---|---|---|---|---|---|---|---|
"""


def page(repository: Path) -> str:
    """The page in Markdown. Raises ExportError where there is no model, or one has no readable sidecars."""
    folders = ModelRepository(repository).folders
    if not folders:
        raise ExportError(f"There is no model in {repository.name}. Build one there, or name another repository.")
    return _HEAD + _TABLE + "".join(f"{_row(repository, folder)}\n" for folder in folders)


def _row(repository: Path, folder: str) -> str:
    models = ModelRepository(repository)
    try:
        models.verify(folder)
        card, verdict = models.document(folder), read_json(repository / folder / "gate.json")
        gates = {entry["gate"]: entry for entry in verdict["gates"]}
        cells = [
            f"`{card['name']}`",
            card["version"],
            card["kind"],
            card["target"],
            card["precision"],
            verdict["state"] + (", reduced" if verdict["reduced"] else ""),
            f"`{card['digests']['engine_sha256'][:12]}`",
            *(_cell(gates.get(gate), show) for gate, show in _SHOWN.items()),
        ]
    except (OSError, ValueError, KeyError, PathserveError):
        raise ExportError(f"The model {folder} is not whole: build it again before its page is made.") from None
    return f"| {' | '.join(cells)} |"


def _cell(entry: Mapping[str, Any] | None, show: Callable[[Any], str]) -> str:
    """A gate's figure; – where it does not apply, and what is missing where it was not run."""
    if entry is None:
        return "–"
    if entry["passed"] is None:
        return "of its steps" if entry["reason"].startswith("Held by each step") else "not run"
    return show(entry["figures"])


def _g1(figures: Mapping[str, Any]) -> str:
    return f"{max(entry['max_abs_difference'] for entry in figures.values()):.1e}"


def _g3(figures: Mapping[str, Any]) -> str:
    labels = [point for judged in figures.get("labels", {}).values() for point in judged["points"].values()]
    flips = f", {max(point['flip_share'] for point in labels):.2%} flips" if labels else ""
    return f"cosine {figures['min_cosine']:.6f}{flips}"


def _g4(figures: Mapping[str, Any]) -> str:
    figures = figures.get("engine", figures)
    gap = max(figures["twice"], figures["neighbours"])
    return f"{gap:.1e}" if gap else "bit-identical"


def _g5(figures: Mapping[str, Any]) -> str:
    return "0, bit-identical" if figures["bit_identical"] else f"{figures['max_abs_difference']:.1e}"


_SHOWN: Mapping[str, Callable[[Any], str]] = {"G1": _g1, "G3": _g3, "G4": _g4, "G5": _g5}
