"""Tables of the results page, in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from training.pages import interval

NOT_RUN = "not run"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def shown(figure: Mapping[str, Any], *, sign: bool = False) -> str:
    """A figure with its interval; without one where too few groups hold it, `–` where there is none."""
    if not figure:
        return "–"
    if figure.get("interval", True):
        return interval(figure, sign=sign)
    return f"{figure['value']:{'+' if sign else ''}.2f} (no interval: {_few(figure)})"


def _few(figure: Mapping[str, Any]) -> str:
    return f"{figure['groups']} groups" if "groups" in figure else "too few groups"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


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
                _p(row["p"]),
                _p(row["p_holm"]),
            )
            for name, row in family.items()
        ),
    )
