"""Embeddings kept by content: an encoder's digest, its transform, and the image's digest name each row.

One SQLite file, so that several benches may read and write at once and a killed one leaves whole rows only.
"""

import logging
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.errors import DataMissing, ResultInvalid
from training.files import sha256_bytes
from training.pathbench.encoders import Encoder

_log = logging.getLogger(__name__)
_BATCH = 16
_WAIT_S = 600.0


@dataclass(frozen=True, slots=True, eq=False)
class Items:
    """Images by number: what each is, as a digest of its content, how it is read (raises DataMissing), what it is
    called in a log."""

    digests: Sequence[str]
    read: Callable[[int], np.ndarray]
    names: Sequence[str]


class FeatureCache:
    """Rows of features by content."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        with self._open() as database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS feature (name TEXT PRIMARY KEY, shape TEXT NOT NULL, row BLOB NOT NULL)"
                " WITHOUT ROWID"
            )

    def embeddings(self, encoder: Encoder, items: Items) -> tuple[np.ndarray, tuple[str, ...]]:
        """(N,D) float32, and the names of the items that cannot be read: their rows are NaN."""
        return self._rows(encoder, items, "embedding", encoder.embed)

    def maps(self, encoder: Encoder, items: Items) -> tuple[np.ndarray, tuple[str, ...]]:
        """(N,h,w,C) float16 dense features of items of one size, and the names of those that cannot be read."""
        return self._rows(encoder, items, "map", encoder.dense)

    def _rows(
        self, encoder: Encoder, items: Items, what: str, compute: Callable[[list[np.ndarray], int], np.ndarray]
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        meta = encoder.meta
        dtype = np.float16 if what == "map" else np.float32
        names = [sha256_bytes(f"{what} {meta.checksum} {meta.transform} {digest}".encode()) for digest in items.digests]
        with self._open() as database:
            rows = {name: row for name in dict.fromkeys(names) if (row := _get(database, name, dtype)) is not None}
            missing = [place for place, name in enumerate(names) if name not in rows]
            unreadable = []
            for start in range(0, len(missing), _BATCH):
                places, images = [], []
                for place in missing[start : start + _BATCH]:
                    try:
                        images.append(items.read(place))
                    except (DataMissing, ValueError) as error:
                        _log.warning("%s is skipped, it cannot be read: %s", items.names[place], error)
                        unreadable.append(items.names[place])
                    else:
                        places.append(place)
                if not images:
                    continue
                found = compute(images, _BATCH).astype(dtype)
                if not np.isfinite(found).all():
                    raise ResultInvalid(
                        f"The encoder {meta.id} gives numbers that are not finite, for {items.names[places[0]]} or an "
                        "image soon after it. Mend its weights or its transform."
                    )
                with database:
                    for place, row in zip(places, found, strict=True):
                        _put(database, names[place], row)
                        rows[names[place]] = row
        shapes = {row.shape for row in rows.values()}
        if len(shapes) != 1:
            raise ResultInvalid(f"The encoder {meta.id} gives no features of one shape for these images.")
        nothing = np.full(shapes.pop(), np.nan, dtype)
        return np.stack([rows.get(name, nothing) for name in names]), tuple(unreadable)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path, timeout=_WAIT_S)) as database:
            yield database


def _get(database: sqlite3.Connection, name: str, dtype: type) -> np.ndarray | None:
    row = database.execute("SELECT shape, row FROM feature WHERE name = ?", (name,)).fetchone()
    return None if row is None else np.frombuffer(row[1], dtype).reshape([int(size) for size in row[0].split()])


def _put(database: sqlite3.Connection, name: str, row: np.ndarray) -> None:
    shape = " ".join(str(size) for size in row.shape)
    database.execute("INSERT OR IGNORE INTO feature VALUES (?, ?, ?)", (name, shape, row.tobytes()))
