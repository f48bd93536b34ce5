"""The model repository as the gateway reads it: versions, contracts, cards, golden answers, each proven by digest."""

import hashlib
import io
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.exceptions import best_match
from pydantic import ValidationError as MalformedCard

from gateway.domain.model import ModelCard, Precision, Target
from gateway.inference.contract import Array, Contract, parse_contract
from gateway.inference.names import split_folder
from gateway.inference.sidecars import (
    GateReport,
    Provenance,
    demand_approved,
    demand_proven,
    demand_sealed,
    lines_digest,
    parse_gate,
    parse_provenance,
)
from gateway.operations import codec
from gateway.operations.errors import ModelNotLoaded, ModelRefused

SCHEMA = "pathserve-card-1"
GOLDEN_TOLERANCE = 1e-4

_SIDECARS = ("config.pbtxt", "card.json", "gate.json", "provenance.json")
_CHAIN = ("engine_sha256", "weights_sha256", "recipe", "recipe_sha256", "manifest_sha256")
_DETECTOR = ("overlap_px", "score_threshold", "nms_iou")
_EXPECTED = "expected."
# A file may change twice within one tick of its clock: younger than this, it is hashed each time.
_YOUNG_S = 2.0


@dataclass(frozen=True, slots=True)
class Golden:
    """Inputs with their known answers (`golden.npz`), and the greatest absolute difference that counts as equal."""

    inputs: dict[str, Array]
    expected: dict[str, Array]
    tolerance: float


