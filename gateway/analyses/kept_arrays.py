"""Arrays that an analysis keeps on disk: what is damaged there is computed again."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from gateway.operations.disk import disk_errors

T = TypeVar("T")


def kept(path: Path, read: Callable[[Mapping[str, npt.NDArray[Any]]], T | None]) -> T | None:
    """What `read` makes of the arrays of a file of numpy's savez; None where there is none, or it is damaged.

    `read` says None of what belongs to anything else, and may raise LookupError, TypeError and ValueError of what it
    did not expect. Raises StateError.
    """
    if not path.exists():
        return None
    try:
        with disk_errors(), path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            return read(data)
    except (EOFError, BadZipFile, LookupError, TypeError, ValueError):
        return None
