"""The seam between the build and what an engine runs on: one small object per target.

The build makes the fp32 ONNX and its gates; a target makes of it the engine of one version's folder; the build then
runs G3 and G5 on what was written, adds the sidecars and publishes. G3 is `exporters.agreement.g3_agreement(graph,
onnx, engine, repository)`: figures with "reduced" among them, or GateFailed with its figures; `repository` holds the
heads that an encoder's answers are judged by.

A GateFailed says its gate first ("G2: …"), so that gate-failed.json can name it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.files import sha256_bytes
from training.graphs import Arrays, Graph
from training.runs import Run

STATES = ("EXPORTED", "PARSED", "BUILT", "APPROVED")
"""How far an artefact was proven, in order. Only an APPROVED one is served."""

Engine = Callable[[Arrays], Arrays]
"""An engine as it will serve: batches of named inputs to named outputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetArtefact:
    """What a target made of an fp32 ONNX.

    `files` maps paths below the model folder ("1/model.onnx") to bytes, config.pbtxt and sidecars excepted; `engine`
    names those that an answer comes from. `state` is how far the target itself brought it (never APPROVED: that is the
    build's word, after G3 and G5). `not_executed` says in a sentence what was never run. `gates` are the target's own,
    as they stand in gate.json: {"gate": "G2", "passed": True | None, "figures": {…}} or, not run, with a "reason".
    `calibration` is {"sha256": …, "count": …} of what it was calibrated on. `tools` are names with versions.
    """

    files: Mapping[str, bytes]
    engine: tuple[str, ...]
    config: str
    state: str
    not_executed: str | None = None
    gates: tuple[Mapping[str, Any], ...] = ()
    calibration: Mapping[str, Any] | None = None
    tools: Mapping[str, str] = field(default_factory=dict)

    @property
    def engine_sha256(self) -> str:
        return engine_digest({Path(path).name: self.files[path] for path in self.engine})


Build = Callable[[Run, Graph, bytes, str, str, Path], TargetArtefact]
"""(run, graph, fp32 ONNX, folder, precision, an empty work folder) -> artefact.

The config's `name` is the folder, and the artefact's paths begin with the folder's version (`gateway.inference.names`).
Raises GateFailed with figures where a gate of the target fails, ExportError where it cannot be built here.
"""

Open = Callable[[Path], Engine | None]
"""A written model folder, gate.json excepted, to its engine as it will serve; None where it cannot run here.

G3 asks this engine, and G5 holds Triton's answers against its answers. Raises ExportError.
"""


@dataclass(frozen=True, slots=True)
class Target:
    """Where engines run: `precisions` that can be built, the default first."""

    name: str
    precisions: tuple[str, ...]
    build: Build
    open: Open


def engine_digest(files: Mapping[str, bytes]) -> str:
    """sha256 of an engine of one file; of several, over the sorted lines `file:sha256` (base names)."""
    if len(files) == 1:
        return sha256_bytes(next(iter(files.values())))
    return sha256_bytes("\n".join(sorted(f"{name}:{sha256_bytes(data)}" for name, data in files.items())).encode())