class ModelRepository:
    """The models under one folder, each version in a folder of its own (gateway/inference/names.py).

    Reads afresh at every call, and proves what it gives: a card, a config or golden answers that are not those that
    provenance.json names are never given out. Only large files are not hashed again while they lie unchanged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def folders(self) -> tuple[str, ...]:
        """Every model folder whose name can be served, sorted; whether each is sound is `check`'s answer."""
        try:
            return tuple(sorted(entry.name for entry in self.path.iterdir() if _is_model(entry)))
        except OSError:
            return ()

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the models, sorted; each has one version or several."""
        return tuple(sorted({model for model, _ in self._split()}))

    def versions(self, model: str) -> tuple[str, ...]:
        """The versions of a model, in the order of their numbers; empty where there is no such model."""
        return tuple(sorted((version for name, version in self._split() if name == model), key=int))

    def contract(self, folder: str) -> Contract:
        """A version's inputs and outputs. Raises ModelNotLoaded where there is no such folder, ModelRefused."""
        data = self._sealed(folder, "config.pbtxt")
        try:
            return _contract(folder, data.decode())
        except UnicodeDecodeError:
            raise ModelRefused(
                f"The model {folder} is refused: its config.pbtxt is no text. Export it again."
            ) from None

    def card(self, folder: str) -> ModelCard:
        """A version's card, as sealed: a label list that was exchanged is not used, not even later.

        Raises ModelNotLoaded where there is no such folder, ModelRefused where the card is not as agreed.
        """
        document = self.document(folder)
        try:
            version = {key: document["digests"][key] for key in _CHAIN}
            version |= {key: document[key] for key in ("name", "version", "kind", "target", "precision")}
            defaults: dict[str, Any] = {"labels": [], "operating_points": [], "limits": []}
            rule = {"detector": {key: document[key] for key in _DETECTOR}} if document["kind"] == "detector" else {}
            return codec.load(ModelCard, defaults | document | rule | {"version": version})
        except (KeyError, MalformedCard) as error:
            raise ModelRefused(
                f"The model {folder} is refused: its card.json is not as agreed ({_first(error)}). Export it again."
            ) from None

    def document(self, folder: str) -> dict[str, Any]:
        """The whole of a version's card.json, valid by card.schema.json. Raises ModelNotLoaded, ModelRefused."""
        data = self._sealed(folder, "card.json")
        try:
            document = json.loads(data, parse_constant=_no_number)
            if not isinstance(document, dict) or document.get("schema") != SCHEMA:
                raise ModelRefused(f"The model {folder} is refused: its card.json is not a {SCHEMA}. Export it again.")
            schema = self.path / "card.schema.json"
            if schema.is_file():
                _validate(data, schema.read_bytes())
        except (OSError, ValueError, RecursionError, ValidationError) as error:
            raise ModelRefused(
                f"The model {folder} is refused: its card.json is not valid ({_first(error)}). Export it again."
            ) from None
        if (document.get("name"), document.get("version")) != self._named(folder):
            raise ModelRefused(
                f"The model {folder} is refused: its card.json belongs to another model ({document.get('name')} "
                f"version {document.get('version')}). Export it again."
            )
        if not isinstance(document.get("digests"), dict):
            raise ModelRefused(f"The model {folder} is refused: its card.json has no digests. Export it again.")
        return document

    def provenance(self, folder: str) -> Provenance:
        """Where a version comes from, and the digests that seal it. Raises ModelNotLoaded, ModelRefused."""
        return parse_provenance(folder, self._read(folder, "provenance.json"))

    def gate(self, folder: str) -> GateReport:
        """How far a version was proven. Raises ModelNotLoaded, ModelRefused."""
        return parse_gate(folder, self._read(folder, "gate.json"))

    def golden(self, folder: str) -> Golden | None:
        """A version's known answers, or None where it was sealed without. Raises ModelNotLoaded, ModelRefused."""
        if "golden.npz" not in self.provenance(folder).files:
            return None
        data = self._sealed(folder, "golden.npz")
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                arrays = dict(archive)
        except Exception:  # a broken archive raises whatever numpy, zipfile, zlib and struct raise
            raise ModelRefused(
                f"The model {folder} is refused: its golden.npz cannot be read. Export it again."
            ) from None
        expected = {key.removeprefix(_EXPECTED): value for key, value in arrays.items() if key.startswith(_EXPECTED)}
        inputs = {key: value for key, value in arrays.items() if not key.startswith(_EXPECTED)}
        tolerance = self.document(folder).get("golden_tolerance", GOLDEN_TOLERANCE)
        problem = None
        if expected.keys() != {spec.name for spec in self.contract(folder).outputs}:
            problem = "its golden.npz does not fit its config: it has to answer for each output"
        elif not isinstance(tolerance, int | float) or not tolerance > 0:
            problem = "the golden_tolerance of its card.json is no number above 0"
        if problem:
            raise ModelRefused(f"The model {folder} is refused: {problem}. Export it again.")
        return Golden(inputs, expected, float(tolerance))

    def check(self, folder: str) -> Contract:
        """`verify`, and prove that the version and its steps may serve: APPROVED, no less. Gives its contract.

        Raises ModelNotLoaded where there is no such folder, ModelRefused with the reason.
        """
        contract = self.verify(folder)
        for name in (*contract.steps, folder):
            demand_approved(name, self.gate(name))
        return contract

    def verify(self, folder: str) -> Contract:
        """Prove that a version is what its sidecars say, by digest, its steps too, in whatever state; its contract.

        Raises ModelNotLoaded where there is no such folder, ModelRefused with the reason.
        """
        provenance, gate, contract = self.provenance(folder), self.gate(folder), self.contract(folder)
        document, card = self.document(folder), self.card(folder)
        _agree(folder, card, provenance, gate)
        if (card.kind == "ensemble") != bool(contract.steps):
            raise ModelRefused(
                f"The model {folder} is refused: its card.json calls it {card.kind}, and its config.pbtxt makes it "
                f"{'an ensemble' if contract.steps else 'none'}. Export it again."
            )
        if gate.approved and document.get("not_executed"):
            raise ModelRefused(
                f"The model {folder} is refused: its card.json says that it was never executed, and its gate.json says "
                "APPROVED. Approve it again."
            )
        for file in provenance.files:
            demand_sealed(folder, file, self._digest(folder, self._folder(folder) / file), provenance)
        if contract.steps:
            self._verify_steps(folder, contract, document)
        else:
            demand_proven(folder, gate)
            if gate.state in ("BUILT", "APPROVED") and contract.artefact not in self._engine(folder):
                raise ModelRefused(f"The model {folder} is refused: its engine file is missing. Export it again.")
        self.served_version(folder)
        if self.engine_digest(folder) != card.version.engine_sha256:
            raise ModelRefused(
                f"The model {folder} is refused: its engine is not the one that its card names (the digest differs). "
                "Export it again, or restore the file."
            )
        return contract

    def served_version(self, folder: str) -> str:
        """The version that Triton serves of a folder: the only one in it. Raises ModelNotLoaded, ModelRefused."""
        _, version = self._named(folder)
        try:
            found = sorted(entry.name for entry in self._folder(folder).iterdir() if entry.name.isdecimal())
        except OSError:
            raise _missing(folder, "folder") from None
        if not found:
            raise ModelRefused(f"The model {folder} is refused: it has no version folder. Export it again.")
        if found != [version]:
            raise ModelRefused(
                f"The model {folder} is refused: it is version {version}, and its version folder is "
                f"{', '.join(found)}. Export it again."
            )
        return version

    def engine_digest(self, folder: str) -> str:
        """sha256 of a version's engine, as it lies there; of several files, and of an ensemble's steps, by lines.

        The engine is every file of the version folder that provenance.json does not name: `model.xml` and its
        `model.bin` are one engine. Raises ModelNotLoaded, ModelRefused.
        """
        contract = self.contract(folder)
        if contract.steps:
            return lines_digest({step: self.engine_digest(step) for step in contract.steps})
        digests = {name: self._digest(folder, file) for name, file in self._engine(folder).items()}
        return next(iter(digests.values())) if len(digests) == 1 else lines_digest(digests)

    def _verify_steps(self, folder: str, contract: Contract, document: dict[str, Any]) -> None:
        problem = None
        for step in contract.steps:
            # Before the step is verified: two ensembles may name each other.
            if self.contract(step).steps:
                raise ModelRefused(
                    f"The model {folder} is refused: its step {step} is an ensemble itself. Export it again."
                )
            self.verify(step)
        if document.get("steps") != list(contract.steps):
            problem = "its card.json and config.pbtxt name different steps"
        elif _engine_of(self.card(folder)) != max(_engine_of(self.card(step)) for step in contract.steps):
            problem = "its card.json does not carry target and precision of its least precise step"
        if problem:
            raise ModelRefused(f"The model {folder} is refused: {problem}. Export it again.")

    def _split(self) -> Iterator[tuple[str, str]]:
        return (self._named(folder) for folder in self.folders)

    def _named(self, folder: str) -> tuple[str, str]:
        named = split_folder(folder)
        if named is None:
            raise ModelRefused(
                "A model folder's name may hold letters, digits and underscores, then -v and the number of a version "
                "from 2 on."
            )
        return named

    def _folder(self, folder: str) -> Path:
        self._named(folder)
        path = self.path / folder
        if not path.is_dir():
            raise ModelNotLoaded(f"There is no model {folder} in the model repository. Export it, or correct the name.")
        return path

    def _engine(self, folder: str) -> dict[str, Path]:
        """The files of a version's engine by their names in the version folder; hidden ones are none."""
        version = self._folder(folder) / self._named(folder)[1]
        others = self.provenance(folder).files
        try:
            found = {file.relative_to(version).as_posix(): file for file in version.rglob("*") if file.is_file()}
        except OSError:  # it vanished meanwhile
            raise _missing(folder, "engine") from None
        return {
            name: file
            for name, file in found.items()
            if not file.name.startswith(".") and f"{version.name}/{name}" not in others
        }

    def _read(self, folder: str, file: str) -> bytes:
        try:
            return (self._folder(folder) / file).read_bytes()
        except OSError:
            raise _missing(folder, file) from None

    def _sealed(self, folder: str, file: str) -> bytes:
        """The bytes of a file, which are those that provenance.json names."""
        data, provenance = self._read(folder, file), self.provenance(folder)
        if hashlib.sha256(data).hexdigest() != provenance.files.get(file):
            # The folder may have been exchanged for another between the two: both of the same one, then.
            data, provenance = self._read(folder, file), self.provenance(folder)
        demand_sealed(folder, file, hashlib.sha256(data).hexdigest(), provenance)
        return data

    def _digest(self, folder: str, file: Path) -> str:
        try:
            return _sha256(file)
        except OSError:
            raise _missing(folder, file.name) from None


