"""A model folder's provenance.json and gate.json: what seals its other files, and what was proven of its engine.

provenance.json holds the digests of the files beside it (`files`) and of the engine; gate.json says how far the engine
was proven. Both are read strictly: an unknown state, a number where a name belongs, or a missing field is a refusal.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError

from gateway.domain.model import Precision, Target
from gateway.inference.names import split_folder
from gateway.operations import codec
from gateway.operations.errors import ModelRefused

SEALED = ("card.json", "config.pbtxt")
"""Files that provenance.json must name; golden.npz and others may stand beside them."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
State = Literal["EXPORTED", "PARSED", "BUILT", "APPROVED"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """`provenance.json` (pathserve-provenance-2): where a version comes from.

    `files` maps the names of the files beside it to their sha256; `onnx_sha256` is of the fp32 ONNX that the engine was
    made of, of an ensemble over its steps.
    """

    schema: Literal["pathserve-provenance-2"]
    model: str
    version: str
    kind: str
    target: Target
    precision: Precision
    recipe: str
    recipe_sha256: Sha256
    manifest_sha256: Sha256
    weights_sha256: Sha256
    onnx_sha256: Sha256
    engine_sha256: Sha256
    files: Mapping[str, Sha256]
    golden_sha256: Sha256 | None = None
    git_commit: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One gate's outcome: `passed` is None where it was not run, and `reason` then says why."""

    gate: str
    passed: bool | None
    figures: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GateReport:
    """`gate.json` (pathserve-gate-2): how far one engine was proven. Only an APPROVED one is served.

    `reduced`: it was compared on fewer than 5,000 tiles.
    """

    schema: Literal["pathserve-gate-2"]
    model: str
    version: str
    target: Target
    precision: Precision
    state: State
    reduced: bool
    passed: bool
    engine_sha256: Sha256
    gates: tuple[Gate, ...]

    @property
    def approved(self) -> bool:
        return self.state == "APPROVED" and self.passed


def parse_provenance(folder: str, data: bytes) -> Provenance:
    """Raises ModelRefused for bytes that are no such document, or that name too few files."""
    provenance = _parse(Provenance, folder, "provenance.json", data)
    missing = [file for file in SEALED if file not in provenance.files]
    if missing:
        raise ModelRefused(
            f"The model {folder} is refused: its provenance.json says nothing of {', '.join(missing)}. Export it again."
        )
    if provenance.files.get("golden.npz") != provenance.golden_sha256:
        raise ModelRefused(
            f"The model {folder} is refused: its provenance.json names two digests of golden.npz. Export it again."
        )
    return provenance


def parse_gate(folder: str, data: bytes) -> GateReport:
    """Raises ModelRefused for bytes that are no such document, or whose verdict its own gates do not carry."""
    report = _parse(GateReport, folder, "gate.json", data)
    failed = [gate.gate for gate in report.gates if gate.passed is False]
    problem = None
    if report.passed and failed:
        problem = f"says passed, and {', '.join(failed)} failed"
    elif report.approved and report.reduced:
        problem = "says APPROVED after a reduced comparison"
    if problem:
        raise ModelRefused(f"The model {folder} is refused: its gate.json {problem}. Export it again.")
    return report


def demand_proven(folder: str, report: GateReport) -> None:
    """Raise ModelRefused for a network that is called APPROVED without the gates that carry the word.

    An engine of lower precision is another function than the one that was measured: G3 compares the two. An ensemble
    has the gates of its steps.
    """
    needed = {"G0"} if report.precision == "fp32" else {"G0", "G3"}
    missing = sorted(needed - {gate.gate for gate in report.gates if gate.passed})
    if report.approved and missing:
        raise ModelRefused(
            f"The model {folder} is refused: its gate.json says APPROVED without {', '.join(missing)}. Export it again."
        )


def demand_approved(folder: str, report: GateReport) -> None:
    """Raise ModelRefused for a version that may not be served, with how far it came."""
    if report.approved:
        return
    if not report.passed:
        failed = ", ".join(gate.gate for gate in report.gates if gate.passed is False) or "its gate"
        raise ModelRefused(f"The model {folder} is refused: it failed {failed}. Export it again, or serve another one.")
    if report.state == "BUILT":
        why = "compared on too few tiles" if report.reduced else "not approved"
        raise ModelRefused(
            f"The model {folder} is refused: it was built but {why} (state BUILT). Approve it with its full gate, or "
            "serve another version."
        )
    raise ModelRefused(
        f"The model {folder} is refused: it was never executed (state {report.state}), so it is not approved. Run "
        "deploy/gpu-check where its hardware is and approve it, or serve another version."
    )


def demand_sealed(folder: str, file: str, sha256: str, provenance: Provenance) -> None:
    """Raise ModelRefused where a file's digest is not the one that provenance.json names."""
    if sha256 != provenance.files.get(file):
        raise ModelRefused(
            f"The model {folder} is refused: its {file} is not the one that its provenance.json names (the digest "
            "differs). Export it again, or restore the file."
        )


def lines_digest(digests: Mapping[str, str]) -> str:
    """sha256 over the sorted lines `name:digest`: an engine of several files, and an ensemble of its steps."""
    return hashlib.sha256(
        "\n".join(sorted(f"{name}:{digest}" for name, digest in digests.items())).encode()
    ).hexdigest()


_T = TypeVar("_T", Provenance, GateReport)


def _parse(kind: type[_T], folder: str, file: str, data: bytes) -> _T:
    try:
        document: _T = codec.adapter(kind).validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ModelRefused(
            f"The model {folder} is refused: its {file} is not as agreed ({where + ': ' if where else ''}"
            f"{first['msg']}). Export it again, or restore the file."
        ) from None
    if split_folder(folder) != (document.model, document.version):
        raise ModelRefused(
            f"The model {folder} is refused: its {file} is of {document.model} version {document.version}. Export it "
            "again."
        )
    return document
