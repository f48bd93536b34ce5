"""All encodings of a report at once, named as callers outside rely on."""

from collections.abc import Mapping, Sequence

from pydicom import Dataset

from gateway.domain.report import Report
from gateway.reports.html import to_html
from gateway.reports.json_report import to_json
from gateway.reports.sr import sr_bytes, sr_documents


def encode_all(report: Report, source_images: Sequence[Dataset], pictures: Mapping[str, bytes]) -> dict[str, bytes]:
    """File name -> content: report.json, report.html, report.sr.dcm (report-2.sr.dcm … for further studies).

    `source_images`: see `sr_documents`. `pictures`: the bytes behind `report.pictures`, by file name; they are
    embedded in the HTML and are the caller's to write.
    """
    files = {"report.json": to_json(report), "report.html": to_html(report, pictures)}
    for number, document in enumerate(sr_documents(report, source_images), 1):
        files["report.sr.dcm" if number == 1 else f"report-{number}.sr.dcm"] = sr_bytes(document)
    return files
