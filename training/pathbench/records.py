"""One result of the bench: an encoder on a task's cohort, as a file that names all that it depends on."""

import io
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from training.errors import ResultInvalid
from training.files import json_bytes, sha256_bytes, write_atomic

Board = Literal["main", "flagged", "survival"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A cell: model × task × cohort (arXiv 2505.20202, result record; estimate and interval stored, unrounded).

    `values` holds one number a seed (survival: a fold and seed), higher is better; `value` is the point estimate that
    is ranked (their mean), `low` to `high` the 95 % bootstrap over `groups` groups that hold `items` items.
    `grouping` says what a group is ("patient", "field", "connected tissue", "patient-unknown" …).
    `test_reads` counts how often the cohort's labels were looked at for these numbers: once, after all choices.
    `key` names what the numbers depend on, and gives the cell its name; `predictions` is a .npz beside the cell's file
    with `probabilities_RNC` (R seeds), `labels_N` and `groups_N` for paired tests, where the metric has them; `also`
    holds other figures of the same predictions, which no board ranks.
    """

    model: str
    organ: str
    task: str
    cohort: str
    type: str
    probe: str
    metric: str
    values: tuple[float, ...]
    value: float
    low: float
    high: float
    groups: int
    items: int
    grouping: str
    board: Board
    leakage: Literal["clean", "overlap", "unknown"]
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    also: dict[str, float] = field(default_factory=dict)
    optimistic: bool = False
    test_reads: int
    key: dict[str, Any]
    predictions: str | None = None

    @property
    def cell(self) -> str:
        return cell_name(self.key)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """A record from its JSON object. Raises ResultInvalid."""
        names = {each.name for each in fields(cls)}
        try:
            known = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if name in names}
            return cls(**known)
        except TypeError as error:
            raise ResultInvalid(f"A result of the bench cannot be read: {error}. Run the bench again.") from None


def cell_name(key: dict[str, Any]) -> str:
    """32 hexadecimal digits of the key's content: equal keys, equal cells."""
    return sha256_bytes(json.dumps(key, sort_keys=True, separators=(",", ":")).encode())[:32]


def write_record(folder: Path, record: Record, predictions: dict[str, np.ndarray] | None = None) -> None:
    """The cell's files, predictions first: a record that can be read is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    if predictions is not None and record.predictions is not None:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **predictions)
        write_atomic(folder / record.predictions, buffer.getvalue())
    write_atomic(folder / f"{record.cell}.json", json_bytes(asdict(record)))


def read_record(path: Path) -> Record:
    """One cell's record. Raises ResultInvalid where the file is not one, or bears another cell's name."""
    try:
        record = Record.of(json.loads(path.read_bytes()))
    except (OSError, ValueError):
        raise ResultInvalid(f"The result {path.name} cannot be read. Remove it and run the bench again.") from None
    if record.cell != path.stem:
        raise ResultInvalid(f"The result {path.name} is not the cell of its name. Remove it and run the bench again.")
    return record
