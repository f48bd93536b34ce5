"""docs/engines.md: the models of a repository and the figures of their gates, made of their own files."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from exporters.errors import ExportError
from exporters.model_folder import read_json
from exporters.targets import STATES
from gateway.inference import ModelRepository
from gateway.operations.errors import PathserveError

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results" / "cpu-engines.json"

_HEAD = """\
# Engines

A model reaches `model_repository` by one way only, `exporters`: run folder, fp32 ONNX, engine, gates, folder. A failed
gate writes nothing there; its figures are then in `gate-failed.json` of the run folder.

    python -m exporters build RUN --target onnx|cpu|tensorrt [--precision P] --out REPOSITORY
    python -m exporters approve REPOSITORY/FOLDER --gpu-check gpu-check.json
    python -m exporters rebuild training/released --out model_repository
    python -m exporters page model_repository --out docs/engines.md

RUN is a run folder, or `encoder:ID` for one of the [registered encoders](encoders.md). `make engines` runs the last
two. `rebuild` builds every released run beside the repository and replaces a folder only where its engine, card, config
or verdict is not as built; in a clean checkout every byte stays.
A version for processors is built again where it came from another fp32 ONNX than its run gives now; a plan that did is
named, and nothing is replaced.

## Targets

| target | precisions | what serves | the engine |
|---|---|---|---|
| `onnx` | fp32 | ONNX Runtime, one thread an instance | the fp32 ONNX: the reference of every other engine |
| `cpu` | fp32, bf16, int8 | OpenVINO, one thread an instance | the fp32 ONNX under a stated precision; int8: an IR |
| `tensorrt` | fp16, fp32, bf16, int8, fp8 | TensorRT on a GPU | a plan, built on the GPU that serves it |

The first precision is the default. On processors Triton joins requests up to the usual batch of 32, not to the
greatest of 64: a process of the tile encoder then holds 546 MB at its peak instead of 946 MB, at the same speed.
The commands in NVIDIA's container, which builds and serves plans, are in [tensorrt.md](tensorrt.md); how engines are
loaded and looked after is in [engines-serving.md](engines-serving.md).

A version is a folder of its own: `tile_encoder` is version 1, `tile_encoder-v2` is version 2. The same weights, target
and precision built again replace their own folder; anything else gets the next free number. An encoder's new version
brings one of each ensemble with it, so that a site can promote the whole of it.
Which version serves is a site's decision ([models.md](models.md)).
One run may be served in parts. A text-prompted segmentor gives `pathseg_text` (a text once for all images),
`pathseg_image` (an image once for all its prompts) and `pathseg_prompt` (both to masks), and the ensemble `pathseg` of
the latter two, in which the image's maps never leave the server. They are built together, or none is written.
A head is only right on the weights that it was trained on; the exporter compares their digests.

Three runs read a cervical slide: `smartccs_detect`, `smartccs_embed` and `smartccs_slide` are built in this order. The
last one is built on nothing but the detector and the encoder that it was trained with, and crops of the transform that
the encoder's card names. A run whose recipe said nothing of its publication when it was trained is given the section
`publish` of a recipe that is else its own; weights and figures stay, and its manifest keeps both:

    python -m training.smartccs.republish RUN RECIPE.toml --out training/released/MODEL

## Gates

| gate | passes when |
|---|---|
| G0 | the ONNX checker finds no fault; opset 20 (bf16: 22); only its kind's operators; names and \
shapes are the config's |
| G1 | the greatest difference from the training network, at the least, odd, usual and greatest sizes, is at most \
1e-4 × max(1, greatest value); of a decoder of masks, which decides inside, for 99.5 % of all prompts of all tiles |
| G2 | TensorRT, or TensorRT-RTX where there is no GPU, parses and builds the typed graph |
| G3 | on 5,000 tiles or more, against the fp32 ONNX: at most 0.1 % of the labels flip, none where both engines \
answer; no tile crosses the operating point outside its band; worst cosine 0.9995; no \
difference above 0.2 of the largest value; no NaN |
| G4 | an input's answer among others and twice is the same bit for bit, so is a prompt's among other prompts; alone, \
too, or to the rounding that is shown |
| G5 | a real Triton loads the folder and gives the engine's answers over its protocol, to 1e-3 |
| G6 | a GPU's record (deploy/gpu-check) approves an engine of the same ONNX, weights, precision, TensorRT and GPU |

G3 is asked of every engine that is not the fp32 ONNX itself. With fewer than 5,000 tiles it is `reduced`.

