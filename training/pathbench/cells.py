"""Cells by what they depend on, on disk: written whole, found again, computed by one process at a time."""

import ast
import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from training.errors import ResultInvalid
from training.files import json_bytes, sha256_bytes, write_atomic
from training.pathbench.protocols import Outcome
from training.pathbench.records import Record, cell_name, read_record, write_record

_SHARED = (
    "training.pathbench.protocols",
    "training.pathbench.material",
    "training.pathbench.probes",
    "training.statistics",
)
_CODE = {
    "tile": ("training.pathbench.protocols.tile",),
    "slide": ("training.pathbench.protocols.slide", "training.pathbench.bags", "training.nn.mil"),
    "segmentation": ("training.pathbench.protocols.segmentation",),
    "survival": ("training.pathbench.protocols.survival", "training.nn.survival", "training.data.tcga"),
}


def code_version(kind: str) -> str:
    """Digest of the code that makes a kind's numbers, without comments, docstrings and layout."""
    return sha256_bytes("\n".join(_essence(module) for module in (*_SHARED, *_CODE[kind])).encode())[:16]


def _essence(module: str) -> str:
    spec = find_spec(module)
    assert spec is not None, "the table names modules of ours"
    assert spec.origin is not None, "the table names modules of ours"
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [each for each in body if not _is_text(each)] or [ast.Pass()]
    return ast.dump(tree)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def config_digest(*parts: BaseModel) -> str:
    """Digest of settings, whatever the order of their keys."""
    values = [part.model_dump(mode="json") for part in parts]
    return sha256_bytes(json.dumps(values, sort_keys=True).encode())[:16]


class Cells:
    """A folder of finished cells; `earlier` are records that were published before and count as finished."""

    def __init__(self, folder: Path, earlier: tuple[Record, ...] = ()) -> None:
        self.folder = folder
        self._locks, self._refusals = folder / "locks", folder / "refusals"
        for each in (folder, self._locks, self._refusals):
            each.mkdir(parents=True, exist_ok=True)
        self._earlier = {record.cell: record for record in earlier}

    def find(self, key: dict[str, Any]) -> Record | str | None:
        """A cell's record, or the sentence with which it was refused; None where it is still to be computed."""
        name = cell_name(key)
        if (self.folder / f"{name}.json").is_file():
            return read_record(self.folder / f"{name}.json")
        if name in self._earlier:
            return self._earlier[name]
        refusal = self._refusals / f"{name}.json"
        try:
            return str(json.loads(refusal.read_bytes())["reason"]) if refusal.is_file() else None
        except (ValueError, KeyError):
            raise ResultInvalid(
                f"The result {refusal.name} cannot be read. Remove it and run the bench again."
            ) from None

    def write(self, record: Record, outcome: Outcome) -> None:
        write_record(self.folder, record, outcome.predictions)

    def refuse(self, key: dict[str, Any], reason: str) -> None:
        write_atomic(self._refusals / f"{cell_name(key)}.json", json_bytes({"key": key, "reason": reason}))

    @contextmanager
    def claim(self, name: str, *, wait: bool) -> Iterator[bool]:
        """Whether this process may compute what `name` stands for; the kernel frees the claim of one that dies."""
        with (self._locks / name).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True
