"""The model repository as the gateway reads it: names, contracts, cards, golden answers; nothing unproven is loaded."""

import hashlib
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jsonschema import Draft202012Validator, ValidationError
from pydantic import ValidationError as MalformedCard

from gateway.domain.model import ModelCard
from gateway.inference.contract import Array, Contract, parse_contract
from gateway.operations import codec
from gateway.operations.errors import ModelNotLoaded, ModelRefused

SCHEMA = "pathserve-card-1"
GOLDEN_TOLERANCE = 1e-4

# Triton's stubs are started through a shell: any other character in a model's name could run as a command.
_NAME = re.compile(r"[A-Za-z0-9_-]+\Z")
_EXPECTED = "expected."


@dataclass(frozen=True, slots=True)
class Golden:
    """Inputs with their known answers (`golden.npz`), and the greatest absolute difference that counts as equal."""

    inputs: dict[str, Array]
    expected: dict[str, Array]
    tolerance: float


class ModelRepository:
    """The models under one folder. Reads afresh at every call: a new engine goes live without a new gateway."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def names(self) -> tuple[str, ...]:
        """Every model folder whose name is safe, sorted; whether each is sound is `check`'s answer."""
        if not self.path.is_dir():
            return ()
        return tuple(
            sorted(
                entry.name
                for entry in self.path.iterdir()
                if _NAME.match(entry.name) and (entry / "config.pbtxt").is_file()
            )
        )

    def contract(self, name: str) -> Contract:
        """A model's inputs and outputs. Raises ModelNotLoaded where there is no such model, ModelRefused."""
        return parse_contract(name, self._read(name, "config.pbtxt"))

    def card(self, name: str) -> ModelCard:
        """A model's card. Raises ModelNotLoaded where there is no such model, ModelRefused for a card not as agreed."""
        document = self.document(name)
        digests = document["digests"]
        try:
            version = {key: digests[key] for key in ("engine_sha256", "weights_sha256", "recipe", "recipe_sha256")}
            version |= {key: document[key] for key in ("name", "version", "kind")}
            version["manifest_sha256"] = digests["manifest_sha256"]
            defaults: dict[str, Any] = {"labels": [], "operating_points": [], "limits": []}
            return codec.load(ModelCard, defaults | document | {"version": version})
        except (KeyError, MalformedCard) as error:
            raise ModelRefused(
                f"The model {name} is refused: its card.json is not as agreed ({_first(error)}). Export it again."
            ) from None

    def document(self, name: str) -> dict[str, Any]:
        """The whole of a model's card.json, valid by card.schema.json. Raises ModelNotLoaded, ModelRefused."""
        try:
            document = json.loads(self._read(name, "card.json"))
            if not isinstance(document, dict) or document.get("schema") != SCHEMA:
                raise ModelRefused(f"The model {name} is refused: its card.json is not a {SCHEMA}. Export it again.")
            schema = self.path / "card.schema.json"
            if schema.is_file():
                Draft202012Validator(json.loads(schema.read_text("utf-8"))).validate(document)
        except (OSError, ValueError, ValidationError) as error:
            raise ModelRefused(
                f"The model {name} is refused: its card.json is not valid ({_first(error)}). Export it again."
            ) from None
        if document.get("name") != name:
            raise ModelRefused(f"The model {name} is refused: its card.json belongs to another model.")
        if not isinstance(document.get("digests"), dict):
            raise ModelRefused(f"The model {name} is refused: its card.json has no digests. Export it again.")
        return document

    def golden(self, name: str) -> Golden | None:
        """A model's known answers, or None where it has none. Raises ModelNotLoaded, ModelRefused."""
        folder = self._folder(name)
        if not (folder / "golden.npz").is_file():
            return None
        try:
            # numpy leaves a file that it opened itself open where it is no archive.
            with (folder / "golden.npz").open("rb") as file, np.load(file, allow_pickle=False) as archive:
                arrays = dict(archive)
        except Exception:  # a broken archive raises whatever numpy, zipfile, zlib and struct raise
            raise ModelRefused(
                f"The model {name} is refused: its golden.npz cannot be read. Export it again."
            ) from None
        expected = {key.removeprefix(_EXPECTED): value for key, value in arrays.items() if key.startswith(_EXPECTED)}
        inputs = {key: value for key, value in arrays.items() if not key.startswith(_EXPECTED)}
        if not expected or not expected.keys() <= {spec.name for spec in self.contract(name).outputs}:
            raise ModelRefused(f"The model {name} is refused: its golden.npz does not fit its config. Export it again.")
        tolerance = float(self.document(name).get("golden_tolerance", GOLDEN_TOLERANCE))
        return Golden(inputs, expected, tolerance)

    def check(self, name: str) -> Contract:
        """Prove that a model is what its card says, by digest, and safe to load, its steps too; gives its contract.

        Raises ModelNotLoaded where there is no such model, ModelRefused with the reason.
        """
        contract = self.contract(name)
        card = self.card(name)
        for step in contract.steps:
            if self.check(step).steps:
                raise ModelRefused(f"The model {name} is refused: its step {step} is an ensemble itself.")
        if self.served_version(name) != card.version.version:
            raise ModelRefused(
                f"The model {name} is refused: its card is of version {card.version.version}, and version "
                f"{self.served_version(name)} would be served. Export it again."
            )
        if self.engine_digest(contract, card.version.version) != card.version.engine_sha256:
            raise ModelRefused(
                f"The model {name} is refused: its engine is not the one that its card names (the digest differs). "
                "Export it again, or restore the file."
            )
        return contract

    def served_version(self, name: str) -> str:
        """The version that Triton serves: the highest number. Raises ModelRefused where there is none."""
        folder = self._folder(name)
        versions = [int(entry.name) for entry in folder.iterdir() if re.fullmatch(r"[1-9][0-9]*", entry.name)]
        if not versions:
            raise ModelRefused(f"The model {name} is refused: it has no version folder. Export it again.")
        return str(max(versions))

    def engine_digest(self, contract: Contract, version: str) -> str:
        """sha256 of a model's artefact; of an ensemble, over the sorted lines `step:digest` of its steps."""
        if contract.steps:
            lines = sorted(
                f"{step}:{self.engine_digest(self.contract(step), self.served_version(step))}"
                for step in contract.steps
            )
            return hashlib.sha256("\n".join(lines).encode()).hexdigest()
        artefact = self._folder(contract.name) / version / contract.artefact
        try:
            status = artefact.stat()
            return _sha256(artefact, (status.st_ino, status.st_mtime_ns, status.st_size))
        except OSError:
            raise ModelRefused(
                f"The model {contract.name} is refused: its engine file is missing. Export it again."
            ) from None

    def _folder(self, name: str) -> Path:
        if not _NAME.match(name):
            raise ModelRefused("A model's name may hold letters, digits, dashes and underscores only.")
        folder = self.path / name
        if not folder.is_dir():
            raise ModelNotLoaded(f"There is no model {name} in the model repository. Export it, or correct the name.")
        return folder

    def _read(self, name: str, file: str) -> str:
        try:
            return (self._folder(name) / file).read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            raise ModelRefused(f"The model {name} is refused: its {file} is missing or unreadable.") from None


@lru_cache(maxsize=256)
def _sha256(file: Path, stamp: tuple[int, int, int]) -> str:
    """The digest of a file; computed again only where `stamp` (inode, time, size) says that it changed."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _first(error: Exception) -> str:
    """The first line of a validation error, without the document."""
    if isinstance(error, ValidationError):
        return f"{error.json_path}: {error.message[:200]}"
    if isinstance(error, MalformedCard):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return f"{error}".splitlines()[0]
