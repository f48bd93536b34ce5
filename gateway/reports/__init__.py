"""Report -> JSON, DICOM SR, HTML and pictures: pure functions of `domain.Report` (DESIGN.md law 1)."""

from gateway.reports.encode import encode_all
from gateway.reports.html import to_html
from gateway.reports.json_report import from_json, report_schema, to_json
from gateway.reports.pictures import picture, thumbnail_jpeg, tissue_map
from gateway.reports.spatial import UNCERTAIN, SlideSource, TileMap
from gateway.reports.sr import sr_bytes, sr_documents, to_sr

__all__ = [
    "UNCERTAIN",
    "SlideSource",
    "TileMap",
    "encode_all",
    "from_json",
    "picture",
    "report_schema",
    "sr_bytes",
    "sr_documents",
    "thumbnail_jpeg",
    "tissue_map",
    "to_html",
    "to_json",
    "to_sr",
]
