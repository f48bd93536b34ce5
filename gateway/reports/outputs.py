"""The files of a report in a folder that a person named, beside whatever else lies there."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from gateway.operations.errors import InvalidInput

_OWN = re.compile(
    r"(?P<part>\.)?("
    r"report\.(json|html|pdf)|report(-\d+)?\.(sr|pdf|ko)\.dcm|"
    r"(tissue|slide|cells|segments)-\d+\.((seg|pm|ann)\.dcm|geojson)|(segments|probabilities)-\d+-\d+\.seg\.dcm|"
    r"(thumbnail-\d+|(top-tile|cell|segment-field)-\d+-\d+)\.jpg|"
    r"((tissue|attention|cell)-map-\d+|segment-\d+-\d+)\.png"
    r")(?(part)\.part)"
)
"""What `analyze` writes, and may therefore replace or remove; `.NAME.part` is one that a kill left half-written."""


@contextmanager
def own_outputs_replaced(out: Path) -> Iterator[None]:
    """Our earlier outputs go when the block begins; where it ends by an error or an interruption, so do the new.

    The folder is made where it is missing. Raises InvalidInput where it takes no file.
    """
    _remove_own(out)
    try:
        yield
    except BaseException:
        with suppress(InvalidInput):
            _remove_own(out)
        raise


def _remove_own(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path in out.iterdir():
            if _OWN.fullmatch(path.name):
                path.unlink()
        with TemporaryFile(dir=out):
            pass  # a folder that takes no file is better known now than after an hour's work
    except OSError as error:
        raise InvalidInput(f"The folder given by --out cannot be written ({error.strerror}). Name another.") from None
