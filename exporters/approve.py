"""G6, and with it G3 and G4: what a GPU made of a TensorRT artefact, read from the JSON that deploy/gpu-check writes.

gpu-check judges an engine that it builds itself, by the same TensorRT on the same GPU from the same fp32 ONNX and
weights in the same precision; it does not read the plan. The plan speaks for itself at each start of a server, by its
golden answers.
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporters.agreement import THRESHOLDS, label_failures
from exporters.errors import ExportError
from exporters.model_folder import bring, publish, read_json
from exporters.verdict import Entry, least
from exporters.versions import versions
from gateway.inference import ModelRepository
from gateway.operations.errors import PathserveError
from training.files import json_bytes, sha256_bytes

GPU_CHECK = Path(__file__).resolve().parents[1] / "deploy" / "gpu-check"
_SCHEMA = "pathserve-gpu-check-1"
_STAGE = "tensorrt"


def approve(folder: Path, record: Path) -> list[str]:
    """Approve a TensorRT artefact that was built (BUILT), and the ensembles that wait for it; the folders' names.

    Raises ModelRefused for a folder that is not what its sidecars say, ExportError where the record says no.
    """
    repository, models = folder.parent, ModelRepository(folder.parent)
    models.verify(folder.name)
    card, gate, origin = (read_json(folder / file) for file in ("card.json", "gate.json", "provenance.json"))
    if card["target"] != "tensorrt":
        raise ExportError(f"{folder.name} is of the target {card['target']}: a GPU has nothing to say of it.")
    if gate["state"] != "BUILT":
        raise ExportError(
            f"{folder.name} is {gate['state']}: only a plan that was built (BUILT) is approved. Build it first on a "
            "machine with TensorRT and the GPU that will serve it."
        )
    entries = _entries(_read(record), folder.name, card, gate, origin)
    with tempfile.TemporaryDirectory(dir=repository.parent, prefix=f".{repository.name}-build-") as temporary:
        staging = Path(temporary)
        _restate(folder, staging / folder.name, "APPROVED", entries)
        waiting = [each for each in versions(repository) if folder.name in each.steps and _sound(models, each.folder)]
        for ensemble in waiting:
            at = {step: staging if step == folder.name else repository for step in ensemble.steps}
            state = least([read_json(at[step] / step / "gate.json")["state"] for step in ensemble.steps])
            _restate(repository / ensemble.folder, staging / ensemble.folder, state, [])
        approved = [folder.name, *(ensemble.folder for ensemble in waiting)]
        for name in reversed(approved):  # the plan last: as long as it is BUILT, this can be done again after a kill
            publish(staging / name, repository / name)
    return approved


def _sound(models: ModelRepository, ensemble: str) -> bool:
    """Whether an ensemble is what its sidecars say: another one is not sealed anew, which is said on stderr."""
    try:
        models.verify(ensemble)
    except PathserveError as error:
        print(f"{ensemble} is left as it is. {error.detail}", file=sys.stderr)
        return False
    return True


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        raise ExportError(f"{path.name} cannot be read. Name the JSON that gpu-check wrote.") from None
    if not isinstance(record, dict) or record.get("schema") != _SCHEMA:
        raise ExportError(f"{path.name} is not what gpu-check writes ({_SCHEMA}).")
    if record.get("self_test") is not False:
        raise ExportError(f"{path.name} is of a self-test, which approves nothing. Run gpu-check without --self-test.")
    scripts = hashlib.sha256(b"".join(script.read_bytes() for script in sorted(GPU_CHECK.glob("*.py")))).hexdigest()
    if record.get("scripts_sha256") != scripts:
        raise ExportError(f"{path.name} was made by another version of gpu-check. Run the one of this checkout.")
    return {"sha256": sha256_bytes(path.read_bytes()), **record}


def _entries(
    record: Mapping[str, Any], folder: str, card: Mapping[str, Any], gate: Mapping[str, Any], origin: Mapping[str, Any]
) -> list[Entry]:
    """G3, G4 and G6 as the record has them. Raises ExportError for the first thing that does not fit."""
    model, precision = card["name"], card["precision"]
    try:
        row = next(
            (
                row
                for row in record["artefacts"]
                if row["stage"] == _STAGE and (row.get("model"), row.get("precision")) == (model, precision)
            ),
            None,
        )
        if row is None:
            raise ExportError(f"The record has no TensorRT engine of {model} in {precision}, so {folder} stays BUILT.")
        if row["state"] != "APPROVED":
            raise ExportError(f"On that GPU the engine of {model} was not approved: {row['reason']}.")
        chain, machine = record["onnx_parity"][0], record["machine"][0]
        runtime = next(entry["version"] for entry in record["runtimes"] if entry["package"] == _STAGE)
        built = next(entry["figures"] for entry in gate["gates"] if entry["gate"] == "G2")
        pairs = {
            "weights": (row[f"{model}_weights_sha256"], card["digests"]["weights_sha256"]),
            "fp32 ONNX": (chain["onnx_sha256"], origin["onnx_sha256"]),
            "TensorRT version": (runtime, built["version"]),
            "compute capability": (machine["compute_capability"], built["gpu"]["compute_capability"]),
        }
        agreement, invariance, golden = (row["gates"][key] for key in ("G3", "G4", "golden"))
        doubts = [*chain["failures"], *_doubts(agreement, invariance)]
        gpu = {"name": machine["gpu"], "driver": machine["nvidia_smi"]["driver_version"]}
    except (KeyError, IndexError, StopIteration, TypeError):
        raise ExportError(
            f"The record does not say all that {folder} is to be approved by. Run gpu-check again."
        ) from None
    for what, (found, due) in pairs.items():
        if found != due:
            raise ExportError(
                f"The record speaks of another {what} than {folder} has ({str(found)[:12]}, not {str(due)[:12]})."
            )
    if doubts:
        raise ExportError(f"The record's own figures speak against {folder}: {'; '.join(doubts)}.")
    before: dict[str, Any] = next((entry.get("figures", {}) for entry in gate["gates"] if entry["gate"] == "G4"), {})
    g6 = {"golden": golden, "gpu": gpu, "tensorrt": runtime, "record_sha256": record["sha256"]}
    found = {"G3": agreement, "G4": {**before, "engine": invariance}, "G6": g6}
    return [{"gate": name, "passed": True, "figures": figures} for name, figures in found.items()]


def _doubts(agreement: Mapping[str, Any], invariance: Mapping[str, Any]) -> list[str]:
    """What of the record's figures is outside the thresholds, whatever state it names."""
    said = label_failures(agreement)
    if not agreement["finite"]:
        said.append("NaN or infinite values")
    if not agreement["min_cosine"] >= THRESHOLDS.min_cosine:
        said.append(f"worst cosine {agreement['min_cosine']:.6f} < {THRESHOLDS.min_cosine}")
    if not agreement["max_abs_relative"] <= THRESHOLDS.max_abs_relative:
        said.append(f"relative difference {agreement['max_abs_relative']:.2e} > {THRESHOLDS.max_abs_relative}")
    if not agreement["tiles"] >= THRESHOLDS.tiles:
        said.append(f"{agreement['tiles']} tiles are fewer than {THRESHOLDS.tiles}")
    return said + [f"{name} changes an answer" for name in ("twice", "neighbours") if invariance[name] != 0]


def _restate(folder: Path, staged: Path, state: str, entries: list[Entry]) -> None:
    """A copy of a folder in another state; what is approved was executed. Card, gate and seal change together.

    `entries` take the place of those of the same gates.
    """
    bring(folder, staged)
    card, gate, origin = (read_json(folder / file) for file in ("card.json", "gate.json", "provenance.json"))
    if state == "APPROVED":
        card.pop("not_executed", None)
    card_bytes = json_bytes(card)
    origin["files"]["card.json"] = sha256_bytes(card_bytes)
    gates = {entry["gate"]: entry for entry in [*gate["gates"], *entries]}
    gate |= {"state": state, "gates": [gates[name] for name in sorted(gates)]}
    (staged / "card.json").write_bytes(card_bytes)
    (staged / "gate.json").write_bytes(json_bytes(gate))
    (staged / "provenance.json").write_bytes(json_bytes(origin))
