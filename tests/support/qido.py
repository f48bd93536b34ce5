"""A small PACS that answers searches (QIDO-RS) over slides that a test names, as well or as badly as a test wants."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.support.rogue_pacs import Request, RoguePacs, running


@dataclass(frozen=True)
class Slide:
    """One series with two instances."""

    study: str
    series: str
    accession: str = "A1"
    container: str = "C1"
    patient: str = "P1"
    modality: str = "SM"

    def attributes(self, sop: str) -> dict[str, str]:
        return {
            "0020000D": self.study,
            "0020000E": self.series,
            "00080018": sop,
            "00080050": self.accession,
            "00400512": self.container,
            "00100020": self.patient,
            "00080060": self.modality,
        }


_KEYS = {
    "StudyInstanceUID": "0020000D",
    "SeriesInstanceUID": "0020000E",
    "AccessionNumber": "00080050",
    "ContainerIdentifier": "00400512",
}
_RETURNED = {
    "studies": ("0020000D", "00080050", "00100020"),
    "series": ("0020000D", "0020000E", "00080060"),
    "instances": ("0020000D", "0020000E", "00080018", "00080060"),
}


@dataclass
class Qido:
    """`ignored` keys match everything; `returns_container` False = ContainerIdentifier is never in an answer;
    `last_says` = a study's attributes in an answer are those of its last object, as Orthanc has it."""

    slides: tuple[Slide, ...]
    ignored: frozenset[str] = frozenset()
    case_insensitive: bool = False
    returns_container: bool = True
    last_says: bool = False
    paths: list[str] = field(default_factory=list)

    def answer(self, request: Request) -> None:
        parts = urlsplit(request.path)
        self.paths.append(parts.path)
        asked = parse_qsl(parts.query)
        path = parts.path.removeprefix("/dicom-web/").split("/")
        keys = [(_KEYS[name], value) for name, value in asked if name in _KEYS and name not in self.ignored]
        keys += [(_KEYS[name], unquote(value)) for name, value in zip(_IN_PATH, path[1:-1:2], strict=False)]
        metadata = path[-1] == "metadata"
        level = "instances" if metadata else path[-1]
        found: dict[str, dict[str, str]] = {}
        for slide in self.slides:
            for number in (1, 2):
                attributes = slide.attributes(f"{slide.series}.{number}")
                if metadata and attributes["00080018"] != path[-2]:
                    continue
                if all(self._same(attributes[tag], value) for tag, value in keys if tag in attributes):
                    found[attributes[_KEY_OF[level]]] = attributes
        if self.last_says and level == "studies":
            found = {uid: [one for one in self.slides if one.study == uid][-1].attributes("") for uid in found}
        returned = set(_RETURNED[level])
        if metadata:
            returned |= set(self.slides[0].attributes(""))
        elif self.returns_container and ("includefield", "00400512") in asked:
            returned |= {"00400512"}
        offset, limit = int(dict(asked).get("offset", 0)), int(dict(asked).get("limit", 10_000))
        page = [{t: {"vr": "LO", "Value": [v]} for t, v in one.items() if t in returned} for one in found.values()]
        request.answer(200, "application/dicom+json", json.dumps(page[offset : offset + limit]).encode())

    def _same(self, value: str, wanted: str) -> bool:
        return value.lower() == wanted.lower() if self.case_insensitive else value == wanted


_IN_PATH = ("StudyInstanceUID", "SeriesInstanceUID")
_KEY_OF = {"studies": "0020000D", "series": "0020000E", "instances": "00080018"}


@contextmanager
def running_qido(qido: Qido) -> Iterator[str]:
    """The archive address of the server, until the block ends."""
    answer = qido.answer
    with running(RoguePacs(list_series=answer, list_instances=answer, retrieve=answer)) as pacs:
        yield pacs.address
