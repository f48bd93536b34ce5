"""The reference standard of a study: a CSV file with a row for each accession, checked before any of it counts."""

import csv
import io
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path

from gateway.domain.bethesda import NAMES
from gateway.operations.errors import InvalidInput

REQUIRED, OPTIONAL = ("accession", "category"), ("centre", "histology")
_MOST_BYTES = 16 * 2**20
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Row:
    """What a case is by the reference standard: a Bethesda name, and, where it says so, centre and histology."""

    accession: str
    category: str
    centre: str | None = None
    histology: str | None = None

    def values(self) -> list[str | None]:
        return list(astuple(self))


def read(path: Path) -> bytes:
    """The file's bytes. Raises InvalidInput."""
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InvalidInput(f"The reference standard cannot be read ({error.strerror}). Name a CSV file.") from None
    if len(data) > _MOST_BYTES:
        raise InvalidInput(f"The reference standard is larger than {_MOST_BYTES // 2**20} MiB. Leave columns out.")
    return data


def rows_of(data: bytes, centres: Mapping[str, str | None]) -> tuple[Row, ...]:
    """The rows of a CSV file (UTF-8, with or without a byte order mark; a first row of names, which tells by its own
    whether values are parted by commas or semicolons), sorted by accession. `centres`: the accessions that take part,
    with the centre of each, None where none is known.

    Raises InvalidInput: another encoding; columns missing, doubled or unknown; no row; an accession that does not take
    part, or stands twice; a category that is none of Bethesda's; a centre that is another than was enrolled.
    """
    wrong: list[str] = []
    rows: dict[str, Row] = {}
    for number, values in _table(data):
        optional = (values.get(name) or None for name in OPTIONAL)
        row = Row(values["accession"], values["category"], *optional)
        name, known = row.accession, rows.get(row.accession)
        if name not in centres:
            wrong.append(f"row {number}: {name or 'no accession'} does not take part")
        elif known is not None:
            what = "stands twice" if known == row else f"is {known.category} above: the rows contradict each other"
            wrong.append(f"row {number}: {name} {what}")
        elif row.category not in NAMES:
            wrong.append(f"row {number}: {name} has the unknown category {row.category!r}")
        elif row.centre is not None and centres[name] not in (None, row.centre):
            wrong.append(f"row {number}: {name} is of {row.centre}, but was enrolled at {centres[name]}")
        rows.setdefault(name, row)
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise InvalidInput(
            f"The reference standard was not joined: {'; '.join(wrong[:_SHOWN])}{more}. Categories are "
            f"{', '.join(NAMES)}, one row an accession."
        )
    if not rows:
        raise InvalidInput("The reference standard has no row.")
    return tuple(rows[name] for name in sorted(rows))


def _table(data: bytes) -> list[tuple[int, dict[str, str]]]:
    """Each row that is not empty: its number in the file, and its values by column, without blanks at the ends."""
    text = _text(data)
    # Where the comma is the decimal mark, spreadsheets part by semicolons; no column's name has either.
    first = next(iter(text.splitlines()), "")
    delimiter = ";" if ";" in first and "," not in first else ","
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise InvalidInput(f"The reference standard is no CSV file ({error}).") from None
    heads = [head.strip() for head in lines[0]] if lines else []
    if not set(REQUIRED) <= set(heads) <= {*REQUIRED, *OPTIONAL} or len(set(heads)) < len(heads):
        raise InvalidInput(
            f"The reference standard's first row must name the columns {' and '.join(REQUIRED)}, and may name "
            f"{' and '.join(OPTIONAL)}; it has: {', '.join(heads) or 'nothing'}."
        )
    filled = [(number, line) for number, line in enumerate(lines[1:], 2) if any(map(str.strip, line))]
    for number, line in filled:
        if len(line) != len(heads):
            raise InvalidInput(f"Row {number} of the reference standard has {len(line)} values, not {len(heads)}.")
    return [(number, dict(zip(heads, map(str.strip, line), strict=True))) for number, line in filled]


def _text(data: bytes) -> str:
    """Raises InvalidInput where it is not UTF-8: read as anything else, a letter of an accession might be another."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidInput(
            f"The reference standard is not in UTF-8 (line {line} has the byte 0x{data[error.start]:02X}). Save it as "
            "CSV UTF-8; spreadsheets may else write it in Windows' own code page or in UTF-16."
        ) from None
