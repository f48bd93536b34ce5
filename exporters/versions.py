"""Which version of a model lies in which folder of a repository, and which folder a new artefact gets.

Read from the cards; where one cannot be read, from provenance.json, so that a damaged folder is built anew in its own
place. A folder with neither keeps its number and is otherwise passed over: one corrupt model never keeps the others
from being built.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporters.errors import ExportError
from gateway.inference.names import folder_of, split_folder

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
"""From the most precise to the least."""
TARGETS = ("onnx", "cpu", "tensorrt")
"""The reference first."""


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a model as its card says. `weights_sha256` of an ensemble is over its steps."""

    folder: str
    kind: str
    target: str
    precision: str
    weights_sha256: str
    engine_sha256: str
    title: str
    steps: tuple[str, ...]

    @property
    def model(self) -> str:
        return name_and_number(self.folder)[0]

    @property
    def number(self) -> int:
        return int(name_and_number(self.folder)[1])

    def is_of(self, model: str, weights_sha256: str) -> bool:
        return (self.model, self.weights_sha256) == (model, weights_sha256)


def name_and_number(folder: str) -> tuple[str, str]:
    """Model and version of a folder that can be served."""
    split = split_folder(folder)
    assert split is not None, folder
    return split


def versions(repository: Path) -> tuple[Version, ...]:
    """Every version whose card can be read, by model and number."""
    if not repository.is_dir():
        return ()
    found = [version for entry in repository.iterdir() if (version := _version(entry)) is not None]
    return tuple(sorted(found, key=lambda version: (version.model, version.number)))


def _version(folder: Path) -> Version | None:
    if split_folder(folder.name) is None or not folder.is_dir():
        return None
    return _of_card(folder) or _of_provenance(folder)


def _of_card(folder: Path) -> Version | None:
    try:
        card: dict[str, Any] = json.loads((folder / "card.json").read_bytes())
        return _checked(folder, card["name"], card, card["digests"], card["title"], tuple(card.get("steps", ())))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _of_provenance(folder: Path) -> Version | None:
    try:
        document: dict[str, Any] = json.loads((folder / "provenance.json").read_bytes())
        return _checked(folder, document["model"], document, document, "", ())
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _checked(
    folder: Path, model: str, said: Mapping[str, Any], digests: Mapping[str, str], title: str, steps: tuple[str, ...]
) -> Version | None:
    known = said["target"] in TARGETS and said["precision"] in PRECISIONS
    if not known or folder_of(model, said["version"]) != folder.name:
        return None
    return Version(
        folder=folder.name,
        kind=said["kind"],
        target=said["target"],
        precision=said["precision"],
        weights_sha256=digests["weights_sha256"],
        engine_sha256=digests["engine_sha256"],
        title=title,
        steps=steps,
    )


def folder_for(
    repository: Path, model: str, weights_sha256: str, target: str, precision: str, staging: Path | None = None
) -> str:
    """The folder of an artefact: its own where the same was built before, else the next free number's.

    Numbers of folders that cannot be read are taken, too: an approved version's folder never gets other content. So are
    those in `staging`, which are about to be published.
    """
    for version in versions(repository):
        if version.is_of(model, weights_sha256) and (version.target, version.precision) == (target, precision):
            return version.folder
    entries = [entry.name for root in (repository, staging) if root and root.is_dir() for entry in root.iterdir()]
    taken = [int(split[1]) for entry in entries if (split := split_folder(entry)) and split[0] == model]
    return folder_of(model, str(max(taken, default=0) + 1))


def demand_own(repository: Path, folder: str, card: Mapping[str, Any]) -> None:
    """Raises ExportError where something else than what `card` describes took the folder since it was chosen."""
    found = _version(repository / folder)
    own = (card["digests"]["weights_sha256"], card["target"], card["precision"])
    taken = (repository / folder).exists()
    if taken and (found is None or (found.weights_sha256, found.target, found.precision) != own):
        raise ExportError(f"{folder} was taken by another build meanwhile. Build again: it gets the next number.")


def least_precise(versions: list[Version]) -> Version:
    """The step that an ensemble's target and precision are named by."""
    return max(versions, key=lambda version: (PRECISIONS.index(version.precision), TARGETS.index(version.target)))
