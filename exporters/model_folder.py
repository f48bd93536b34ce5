"""One version's folder: staged whole beside the repository, then put in its place in one step."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from exporters.card import SCHEMA_FILE
from exporters.errors import ExportError
from exporters.verdict import Entry, gate_json
from training.files import exchange, write_atomic
from training.graphs import Arrays

Question = tuple[Arrays, Arrays]
"""Inputs with the answers that are due."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """What was made of one version. `files` are all but gate.json; `state` is what it has once every gate is passed."""

    folder: str
    card: Mapping[str, Any]
    files: Mapping[str, bytes]
    gates: list[Entry]
    state: str
    reduced: bool
    questions: list[Question]

    def with_gate(self, entry: Entry) -> "ModelFolder":
        return replace(self, gates=sorted([*self.gates, entry], key=lambda held: held["gate"]))

    def write(self, repository: Path) -> None:
        verdict = gate_json(self.card, self.gates, state=self.state, reduced=self.reduced)
        for path, data in (self.files | {"gate.json": verdict}).items():
            (repository / self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (repository / self.folder / path).write_bytes(data)


def read_json(path: Path) -> dict[str, Any]:
    """A sidecar of a folder that was proven before."""
    document: dict[str, Any] = json.loads(path.read_bytes())
    return document


def bring(source: Path, target: Path) -> None:
    """Copy a folder, or a repository, to where it is worked on. Raises ExportError where there is no room for it."""
    try:
        shutil.copytree(source, target)
    except shutil.Error as error:
        *_, reason = error.args[0][0]  # "[Errno 28] No space left on device: 'a path'"
        raise ExportError(
            f"{source.name} cannot be copied beside the repository: {reason.partition('] ')[2].partition(':')[0]}. "
            "Make room there, or build into another repository."
        ) from None


def keep_schema(repository: Path) -> None:
    """Lay the schema of cards beside them, where it is not there already."""
    schema, path = SCHEMA_FILE.read_bytes(), repository / SCHEMA_FILE.name
    if not path.is_file() or path.read_bytes() != schema:
        write_atomic(path, schema)


def publish(staged: Path, target: Path) -> None:
    """Put a whole folder in the place of another in one step: no reader, and no kill, finds neither or half of one."""
    try:
        if target.exists():
            exchange(staged, target)
        else:
            staged.rename(target)
    except OSError as error:
        raise ExportError(
            f"The folder of {target.name} cannot be replaced in the repository ({error.strerror}). Build into a "
            "repository on a local file system, and copy it from there."
        ) from None
