"""Tables of results pages, in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NOT_RUN = "not run"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def shown(figure: Mapping[str, Any], *, sign: bool = False, digits: int = 2) -> str:
    """A figure with its interval; without one where too few groups hold it, `–` where there is none."""
    if not figure:
        return "–"
    form = f"{'+' if sign else ''}.{digits}f"
    if figure.get("interval", True):
        return f"{figure['value']:{form}} [{figure['low']:{form}}, {figure['high']:{form}}]"
    return f"{figure['value']:{form}} (no interval: {_few(figure)})"


def _few(figure: Mapping[str, Any]) -> str:
    if "groups" not in figure:
        return "too few groups"
    return "1 group" if figure["groups"] == 1 else f"{figure['groups']} groups"
