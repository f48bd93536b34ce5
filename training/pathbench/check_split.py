"""Does a split table leak? `python -m training.pathbench check-split TABLE.csv` (or .parquet) reads the table alone.

The columns are those of PathBench's public tables (arXiv 2505.20202): for classification `dataset, case, slide`
(several joined by `/`), `class, label, split`; for survival `dataset, case, slide, status, time` and `Fold 0` …
`Fold 4`; and `patient` in both, which the public tables lack. No patient, case or slide may stand in two splits, and
none in both parts of a fold. Where slides or cases carry TCGA barcodes, the patient is read from them as well: public
lists that are split by slide share patients that no column names.
"""

import argparse
import csv
import io
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from training.errors import LeakageRefused, SplitInvalid

_NEEDED = ("patient", "case", "slide")
_BARCODE = "TCGA patient"
_FOLD = re.compile(r"fold \d+")
_TCGA = re.compile(r"tcga-\w{2}-\w{4}(?!\w)", re.ASCII)
_ENDING = re.compile(r"\.(svs|ndpi|tiff?|mrxs|dcm|h5|pt)$")
_SAME = {"val": "validation", "valid": "validation", "training": "train", "testing": "test"}
_SHOWN = 3


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 where nothing leaks, 1 where something does, 2 where the table cannot be judged."""
    parser = argparse.ArgumentParser(prog="python -m training.pathbench check-split", description=__doc__)
    parser.add_argument("table", type=Path)
    chosen = parser.parse_args(arguments)
    try:
        print(check(chosen.table))
    except LeakageRefused as error:
        print(error.detail, file=sys.stderr)
        return 1
    except SplitInvalid as error:
        print(error.detail, file=sys.stderr)
        return 2
    return 0


def check(path: Path) -> str:
    """A line on a table without leaks. Raises LeakageRefused, and SplitInvalid where the table cannot be judged."""
    columns, rows = read_table(path)
    absent = [name for name in _NEEDED if name not in columns]
    splits = [name for name in columns if name == "split" or _FOLD.fullmatch(name)]
    if absent or not splits:
        wanted = ", ".join(absent if absent else ["split (or Fold 0, Fold 1, …)"])
        raise SplitInvalid(f"The table {path.name} lacks the column(s) {wanted}. Add them and check again.")
    # Where each name of each kind stands, in every split column.
    places = {(split, kind): defaultdict[str, set[str]](set) for split in splits for kind in (*_NEEDED, _BARCODE)}
    parts: dict[str, Counter[str]] = {split: Counter() for split in splits}
    count = 0
    for count, row in enumerate(rows, 1):
        names = {kind: _names(kind, row[kind]) for kind in _NEEDED}
        empty = [kind for kind in _NEEDED if not names[kind]]
        if empty:
            raise SplitInvalid(f"Row {count} of the table {path.name} names no {empty[0]}. Fill it in and check again.")
        barcodes = (_TCGA.match(name) for kind in ("case", "slide") for name in names[kind])
        names[_BARCODE] = {barcode.group() for barcode in barcodes if barcode}
        for split in splits:
            part = _part(row[split])
            if not part:
                raise SplitInvalid(f"Row {count} of the table {path.name} has no {split}. Fill it in and check again.")
            parts[split][part] += 1
            for kind, found in names.items():
                for name in found:
                    places[split, kind][name].add(part)
    if not count:
        raise SplitInvalid(f"The table {path.name} has no rows. Export it again.")
    leaks = [_sentence(split, kind, found) for (split, kind), found in places.items()]
    if any(leaks):
        raise LeakageRefused(" ".join(filter(None, leaks)))
    shares = "; ".join(f"{split}: " + ", ".join(f"{n} {part}" for part, n in parts[split].items()) for split in splits)
    patients = len(places[splits[0], "patient"])
    return f"No patient, case or slide of {path.name} is in two splits: {count} rows, {patients} patients ({shares})."


def read_table(path: Path) -> tuple[list[str], Iterable[Mapping[str, str]]]:
    """Column names, stripped and in lower case, and the rows as text. Raises SplitInvalid."""
    try:
        if path.suffix.lower() == ".parquet":
            table = pq.read_table(path)
            columns = _unique(path, table.column_names)
            return columns, (
                dict(zip(columns, ("" if value is None else str(value) for value in row.values()), strict=True))
                for row in table.to_pylist()
            )
        text = path.read_text(encoding="utf-8-sig")
    except OSError:
        raise SplitInvalid(f"The table {path.name} cannot be read. Name an existing file.") from None
    except UnicodeDecodeError:
        raise SplitInvalid(f"The table {path.name} is not UTF-8 text. Export it as UTF-8 and check again.") from None
    except pa.ArrowException:
        raise SplitInvalid(f"The table {path.name} is not a Parquet file. Export it again.") from None
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(lines, None)
    except csv.Error as error:
        raise SplitInvalid(f"The first line of the table {path.name} is not CSV: {error}.") from None
    if not header:
        raise SplitInvalid(f"The table {path.name} is empty. Export it again.")
    columns = _unique(path, header)
    return columns, _csv_rows(path, columns, lines)


def _csv_rows(path: Path, columns: list[str], lines: Iterator[list[str]]) -> Iterator[Mapping[str, str]]:
    number = 1
    try:
        for values in filter(None, lines):
            if len(values) != len(columns):
                raise SplitInvalid(
                    f"Row {number} of the table {path.name} has {len(values)} values for {len(columns)} columns. "
                    "Mend it."
                )
            yield dict(zip(columns, values, strict=True))
            number += 1
    except csv.Error as error:
        raise SplitInvalid(f"Row {number} of the table {path.name} is not CSV: {error}.") from None


def _unique(path: Path, header: list[str]) -> list[str]:
    columns = [name.strip().lower() for name in header]
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        raise SplitInvalid(f"The table {path.name} has the column {twice[0] or '(no name)'} twice. Rename one.")
    return columns


def _names(kind: str, value: str) -> set[str]:
    """What a cell names, as it is compared: without case, blanks and a slide file's ending."""
    cells = value.split("/") if kind == "slide" else [value]
    names = {cell.strip().casefold() for cell in cells} - {""}
    return {_ENDING.sub("", name) for name in names} if kind == "slide" else names


def _part(value: str) -> str:
    part = value.strip().casefold()
    return _SAME.get(part, part)


def _sentence(split: str, kind: str, found: Mapping[str, set[str]]) -> str:
    """What is in two parts of a split, or nothing."""
    both = sorted(name for name, parts in found.items() if len(parts) > 1)
    if not both:
        return ""
    shown = "; ".join(f"{name} in {' and '.join(sorted(found[name]))}" for name in both[:_SHOWN])
    more = f"; and {len(both) - _SHOWN} more" if len(both) > _SHOWN else ""
    where = "two splits" if split == "split" else f"both parts of {split}"
    return f"{len(both)} {kind}(s) stand in {where}: {shown}{more}."
