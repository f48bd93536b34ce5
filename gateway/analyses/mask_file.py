"""The masks of one slide at one resolution on disk: a SQLite file, written while the windows are answered.

What a commit holds is all there is after a kill at any moment: windows answered, cells finished, cells begun. Files of
this kind are thrown away where they belong to anything else, or cannot be read.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from gateway.analyses.blending import CELL_PX, MASK_FRACTION, Array, Cell
from gateway.operations.disk import disk_errors
from gateway.operations.errors import DiskFull, RowsOutdated, StateError
from gateway.slides import quality

_LEVEL = 1
_tables = sa.MetaData()
_state = sa.Table(
    "state",
    _tables,
    sa.Column("belongs_to", sa.Text, nullable=False),
    sa.Column("windows", sa.Integer, nullable=False),
    sa.Column("missing", sa.Integer, nullable=False),
    sa.Column("blocks", sa.Integer, nullable=False),
)
_answers = sa.Table(
    "answers",
    _tables,
    sa.Column("first", sa.Integer, primary_key=True),
    sa.Column("presence", sa.LargeBinary, nullable=False),
    sa.Column("figures", sa.LargeBinary, nullable=False),
)
_begun = sa.Table(
    "begun",
    _tables,
    sa.Column("row", sa.Integer, primary_key=True),
    sa.Column("column", sa.Integer, primary_key=True),
    sa.Column("sums", sa.LargeBinary, nullable=False),
)
_cells = sa.Table(
    "cells",
    _tables,
    sa.Column("prompt", sa.Integer, primary_key=True),
    sa.Column("row", sa.Integer, primary_key=True),
    sa.Column("column", sa.Integer, primary_key=True),
    sa.Column("area_px", sa.Integer, nullable=False),
    sa.Column("total", sa.Integer, nullable=False),
    sa.Column("fractions", sa.LargeBinary, nullable=False),
)
_objects = sa.Table(
    "objects",
    _tables,
    sa.Column("prompt", sa.Integer, primary_key=True),
    sa.Column("block", sa.Integer, primary_key=True),
    sa.Column("outlines", sa.LargeBinary, nullable=False),
)


class MaskFile:
    """One open file. All that is written since the last `commit` is lost with a kill. Thread-safe, each call by itself.
    Raises DiskFull, StateError."""

    def __init__(self, path: Path, connection: sa.Connection, prompts: int) -> None:
        self.path = path
        self._connection = connection
        self._prompts = prompts
        self._turn = RLock()
        self.windows, self.missing, self.blocks = 0, 0, 0
        """Windows answered, image frames missing under them, blocks split into objects: of the plan's first ones."""

    @classmethod
    @contextmanager
    def writing(cls, path: Path, belongs_to: Mapping[str, Any], prompts: int) -> "Iterator[MaskFile]":
        """Open to go on writing; anew where what is there belongs to anything else. One at a time."""
        with disk_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
        of = json.dumps(belongs_to, sort_keys=True)
        if _owner(path) != of:
            path.unlink(missing_ok=True)
            path.with_name(path.name + "-journal").unlink(missing_ok=True)
        with _connected(path) as connection:
            file = cls(path, connection, prompts)
            with _errors():
                _tables.create_all(connection)
                if connection.execute(sa.select(_state)).first() is None:
                    connection.execute(sa.insert(_state).values(belongs_to=of, windows=0, missing=0, blocks=0))
                connection.commit()
            file.take_stock()
            yield file

    @classmethod
    @contextmanager
    def reading(cls, path: Path, belongs_to: Mapping[str, Any], prompts: int) -> "Iterator[MaskFile]":
        """Open to read. Raises RowsOutdated where it is not there, or belongs to anything else."""
        if _owner(path) != json.dumps(belongs_to, sort_keys=True):
            raise RowsOutdated(
                "The stored masks do not belong to the slide, prompts and models of this analysis: one of them was "
                "changed while it ran. They are computed anew."
            )
        with _connected(path) as connection:
            file = cls(path, connection, prompts)
            file.take_stock()
            yield file

    def take_stock(self) -> None:
        """How far the last commit says that the work is."""
        (state,) = self._rows(sa.select(_state))
        self.windows, self.missing, self.blocks = state.windows, state.missing, state.blocks

    def commit(self) -> None:
        """Bring everything written so far to the disk, together."""
        with self._turn, _errors():
            self._connection.execute(
                sa.update(_state).values(windows=self.windows, missing=self.missing, blocks=self.blocks)
            )
            self._connection.commit()

    def add_answers(self, presence_BP: Array, figures_BF: Array, missing: int) -> None:
        """What the next windows said of the prompts' presence, and their figures of `gateway.slides.quality`."""
        row = {"first": self.windows, "presence": _bytes(presence_BP), "figures": _bytes(figures_BF)}
        self._write(sa.insert(_answers), [row])
        self.windows += len(presence_BP)
        self.missing += missing

    def answers(self) -> tuple[Array, Array]:
        """Presence (N, P) and figures (N, F) of the windows answered so far."""
        rows = self._rows(sa.select(_answers).order_by(_answers.c.first))
        presence = np.frombuffer(b"".join(row.presence for row in rows), "<f4").reshape(-1, self._prompts)
        figures = np.frombuffer(b"".join(row.figures for row in rows), "<f4").reshape(-1, quality.WIDTH)
        return presence, figures

    def put_begun(self, cells: Mapping[tuple[int, int], Array]) -> None:
        """Put away the sums of cells that are not finished, in place of what was put away of them before."""
        rows = [
            {"row": row, "column": column, "sums": imagecodecs.zstd_encode(_bytes(sums), _LEVEL)}
            for (row, column), sums in cells.items()
        ]
        if rows:
            self._write(sa.insert(_begun).prefix_with("OR REPLACE"), rows)

    def begun(self, row: int, column: int) -> Array | None:
        """The sums of a cell (P, CELL_PX, CELL_PX) that were put away, if any."""
        where = (_begun.c.row == row) & (_begun.c.column == column)
        found = self._rows(sa.select(_begun.c.sums).where(where))
        if not found:
            return None
        values = np.frombuffer(imagecodecs.zstd_decode(found[0].sums), "<f4")
        return values.reshape(self._prompts, CELL_PX, CELL_PX).copy()

    def add_cell(self, cell: Cell) -> None:
        """Write a finished cell, of each prompt that has anything in it, and drop its sums."""
        rows = []
        for prompt, fractions_HW in enumerate(cell.fractions_PHW):
            if not fractions_HW.any():
                continue
            inside = fractions_HW >= MASK_FRACTION
            row = {"prompt": prompt, "row": cell.row, "column": cell.column, "area_px": int(np.count_nonzero(inside))}
            total = int(fractions_HW[inside].sum(dtype=np.int64))
            packed = imagecodecs.zstd_encode(fractions_HW.tobytes(), _LEVEL)
            rows.append(row | {"total": total, "fractions": packed})
        if rows:
            self._write(sa.insert(_cells), rows)
        self._write(sa.delete(_begun).where((_begun.c.row == cell.row) & (_begun.c.column == cell.column)))

    def cells(self, prompt: int, rows: slice, columns: slice) -> Iterator[tuple[int, int, npt.NDArray[np.uint8]]]:
        """The finished cells of a prompt in these rows and columns of cells that hold anything: (row, column,
        fractions)."""
        where = (_cells.c.prompt == prompt) & _cells.c.row.between(rows.start, rows.stop - 1)
        where &= _cells.c.column.between(columns.start, columns.stop - 1)
        for cell in self._rows(sa.select(_cells).where(where)):
            values = np.frombuffer(imagecodecs.zstd_decode(cell.fractions), np.uint8)
            yield cell.row, cell.column, values.reshape(CELL_PX, CELL_PX)

    def read(self, prompt: int, rows: slice, columns: slice) -> npt.NDArray[np.uint8]:
        """The fractions of a rectangle of mask pixels, which may reach beyond the picture on any side: 0 there."""
        picture = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.uint8)
        cells = (slice(part.start // CELL_PX, -(-part.stop // CELL_PX)) for part in (rows, columns))
        for row, column, fractions in self.cells(prompt, *cells):
            there_y, here_y = _common(rows, row)
            there_x, here_x = _common(columns, column)
            picture[there_y, there_x] = fractions[here_y, here_x]
        return picture

    def occupied(self, prompt: int) -> npt.NDArray[np.int32]:
        """(row, column) of each cell (N, 2) with a pixel in the mask, in reading order."""
        where = (_cells.c.prompt == prompt) & (_cells.c.area_px > 0)
        columns = sa.select(_cells.c.row, _cells.c.column).where(where).order_by(_cells.c.row, _cells.c.column)
        found = [tuple(row) for row in self._rows(columns)]
        return np.array(found, np.int32).reshape(-1, 2)

    def busiest(self, prompt: int) -> tuple[int, int] | None:
        """(row, column) of the cell with the most of a mask, the first of several; None where the mask is empty."""
        where = (_cells.c.prompt == prompt) & (_cells.c.area_px > 0)
        most = sa.select(_cells.c.row, _cells.c.column).where(where)
        found = self._rows(most.order_by(_cells.c.area_px.desc(), _cells.c.row, _cells.c.column).limit(1))
        return (found[0].row, found[0].column) if found else None

    def extent(self, prompt: int) -> tuple[int, int]:
        """Pixels in the mask, and the sum of their fractions."""
        sums = sa.select(
            sa.func.coalesce(sa.func.sum(_cells.c.area_px), 0), sa.func.coalesce(sa.func.sum(_cells.c.total), 0)
        )
        (found,) = self._rows(sums.where(_cells.c.prompt == prompt))
        area, total = (int(value) for value in found)
        return area, total

    def add_objects(self, objects: Sequence[tuple[int, int, bytes]], *, blocks: int) -> None:
        """Write the objects (prompt, block, outlines) of the next `blocks` blocks."""
        rows = [{"prompt": prompt, "block": block, "outlines": outlines} for prompt, block, outlines in objects]
        with self._turn:  # no commit may come between the two
            if rows:
                self._write(sa.insert(_objects), rows)
            self.blocks += blocks

    def objects(self, prompt: int) -> Iterator[bytes]:
        """What was written of a prompt's objects, block by block."""
        blocks = sa.select(_objects.c.block).where(_objects.c.prompt == prompt).order_by(_objects.c.block)
        for row in self._rows(blocks):
            where = (_objects.c.prompt == prompt) & (_objects.c.block == row.block)
            (found,) = self._rows(sa.select(_objects.c.outlines).where(where))
            yield found.outlines

    def _rows(self, statement: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        with self._turn, _errors():
            return self._connection.execute(statement).all()

    def _write(self, statement: sa.Executable, rows: Sequence[Mapping[str, Any]] | None = None) -> None:
        with self._turn, _errors():
            self._connection.execute(statement, rows)


@contextmanager
def _connected(path: Path) -> Iterator[sa.Connection]:
    # Threads take turns with it: each batch is written by whichever is free.
    url = sa.URL.create("sqlite", database=str(path))
    engine = sa.create_engine(url, poolclass=sa.NullPool, connect_args={"check_same_thread": False})
    with _errors():
        connection = engine.connect()
    try:
        yield connection
    finally:
        connection.close()
        engine.dispose()


@contextmanager
def _errors() -> Iterator[None]:
    try:
        with disk_errors():
            yield
    except sa.exc.DBAPIError as error:
        full = isinstance(error.orig, sqlite3.Error) and error.orig.sqlite_errorname.startswith("SQLITE_FULL")
        if full:
            raise DiskFull("No space is left in the state folder: make room there.") from None
        raise StateError("The stored masks of an analysis cannot be read or written. Check the state folder.") from None


def _owner(path: Path) -> str | None:
    """What a file says that it belongs to; None where there is none, or none that can be read."""
    if not path.exists():
        return None
    try:
        with _connected(path) as connection:
            with _errors():
                owner: str | None = connection.execute(sa.select(_state.c.belongs_to)).scalar_one_or_none()
            return owner
    except DiskFull:
        raise
    except StateError:
        return None


def _bytes(values: Array) -> bytes:
    return np.ascontiguousarray(values, dtype="<f4").tobytes()


def _common(part: slice, cell: int) -> tuple[slice, slice]:
    """Along an axis: what a cell and a part of the picture share, counted in the part and in the cell."""
    low, high = max(part.start, cell * CELL_PX), min(part.stop, (cell + 1) * CELL_PX)
    return slice(low - part.start, high - part.start), slice(low - cell * CELL_PX, high - cell * CELL_PX)
