"""The gates of one build, as they go, and what is written of them: gate.json, or gate-failed.json and nothing else."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from exporters.errors import GateFailed
from exporters.targets import STATES, TargetArtefact
from training.files import json_bytes, write_atomic
from training.runs import Run

SCHEMA = "pathserve-gate-2"

Entry = Mapping[str, Any]
"""{"gate": "G1", "passed": True, "figures": {…}}; a gate that was not run has `passed` None and a "reason"."""


class Gates:
    """What was measured of one artefact so far. The first failure ends the build."""

    def __init__(self, run: Run, folder: str, target: str, precision: str) -> None:
        self._run, self._subject = run, {"folder": folder, "target": target, "precision": precision}
        self.entries: list[Entry] = []

    def measure(self, gate: str, asked: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The figures of a gate. Raises GateFailed where it fails, with gate-failed.json written."""
        with self:
            figures = asked()
        self.entries.append({"gate": gate, "passed": True, "figures": figures})
        return figures

    def figures(self, gate: str) -> dict[str, Any]:
        """What a gate that has passed measured."""
        return next(entry["figures"] for entry in self.entries if entry["gate"] == gate)

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """A gate that fails inside leaves its figures in the run folder; on stderr where that cannot be written."""
        if not isinstance(error, GateFailed):
            return
        gate = error.detail.partition(":")[0]
        failed = {"gate": gate, "passed": False, "reason": error.detail, "figures": error.figures}
        error.gates = [*self.entries, failed]
        document = json_bytes({"schema": SCHEMA, **self._subject, "passed": False, "gates": error.gates})
        try:
            write_atomic(self._run.path / "gate-failed.json", document)
        except OSError:
            sys.stderr.write(document.decode())


def merged(onnx: list[Entry], target: tuple[Entry, ...]) -> list[Entry]:
    """The gates of the fp32 ONNX with those of the engine that was made of it, by name; of both where both ran it."""
    entries = {entry["gate"]: dict(entry) for entry in onnx}
    for entry in target:
        before, figures = entries.get(entry["gate"]), dict(entry)
        if before is not None:
            engine = {"engine": entry["figures"]} if "figures" in entry else {}
            figures["figures"] = {"onnx": before["figures"]} | engine
        entries[entry["gate"]] = figures
    return [entries[name] for name in sorted(entries)]


def not_run(gate: str, reason: str) -> Entry:
    return {"gate": gate, "passed": None, "reason": reason}


def state_of(artefact: TargetArtefact, *, reduced: bool) -> str:
    """The state of an engine that runs here once it has passed G5: APPROVED, unless G3 had too few tiles."""
    return "APPROVED" if artefact.state == "BUILT" and not reduced else artefact.state


def least(states: list[str]) -> str:
    """The state of what is made of several artefacts."""
    return min(states, key=STATES.index)


def gate_json(card: Mapping[str, Any], entries: list[Entry], *, state: str, reduced: bool) -> bytes:
    """gate.json of the artefact that `card` describes; every gate that was run has passed."""
    return json_bytes(
        {
            "schema": SCHEMA,
            "model": card["name"],
            "version": card["version"],
            "target": card["target"],
            "precision": card["precision"],
            "state": state,
            "reduced": reduced,
            "passed": all(entry["passed"] is not False for entry in entries),
            "engine_sha256": card["digests"]["engine_sha256"],
            "gates": list(entries),
        }
    )
