"""What the results page says of masks where an object is not, by prompt."""

from collections.abc import Mapping
from typing import Any

from training.pathsegmentor.absent_places import OBJECTS
from training.pathsegmentor.markdown import shown, table

_SQUARES = ("squares", "squares, in their windows")
_PLACES = {
    "windows": "Windows of 256 px, as above:",
    _SQUARES[0]: "Squares of 128 px of held-out images that hold the object elsewhere (every 64 px, those with tissue "
    "and without a pixel of the object), each asked alone. Squares overlap; intervals resample groups:",
    _SQUARES[1]: "What the answer to the whole window marks in the same squares, at the presence of the window:",
}
_FEWEST_PLACES = 5


def absent_places(places: Mapping[str, Any]) -> list[str]:
    """The section of `absent_places` of the served network's file; nothing where the file has none."""
    if not places:
        return []
    lines = ["### False area, by prompt", "", "Where the object is known not to be (¹: it cannot be in the organ).", ""]
    head = ("set · prompt", "places", "groups", "with a mask, drawn", "served", "mean area, drawn", "served")
    for kind, text in _PLACES.items():
        missing = (
            (f"{name} · {found}", "no such square", *[""] * 5)
            for name, found in OBJECTS.items()
            if kind in _SQUARES and not any(row.startswith(f"{name} · ") for row in places[kind])
        )
        lines += [text, "", *table(head, (*(_row(name, row) for name, row in places[kind].items()), *missing))]
    return lines


def _row(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    figures = (
        ("too few to say", "", "", "")
        if row["places"] < _FEWEST_PLACES
        else tuple(shown(row[key]) for key in ("share_drawn", "share_served", "area_drawn", "area_served"))
    )
    return name + "¹" * row["impossible"], str(row["places"]), str(row["share_drawn"]["groups"]), *figures
