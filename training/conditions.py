"""A results page's section of conditions that were set before: each judged from the files, not by eye."""

from collections.abc import Iterable
from typing import Literal

from training.markdown import table

REPORTED: Literal["reported"] = "reported"
Verdict = tuple[str, bool | Literal["reported"] | None]
"""What was measured, and whether the condition is met; REPORTED where only a figure was asked for; None where it was
not measured, or only in part."""
NONE: Verdict = ("–", None)
_WORDS = {True: "met", False: "**not met**", REPORTED: REPORTED, None: "not measured"}


def section(said: str, conditions: Iterable[tuple[str, str, Verdict]]) -> list[str]:
    """The section, in Markdown: what is to be said of all, how many were met, and a table. A condition is its name,
    what it asks, and its verdict."""
    rows = [(name, asked, measured, _WORDS[met]) for name, asked, (measured, met) in conditions]
    counts = {word: sum(row[3] == word for row in rows) for word in _WORDS.values()}
    return [
        "## Which conditions were met",
        "",
        f"{said} " + ", ".join(f"{count} {word.strip('*')}" for word, count in counts.items()) + ".",
        "",
        *table(("", "condition", "measured", ""), rows),
    ]
