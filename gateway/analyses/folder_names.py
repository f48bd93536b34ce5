"""Names that persons give and that become a folder's in the state folder: of sites, of studies."""

import re

from gateway.operations.errors import InvalidInput

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


def is_name(name: str) -> bool:
    """Whether it may be one."""
    return _NAME.fullmatch(name) is not None


def demand_name(what: str, name: str, example: str) -> str:
    """A name as it was given, of a site or a study (`what`). Raises InvalidInput where it is none."""
    if not is_name(name):
        raise InvalidInput(
            f"A {what}'s name has letters, digits, dots, dashes and underscores, at most 64, and begins with a letter "
            f"or digit, e.g. {example}."
        )
    return name
