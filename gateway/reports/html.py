"""Report -> one self-contained HTML file: no script, no outside reference, pictures inside as data: URIs."""

import base64
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from gateway.domain.report import Picture, Report
from gateway.reports import explaining, screened_words, wording


def to_html(report: Report, pictures: Mapping[str, bytes]) -> bytes:
    """The report for people, UTF-8. `pictures`: the bytes behind `report.pictures` by file name; a missing one is
    named as missing in its place."""
    page = _template().render(report=report, patient=wording.patient(report), embed=_Embedder(report, pictures))
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
    environment.globals |= {"words": wording, "explaining": explaining, "screened": screened_words}
    environment.filters |= {
        "person": wording.person,
        "date": wording.date,
        "cut": wording.cut,
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
