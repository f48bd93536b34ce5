"""Tables of the results page, in Markdown."""

from collections.abc import Mapping
from typing import Any

from training.markdown import NOT_RUN, shown, table

__all__ = ["LEVEL", "NOT_RUN", "p_value", "shown", "table", "tested", "verdict"]

LEVEL = 0.05
"""Of Holm's p, below which a difference is told."""


def p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def verdict(family: Mapping[str, Mapping[str, Any]]) -> str:
    """Where the first of two answers is better, where worse, and where Holm's p shows neither."""
    told: dict[str, list[str]] = {"better": [], "worse": [], "neither shown": []}
    for name, row in family.items():
        told["neither shown" if row["p_holm"] >= LEVEL else "better" if row["value"] > 0 else "worse"].append(name)
    return "; ".join(f"{word} in {', '.join(names)}" for word, names in told.items() if names)


def tested(family: Mapping[str, Mapping[str, Any]], first: str, what: str) -> list[str]:
    """A family of differences with p and Holm's p."""
    if not family:
        return [f"{NOT_RUN.capitalize()}: no pair has both.", ""]
    return table(
        (first, what, "groups (better in)", "pairs", "p", "Holm"),
        (
            (
                name,
                shown(row, sign=True),
                f"{row['groups']} ({row['better_groups']})",
                str(row["pairs"]),
                p_value(row["p"]),
                p_value(row["p_holm"]),
            )
            for name, row in family.items()
        ),
    )