_digests: dict[Path, tuple[tuple[int, ...], str]] = {}


def _sha256(file: Path) -> str:
    """The digest of a file; computed again only where inode, times or size say that it changed. Raises OSError."""
    with file.open("rb") as stream:
        status = file.stat()
        stamp = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
        known = _digests.get(file)
        if known is not None and known[0] == stamp:
            return known[1]
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if time.time() - status.st_ctime > _YOUNG_S:
        _digests[file] = (stamp, digest)
    return digest


_contract = lru_cache(maxsize=256)(parse_contract)


@lru_cache(maxsize=256)
def _validate(document: bytes, schema: bytes) -> None:
    """Raises ValidationError, ModelRefused. What passed is not looked at again: it takes milliseconds."""
    try:
        rules = json.loads(schema)
        Draft202012Validator.check_schema(rules)
        errors = list(Draft202012Validator(rules).iter_errors(json.loads(document)))
    except Exception:  # a schema that names what is not there raises what its libraries raise
        raise ModelRefused("The model repository's card.schema.json is no schema. Restore the file.") from None
    if errors:
        raise best_match(errors)


def _is_model(entry: Path) -> bool:
    try:
        return split_folder(entry.name) is not None and any((entry / file).is_file() for file in _SIDECARS)
    except OSError:
        return True  # It cannot be looked into, which `check` says; the others are listed all the same.


