"""The seven classes of cervical cytology (Bethesda 2014) in one fixed order, and how a detector's columns name them.

A class's number is its place in CLASSES: 0 is NILM, 1 to 6 are the abnormal classes. It is no severity. Adenocarcinoma
(also in situ), organisms, reactive changes and adequacy are none of these classes.
"""

import json
from dataclasses import dataclass
from importlib import resources
from typing import Literal

from gateway.domain.codes import Code


@dataclass(frozen=True, slots=True)
class BethesdaClass:
    """branch: None for NILM; severity: 0 (NILM) to 5, equal for classes that no one ranks against each other; code:
    SNOMED CT; color: #RRGGBB, in which its cells are drawn."""

    name: str
    wording: str
    branch: Literal["squamous", "glandular"] | None
    severity: int
    code: Code
    color: str


def _classes() -> tuple[BethesdaClass, ...]:
    text = resources.files("gateway.domain.tables").joinpath("bethesda.json").read_text(encoding="utf-8")
    return tuple(
        BethesdaClass(
            row["name"],
            row["wording"],
            row["branch"],
            row["severity"],
            Code(row["sct"], "SCT", row["wording"]),
            row["color"],
        )
        for row in json.loads(text)["classes"]
    )


CLASSES = _classes()
NAMES = tuple(entry.name for entry in CLASSES)
NILM, ASC_US, LSIL, ASC_H, HSIL, SCC, AGC = range(len(CLASSES))
ABNORMAL = NAMES[1:]
"""The classes of a detector, by column."""


def column_of(number: int) -> int:
    """A detector's column, 0 to 5, of an abnormal class's number, 1 to 6. Raises ValueError for another number."""
    if not NILM < number < len(CLASSES):
        raise ValueError(f"{number} is no abnormal class: their numbers are 1 to {len(CLASSES) - 1}")
    return number - 1


def class_of(column: int) -> int:
    """The class's number, 1 to 6, of a detector's column, 0 to 5. Raises ValueError for another column."""
    if not 0 <= column < len(ABNORMAL):
        raise ValueError(f"{column} is no column of a detector: these are 0 to {len(ABNORMAL) - 1}")
    return column + 1
