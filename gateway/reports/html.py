"""Report -> one self-contained HTML file: no script, no outside reference, pictures inside as data: URIs."""

import base64
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from gateway.domain.report import Picture, Report
from gateway.reports import wording


def to_html(report: Report, pictures: Mapping[str, bytes]) -> bytes:
    """The report for people, UTF-8. `pictures`: the bytes behind `report.pictures` by file name; a missing one is
    named as missing in its place."""
    page = _template().render(report=report, patient=_patient(report), embed=_Embedder(report, pictures))
    return page.encode()


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["words"] = wording
    environment.filters |= {
        "person": _person,
        "date": _date,
        "area": wording.area,
        "percent": wording.percent,
        "probability": wording.probability,
    }
    return environment.get_template("report.html")


class _Embedder:
    """Finds a slide's picture and turns it into a data: URI."""

    def __init__(self, report: Report, pictures: Mapping[str, bytes]) -> None:
        self._report = report
        self._pictures = pictures

    def find(self, series: str, role: str) -> Picture | None:
        return next((p for p in self._report.pictures if (p.series, p.role) == (series, role)), None)

    def uri(self, picture: Picture) -> str | None:
        data = self._pictures.get(picture.file)
        return f"data:{picture.media_type};base64,{base64.b64encode(data).decode()}" if data else None


def _patient(report: Report) -> dict[str, str | None]:
    """Who the report is about, from the header of the first slide that has one, else from the order."""
    header = next((slide.header for slide in report.slides if slide.header), None)
    order = report.order
    if header is None:
        return {
            "name": None,
            "id": order.patient.id,
            "issuer": order.patient.issuer,
            "birth_date": None,
            "sex": None,
            "accession": order.accession,
        }
    return {
        "name": header.patient_name,
        "id": header.patient_id,
        "issuer": header.patient_id_issuer,
        "birth_date": header.patient_birth_date,
        "sex": header.patient_sex,
        "accession": header.accession or order.accession,
    }


def _person(name: str) -> str:
    """A DICOM person name (PS3.5 6.2.1) without its carets; its component groups stay apart."""
    return " · ".join(" ".join(part for part in group.split("^") if part) for group in name.split("=") if group)


def _date(text: str) -> str:
    """A DICOM date (YYYYMMDD) with dashes; anything else as received."""
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if len(text) == 8 and text.isdecimal() else text
