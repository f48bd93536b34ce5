"""Code tables kept as data files, each with its source."""

import json
from functools import cache
from importlib import resources
from typing import Any

from gateway.domain.codes import PRIVATE_SCHEME, Code


@cache
def _table(name: str) -> dict[str, Any]:
    text = resources.files(__package__).joinpath(f"{name}.json").read_text(encoding="utf-8")
    table: dict[str, Any] = json.loads(text)
    return table


def finding_code(key: str) -> Code:
    """The code of a finding of ours. Raises KeyError for a key that is not in the table."""
    return Code(key, PRIVATE_SCHEME, _table("findings")["codes"][key])


def adequacy_code(key: str) -> Code:
    """The code of a slide's adequacy (`satisfactory`, `unsatisfactory`), or of a reason for it (`unsatisfactory-…`):
    SNOMED CT where it has one, else that of the finding. Raises KeyError for a key that is in neither table."""
    row = _table("adequacy")["codes"].get(key)
    return finding_code(key) if row is None else Code(row["sct"], "SCT", row["display"])


def stain_name(codes: tuple[Code, ...]) -> str | None:
    """The stain's short name (HE, PAP, …) from the header's staining substances; None where none is recognised.

    Rows are tried in the table's order: Papanicolaou first, since its substances include haematoxylin and an eosin.
    """
    present = {code.code for code in codes if code.scheme == "SCT"}
    for name, rows in _table("stains")["stains"].items():
        if any(present.issuperset(row) for row in rows):
            return str(name)
    return None


def specimen_table(name: str) -> dict[str, str]:
    """SNOMED CT codes of specimens, with their words: those that say `cervical`, those that `contradict-nothing`, and
    the preparations `liquid-based`, `of-tissue` and, which no smear of the cervix has, `against-a-smear`.

    `retired`: SNOMED-RT codes with the SNOMED CT codes of today.
    """
    table: dict[str, str] = _table("specimens")[name]
    return table
