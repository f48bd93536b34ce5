"""UIDs and ids. Everything that leaves is named from the analysis id, so a repeated delivery is the same object."""

import re
import uuid

_NAMESPACE = uuid.UUID("5f1d4c1e-6f0c-5a43-9d6a-1f0f6b3f7a11")
_UID = re.compile(r"(?=.{1,64}\Z)(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+\Z")
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}\Z")


def derive_uid(analysis_id: str, role: str) -> str:
    """A DICOM UID under the 2.25 root (PS3.5 B.2) that depends on the analysis id and the object's role only."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, f'{analysis_id}/{role}').int}"


def object_uid(analysis_id: str, role: str, of: str, revision: int = 1) -> str:
    """The UID of one derived object of a report: `role` is its kind, `of` the slide's series or the study."""
    return derive_uid(analysis_id, f"{role}/{of}" if revision == 1 else f"{role}/{of}/revision-{revision}")


def new_analysis_id() -> str:
    """A fresh analysis id: a random UUID in its canonical lower-case form."""
    return str(uuid.uuid4())


def is_uid(text: str) -> bool:
    """True for a DICOM UID (PS3.5 9.1): at most 64 characters, dotted numbers without leading zeros."""
    return bool(_UID.match(text))


def is_analysis_id(text: str) -> bool:
    """True for text that is safe as an analysis id: lower-case letters, digits, dashes (it names a folder)."""
    return bool(_ID.match(text))
