"""Model folders sealed as an exporter seals them, and further versions of models that are there."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from gateway.inference.names import folder_of
from gateway.operations.settings import Settings

Change = Callable[[onnx.ModelProto], None]


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def read(folder: Path, file: str) -> dict[str, Any]:
    return json.loads((folder / file).read_bytes())


def write(folder: Path, file: str, document: Mapping[str, Any]) -> None:
    (folder / file).write_text(json.dumps(document, indent=1))


def seal(folder: Path, **gate: Any) -> None:
    """Make card, gate and provenance say what lies in a folder now; `gate` changes fields of gate.json.

    Steps of an ensemble are to be sealed before it.
    """
    card = read(folder, "card.json")
    card = {"target": "onnx", "precision": "fp32"} | card
    card["digests"]["engine_sha256"] = engine = _engine_digest(folder, card)
    write(folder, "card.json", card)
    same = {"model": card["name"], **{key: card[key] for key in ("version", "target", "precision")}}
    gates = [{"gate": name, "passed": True, "figures": {}} for name in ("G0", "G1", "G3", "G4", "G5")]
    report = {"state": "APPROVED", "reduced": False, "passed": True, "gates": gates} | _old(folder, "gate.json")
    report |= {"schema": "pathserve-gate-2", **same, "engine_sha256": engine, **gate}
    write(folder, "gate.json", report)
    files = [file for file in ("card.json", "config.pbtxt", "golden.npz", "prompts.csv") if (folder / file).exists()]
    digests = {file: digest(folder / file) for file in files}
    old = {"onnx_sha256": engine} | _old(folder, "provenance.json")
    if card["target"] == "onnx":
        old["onnx_sha256"] = engine
    write(
        folder,
        "provenance.json",
        old
        | {"schema": "pathserve-provenance-2", **same, "kind": card["kind"], **card["digests"]}
        | {"golden_sha256": digests.get("golden.npz"), "files": digests},
    )


def add_version(
    repository: Path,
    model: str,
    version: str = "2",
    *,
    change: Change | None = None,
    steps: Mapping[str, str] | None = None,
    **gate: Any,
) -> Path:
    """A further version of a model's version 1, with golden answers of its own; its folder.

    A network is changed by `change` (by default `shifted`, so that its answers can be told apart); an ensemble takes
    the folder `steps[step]` instead of a step. `gate` changes fields of gate.json.
    """
    folder = _copy(repository / model, model, version)
    card, config = read(folder, "card.json"), (folder / "config.pbtxt").read_text()
    if "steps" in card:
        for old, new in (steps or {}).items():
            config = config.replace(f'model_name: "{old}"', f'model_name: "{new}"')
        names = [(steps or {}).get(step, step) for step in card["steps"]]
        least = max((read(repository / name, "card.json") for name in names), key=_precision)
        write(folder, "card.json", card | {"steps": names, **{key: least[key] for key in ("target", "precision")}})
        (folder / "config.pbtxt").write_text(config)
    else:
        change_engine(folder, change or shifted)
    answer_golden(folder)
    seal(folder, **gate)
    return folder


def without_slide_heads(source: Path, target: Path) -> Path:
    """A copy of a repository without any slide head of its own, and without the segmentor and cervical screening."""
    return shutil.copytree(source, target, ignore=shutil.ignore_patterns("slide_*", "pathseg*", "smartccs_*"))


def two_versions(target: Path) -> Path:
    """A copy of the committed models of tissue classification, with a second version of the tissue head that answers
    adipose tissue everywhere, and of the ensemble with it."""
    repository = without_slide_heads(Settings().model_repository, target)
    add_version(repository, "tissue_head", change=lambda model: shifted(model, 30.0))
    add_version(repository, "tissue_classification", steps={"tissue_head": "tissue_head-v2"})
    return repository


def add_model(repository: Path, model: str, name: str) -> Path:
    """The same as version 1 of a model under another name; its folder."""
    folder = _copy(repository / model, name, "1")
    seal(folder)
    return folder


def _precision(card: Mapping[str, Any]) -> tuple[int, int]:
    precisions, targets = ("fp32", "fp16", "bf16", "int8", "fp8"), ("onnx", "cpu", "tensorrt")
    return precisions.index(card["precision"]), targets.index(card["target"])


def _copy(first: Path, model: str, version: str) -> Path:
    folder = first.with_name(folder_of(model, version))
    shutil.copytree(first, folder)
    if version != "1":
        (folder / "1").rename(folder / version)
    config = (folder / "config.pbtxt").read_text()
    (folder / "config.pbtxt").write_text(config.replace(f'name: "{first.name}"', f'name: "{folder.name}"', 1))
    write(folder, "card.json", read(folder, "card.json") | {"name": model, "version": version})
    return folder


def change_engine(folder: Path, change: Change) -> None:
    """Change a folder's ONNX and nothing else: what seals it is as it was."""
    (file,) = folder.glob("*/model.onnx")
    model = onnx.load(file)
    change(model)
    onnx.checker.check_model(model)
    onnx.save(model, file)


def shifted(model: onnx.ModelProto, by: float = 0.25) -> None:
    """Add `by` to the first value of each row of the output: small, and plain to see."""
    output = model.graph.output[0]
    for node in model.graph.node:
        for place, name in enumerate(node.output):
            if name == output.name:
                node.output[place] = "unshifted"
    shift = np.zeros(output.type.tensor_type.shape.dim[-1].dim_value, np.float32)
    shift[0] = by
    model.graph.initializer.append(numpy_helper.from_array(shift, "shift"))
    model.graph.node.append(helper.make_node("Add", ["unshifted", "shift"], [output.name]))


def answer_golden(folder: Path) -> None:
    """Replace the answers in a folder's golden.npz, where it has one, by those of onnxruntime."""
    file = folder / "golden.npz"
    if not file.exists():
        return
    with np.load(file) as archive:
        inputs = {key: value for key, value in archive.items() if not key.startswith("expected.")}
    answers = inputs
    for step in read(folder, "card.json").get("steps", [folder.name]):
        answers = _run(folder.parent / step, answers)
    np.savez_compressed(file, **inputs, **{f"expected.{name}": value for name, value in answers.items()})


def without_golden(source: Path, target: Path) -> Path:
    """A copy of a repository's tissue models, sealed without golden answers: a load computes no rows."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("golden.npz", "slide_*", "pathseg*", "smartccs_*"))
    folders = [card.parent for card in target.glob("*/card.json")]
    # An ensemble's digest is made of its steps'.
    for folder in sorted(folders, key=lambda each: "steps" in read(each, "card.json")):
        seal(folder)
    return target


def _run(folder: Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    import onnxruntime

    (file,) = folder.glob("*/model.onnx")
    session = onnxruntime.InferenceSession(file)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def _engine_digest(folder: Path, card: Mapping[str, Any]) -> str:
    if "steps" in card:
        found = {step: read(folder.parent / step, "card.json")["digests"]["engine_sha256"] for step in card["steps"]}
    else:
        version = folder / card["version"]
        found = {file.name: digest(file) for file in version.iterdir() if not file.name.startswith(".")}
        if len(found) == 1:
            return next(iter(found.values()))
    return hashlib.sha256("\n".join(sorted(f"{name}:{value}" for name, value in found.items())).encode()).hexdigest()


def _old(folder: Path, file: str) -> dict[str, Any]:
    return read(folder, file) if (folder / file).exists() else {}
