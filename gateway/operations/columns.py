"""What our commands print for people, in columns."""

from collections.abc import Sequence


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Rows of as many cells each, the columns below each other; the last one is as long as it is."""
    widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
    for *cells, last in rows:
        print("".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=False)) + last)