def _engine_of(card: ModelCard) -> tuple[int, int]:
    """A version's precision and target as numbers; the least precise is the greatest."""
    return get_args(Precision).index(card.version.precision), get_args(Target).index(card.version.target)


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _agree(folder: str, card: ModelCard, provenance: Provenance, gate: GateReport) -> None:
    """Raise ModelRefused where card, gate and provenance are not of the same engine."""
    for field in ("target", "precision", "engine_sha256"):
        if not getattr(card.version, field) == getattr(gate, field) == getattr(provenance, field):
            raise ModelRefused(
                f"The model {folder} is refused: its card.json, gate.json and provenance.json differ in {field}. "
                "Export it again."
            )
    for field in ("kind", *_CHAIN):
        if getattr(card.version, field) != getattr(provenance, field):
            raise ModelRefused(
                f"The model {folder} is refused: its card.json and provenance.json differ in {field}. Export it again."
            )
    is_its_onnx = card.version.target == "onnx" and card.kind != "ensemble"
    if is_its_onnx and provenance.onnx_sha256 != provenance.engine_sha256:
        raise ModelRefused(
            f"The model {folder} is refused: its engine is an ONNX, and its provenance.json names another one. Export "
            "it again."
        )


def _missing(folder: str, file: str) -> ModelRefused:
    return ModelRefused(
        f"The model {folder} is refused: its {file} is missing or unreadable. Export it again, or restore the file."
    )


def _first(error: Exception) -> str:
    """The first line of a validation error, without the document."""
    if isinstance(error, ValidationError):
        return f"{error.json_path}: {error.message[:200]}"
    if isinstance(error, MalformedCard):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return f"{error}".splitlines()[0]
