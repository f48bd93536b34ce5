"""What a person says of a slide that is imported: options of the command, and a JSON file for those and for more."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from pydicom.config import RAISE
from pydicom.valuerep import validate_value

from gateway.domain.codes import Code
from gateway.operations.errors import InvalidInput
from gateway.slides.imported import SlideFacts


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)


class _Code(_Strict):
    code: str
    scheme: str
    display: str


class _Patient(_Strict):
    id: str | None = None
    issuer: str | None = None
    name: str | None = None
    birth_date: str | None = None
    sex: Literal["F", "M", "O"] | None = None


class _Facts(_Strict):
    """The JSON file. Names are those of an order where an order has them."""

    study: str | None = None
    accession: str | None = None
    patient: _Patient = _Patient()
    container: str | None = None
    stain: Literal["HE", "PAP"] | None = None
    organ: _Code | None = None


_REPRESENTATIONS = {
    "study": "UI",
    "accession": "SH",
    "patient_id": "LO",
    "patient_issuer": "LO",
    "patient_name": "PN",
    "patient_birth_date": "DA",
    "container": "LO",
}
"""PS3.5 6.2: what each may hold; a value that no header takes is refused before the conversion, not after it."""


def slide_facts(file: Path | None, **options: str | None) -> SlideFacts:
    """The facts of `file`, with each of `options` (fields of SlideFacts; None = not given) in place of the file's.

    `organ` is written CODE,SCHEME,NAME. Raises InvalidInput with the name of the first value that cannot be taken.
    """
    told = _read(file) if file is not None else _Facts()
    organ = _organ(options.pop("organ", None))
    if organ is None and told.organ is not None:
        organ = Code(told.organ.code, told.organ.scheme, told.organ.display)
    said: dict[str, Any] = {
        "study": told.study,
        "accession": told.accession,
        "container": told.container,
        "stain": told.stain,
        **{f"patient_{name}": value for name, value in told.patient.model_dump().items()},
    }
    said |= {name: value.strip() for name, value in options.items() if value is not None}
    for name, representation in _REPRESENTATIONS.items():
        _check(name.replace("_", " "), representation, said[name])
    if organ is not None:
        for text, representation in ((organ.code, "SH"), (organ.scheme, "SH"), (organ.display, "LO")):
            _check("organ", representation, text or None)
    return SlideFacts(organ=organ, **{name: value or None for name, value in said.items()})


def _read(file: Path) -> _Facts:
    try:
        return _Facts.model_validate_json(file.read_bytes())
    except OSError as error:
        raise InvalidInput(f"{file.name} cannot be read ({error.strerror}).") from None
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InvalidInput(f"{file.name} is not valid{f' at {name}' if name else ''}: {first['msg']}.") from None


def _organ(text: str | None) -> Code | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",", 2)]
    if len(parts) != 3 or not all(parts):
        raise InvalidInput("--organ takes CODE,SCHEME,NAME, e.g. 71854001,SCT,Colon.")
    return Code(*parts)


def _check(name: str, representation: str, value: str | None) -> None:
    if not value:
        return
    try:
        if "\\" in value or not value.isprintable():
            raise ValueError
        validate_value(representation, value, RAISE)
    except ValueError:
        raise InvalidInput(
            f"The {name} cannot stand in a DICOM header (it is too long or not of the form {representation})."
        ) from None
