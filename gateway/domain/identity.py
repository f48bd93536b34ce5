"""What does not agree between an order and the slides that it names (DESIGN.md law 9)."""

from dataclasses import dataclass
from enum import StrEnum


class Problem(StrEnum):
    """How an identifier of the order and one of a slide's header fail to agree."""

    DIFFERS = "differs"
    NOT_IN_ORDER = "not-in-order"
    NOT_IN_SLIDE = "not-in-slide"
    NOT_ANYWHERE = "not-anywhere"


@dataclass(frozen=True, slots=True)
class Difference:
    """One identifier that does not agree, on one slide (by its series).

    It names the attribute, never its values. `digest` stands for exactly these values: a person who releases the
    difference releases nothing else.
    """

    attribute: str
    series: str
    problem: Problem
    digest: str
