"""The masks of one slide at one resolution on disk: a SQLite file, written while the windows are answered.

What a commit holds is all there is after a kill at any moment: windows answered, cells finished, cells begun. Files of
this kind are thrown away where they belong to anything else, or are damaged.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from types import MappingProxyType
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from gateway.analyses.blending import CELL_PX, MASK_FRACTION, Array, Cell, shared
from gateway.operations.disk import disk_errors
from gateway.operations.errors import DiskFull, RowsOutdated, StateError
from gateway.slides import quality

COMMIT_S = 5.0
"""At most so much work is done again after a kill, …"""
WORK_PER_COMMIT = 4.0
"""… or, where the disk is slow, so many times what a commit takes."""
_LEVEL = 1
_PAGE = 256
"""Rows in memory at a time."""
_tables = sa.MetaData()
_state = sa.Table(
    "state",
    _tables,
    sa.Column("belongs_to", sa.Text, nullable=False),
    sa.Column("windows", sa.Integer, nullable=False),
    sa.Column("blocks", sa.Integer, nullable=False),
)
_answers = sa.Table(
    "answers",
    _tables,
    sa.Column("first", sa.Integer, primary_key=True),
    sa.Column("presence", sa.LargeBinary, nullable=False),
    sa.Column("figures", sa.LargeBinary, nullable=False),
)
_missing = sa.Table(
    "missing",
    _tables,
    sa.Column("row", sa.Integer, primary_key=True),
    sa.Column("column", sa.Integer, primary_key=True),
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


class Damaged(Exception):
    """What is in a file cannot be what was written. Who has the file open makes it RowsOutdated."""


class MaskFile:
    """One open file. All that is written since the last `commit` is lost with a kill. Thread-safe, each call by itself.
    Raises DiskFull, StateError; and RowsOutdated as it is closed, where it is damaged: it is gone then."""

    def __init__(self, path: Path, connection: sa.Connection, prompts: int) -> None:
        self.path = path
        self._connection = connection
        self._prompts = prompts
        self._turn = RLock()
        self._due_s = time.monotonic() + COMMIT_S
        self.windows, self.blocks = 0, 0
        """Windows answered, blocks split into objects: of the plan's first ones."""
        self._put_away: set[tuple[int, int]] = set()
        """Cells that are in `begun`: few are, and the others are not looked for."""

    @classmethod
    @contextmanager
    def writing(cls, path: Path, belongs_to: Mapping[str, Any], prompts: int) -> "Iterator[MaskFile]":
        """Open to go on writing; anew where what is there belongs to anything else. One at a time."""
        with disk_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
        of = json.dumps(belongs_to, sort_keys=True)
        if _owner(path) != of:
            _remove(path)
        with _kept_if_sound(path), _connected(path) as connection:
            file = cls(path, connection, prompts)
            with _errors():
                _tables.create_all(connection)
                if connection.execute(sa.select(_state)).first() is None:
                    connection.execute(sa.insert(_state).values(belongs_to=of, windows=0, blocks=0))
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
        with _kept_if_sound(path), _connected(path) as connection:
            file = cls(path, connection, prompts)
            file.take_stock()
            yield file

    def take_stock(self) -> None:
        """How far the last commit says that the work is."""
        (state,) = self._rows(sa.select(_state))
        self.windows, self.blocks = state.windows, state.blocks
        self._put_away = {(row.row, row.column) for row in self._rows(sa.select(_begun.c.row, _begun.c.column))}

    @property
    def due(self) -> bool:
        """Whether it is time for a commit."""
        return time.monotonic() >= self._due_s

    def commit(self, begun: Mapping[tuple[int, int], Array] = MappingProxyType({})) -> None:
        """Bring everything written so far to the disk, together, with these sums of cells that are not finished."""
        began_s = time.monotonic()
        with self._turn, _errors():
            self.put_begun(begun)
            self._connection.execute(sa.update(_state).values(windows=self.windows, blocks=self.blocks))
            self._connection.commit()
        took_s = time.monotonic() - began_s
        self._due_s = began_s + took_s + max(COMMIT_S, WORK_PER_COMMIT * took_s)

    def add_answers(self, presence_BP: Array, figures_BF: Array, missing: Sequence[tuple[int, int]]) -> None:
        """What the next windows said of the prompts' presence, their figures of `gateway.slides.quality`, and the
        frames (row, column) that were missing under them, and under none before."""
        row = {"first": self.windows, "presence": _bytes(presence_BP), "figures": _bytes(figures_BF)}
        self._write(sa.insert(_answers), [row])
        if missing:
            self._write(sa.insert(_missing), [{"row": row, "column": column} for row, column in missing])
        self.windows += len(presence_BP)

    def missing(self) -> set[tuple[int, int]]:
        """(row, column) of the image frames that were missing under the windows answered so far."""
        return {(row.row, row.column) for row in self._rows(sa.select(_missing))}

    def presence(self) -> Iterator[Array]:
        """Of the windows answered so far, some of them (n, P) at a time."""
        for page in self._answered(_answers.c.presence):
            yield np.frombuffer(page, "<f4").reshape(-1, self._prompts)

    def figures(self) -> Array:
        """Of the windows answered so far, (N, F)."""
        figures_NF = np.zeros((self.windows, quality.WIDTH), np.float32)
        done = 0
        for page in self._answered(_answers.c.figures):
            values = np.frombuffer(page, "<f4").reshape(-1, quality.WIDTH)
            figures_NF[done : done + len(values)] = values
            done += len(values)
        return figures_NF

    def _answered(self, column: sa.Column[bytes]) -> Iterator[bytes]:
        first = -1
        answers = sa.select(_answers.c.first, column.label("said")).order_by(_answers.c.first).limit(_PAGE)
        while rows := self._rows(answers.where(_answers.c.first > first)):
            yield b"".join(row.said for row in rows)
            first = rows[-1].first

    def put_begun(self, cells: Mapping[tuple[int, int], Array]) -> None:
        """Put away the sums of cells that are not finished, in place of what was put away of them before."""
        rows = [
            {"row": row, "column": column, "sums": imagecodecs.zstd_encode(_bytes(sums), _LEVEL)}
            for (row, column), sums in cells.items()
        ]
        if rows:
            self._write(sa.insert(_begun).prefix_with("OR REPLACE"), rows)
            self._put_away.update(cells)

    def begun(self, row: int, column: int) -> Array | None:
        """The sums of a cell (P, CELL_PX, CELL_PX) that were put away, if any."""
        if (row, column) not in self._put_away:
            return None
        where = (_begun.c.row == row) & (_begun.c.column == column)
        (found,) = self._rows(sa.select(_begun.c.sums).where(where))
        return _decoded(found.sums, "<f4", (self._prompts, CELL_PX, CELL_PX)).copy()

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
        if (cell.row, cell.column) in self._put_away:
            self._write(sa.delete(_begun).where((_begun.c.row == cell.row) & (_begun.c.column == cell.column)))
            self._put_away.remove((cell.row, cell.column))

    def cells(self, prompt: int, rows: slice, columns: slice) -> Iterator[tuple[int, int, npt.NDArray[np.uint8]]]:
        """The finished cells of a prompt in these rows and columns of cells that hold anything: (row, column,
        fractions)."""
        where = (_cells.c.prompt == prompt) & _cells.c.row.between(rows.start, rows.stop - 1)
        where &= _cells.c.column.between(columns.start, columns.stop - 1)
        for cell in self._rows(sa.select(_cells).where(where)):
            yield cell.row, cell.column, _decoded(cell.fractions, "u1", (CELL_PX, CELL_PX))

    def read(self, prompt: int, rows: slice, columns: slice) -> npt.NDArray[np.uint8]:
        """The fractions of a rectangle of mask pixels, which may reach beyond the picture on any side: 0 there."""
        picture = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.uint8)
        cells = (slice(part.start // CELL_PX, -(-part.stop // CELL_PX)) for part in (rows, columns))
        for row, column, fractions in self.cells(prompt, *cells):
            there_y, here_y = shared(rows, row * CELL_PX, CELL_PX)
            there_x, here_x = shared(columns, column * CELL_PX, CELL_PX)
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
    except sa.exc.SQLAlchemyError as error:
        name = getattr(getattr(error, "orig", None), "sqlite_errorname", "")
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            raise Damaged from None
        if name.startswith("SQLITE_FULL"):
            raise DiskFull("No space is left in the state folder: make room there.") from None
        raise StateError("The stored masks of an analysis cannot be read or written. Check the state folder.") from None


@contextmanager
def _kept_if_sound(path: Path) -> Iterator[None]:
    try:
        yield
    except Damaged:
        _remove(path)
        raise RowsOutdated("The stored masks of an analysis are damaged. They are computed anew.") from None


def _remove(path: Path) -> None:
    with disk_errors():
        path.unlink(missing_ok=True)
        path.with_name(path.name + "-journal").unlink(missing_ok=True)


def _owner(path: Path) -> str | None:
    """What a file says that it belongs to; None where there is none, or none that says so."""
    if not path.exists():
        return None
    try:
        with _connected(path) as connection, _errors():
            if not sa.inspect(connection).has_table(_state.name):
                return None
            owner: str | None = connection.execute(sa.select(_state.c.belongs_to)).scalar_one_or_none()
            return owner
    except Damaged:
        return None


def _bytes(values: Array) -> bytes:
    return np.ascontiguousarray(values, dtype="<f4").tobytes()


def _decoded(data: bytes, kind: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    try:
        return np.frombuffer(imagecodecs.zstd_decode(data), kind).reshape(shape)
    except (imagecodecs.ZstdError, ValueError):
        raise Damaged from None