| state | what it says |
|---|---|
| EXPORTED | the graph is made; no TensorRT has seen it |
| PARSED | TensorRT-RTX has parsed and built it; there is no plan |
| BUILT | the engine is there, and G3 (reduced) or G6 is still due |
| APPROVED | every gate is passed: only this is promoted or served |

"""

_TABLE = """\
## Models

This page is made by `python -m exporters page model_repository --out docs/engines.md`.

| model | version | kind | target | precision | state | engine | G1 | G2 | G3 | G4 | G5 |
|---|---|---|---|---|---|---|---|---|---|---|---|
"""

_REFUSED = """\

## Engines for processors that were tried

What G3 says of each ({machine}), from [results/cpu-engines.json](results/cpu-engines.json): on all {tiles:,} tiles,
or on a sample where that refuses it already. Speed is per CPU time, over ONNX Runtime in fp32. What a gate refuses is
in no repository, however fast it is.

    {command}

| engine | speed | tiles | worst cosine | label flips | of them answered | crossings outside the band | G3 |
|---|---|---|---|---|---|---|---|
"""

_NOT_EXECUTED = """\

## What was never executed
"""

_NO_PLAN = """\

No TensorRT plan was ever built or run for these models: the one machine with a GPU had no TensorRT. The
graphs of the target `tensorrt` are parsed and built by TensorRT-RTX, whose engine is thrown away.
"""


def page(repository: Path, results: Path = RESULTS) -> str:
    """The page in Markdown. Raises ExportError where there is no model, or one has no readable sidecars.

    `results` holds the figures of engines that were tried and refused; a page without it says nothing of them.
    """
    folders = ModelRepository(repository).folders
    if not folders:
        raise ExportError(f"There is no model in {repository.name}. Build one there, or name another repository.")
    rows = "".join(f"{_row(repository, folder)}\n" for folder in folders)
    return _HEAD + _TABLE + rows + _refused(results) + _not_executed(repository, folders)


def _refused(results: Path) -> str:
    if not results.is_file():
        return ""
    measured = read_json(results)
    rows = "".join(
        f"| {row['name']} | {row['over_onnxruntime_fp32']:.2f} × | {row['tiles']:,} | {row['min_cosine']:.4f} "
        f"| {row['flip_share']:.2%} | {row['answered_flips']} | {row['crossings_outside']} "
        f"| {'passed' if row['passed'] else 'refused'} |\n"
        for row in measured["engines"]
    )
    return _REFUSED.format_map(measured) + rows


def _not_executed(repository: Path, folders: Iterable[str]) -> str:
    """What the cards say of it, ensembles' excepted, which say what their steps do; nothing where all was executed."""
    models = ModelRepository(repository)
    cards = {folder: models.document(folder) for folder in folders}
    plans = [
        folder
        for folder, card in cards.items()
        if card["target"] == "tensorrt" and models.gate(folder).state in STATES[2:]
    ]
    said = "" if plans else _NO_PLAN
    said += "".join(
        f"\n- `{folder}`: {card['not_executed']}\n"
        for folder, card in cards.items()
        if "not_executed" in card and card["kind"] != "ensemble"
    )
    return _NOT_EXECUTED + said if said else ""


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


def _g2(figures: Mapping[str, Any]) -> str:
    return f"{figures['package']} {figures['version']}"


def _g3(figures: Mapping[str, Any]) -> str:
    """Of every output and operating point; a GPU's record has one of each, and stands for itself."""
    outputs = figures.get("outputs", {"": figures}).values()
    cosines = [output["min_cosine"] for output in outputs if "min_cosine" in output]
    points = [point for judged in figures.get("labels", {}).values() for point in judged["points"].values()]
    points += [figures] if "flip_share" in figures else []
    flips = [f"{max(point['flip_share'] for point in points):.2%} flips"] if points else []
    return ", ".join([*(f"cosine {min(cosines):.6f}" for _ in cosines[:1]), *flips])


def _g4(figures: Mapping[str, Any]) -> str:
    """The greatest difference of the engine itself, where both it and the fp32 ONNX were asked."""
    gap = max(value for key, value in figures.get("engine", figures).items() if key not in ("sizes", "bound", "batch"))
    return f"{gap:.1e}" if gap else "bit-identical"


def _g5(figures: Mapping[str, Any]) -> str:
    return "0, bit-identical" if figures["bit_identical"] else f"{figures['max_abs_difference']:.1e}"


_SHOWN: Mapping[str, Callable[[Any], str]] = {"G1": _g1, "G2": _g2, "G3": _g3, "G4": _g4, "G5": _g5}
