"""Report -> JSON, HTML, PDF, GeoJSON and DICOM objects: pure functions of `domain.Report` (DESIGN.md law 1)."""

from gateway.reports.encode import DICOM, result_objects, segment_files, write_all, write_revision
from gateway.reports.headers import keep, kept
from gateway.reports.html import to_html
from gateway.reports.json_report import SCHEMA_VERSION, from_json, report_schema, to_json
from gateway.reports.masks import MaskBox, coverage_of
from gateway.reports.pictures import (
    attention_map,
    cell_map,
    field_picture,
    picture,
    segment_picture,
    thumbnail_jpeg,
    tissue_map,
)
from gateway.reports.spatial import UNCERTAIN, AttentionMap, CellMap, MaskMap, Outlines, SlideSource, TileMap
from gateway.reports.sr import to_sr

__all__ = [
    "DICOM",
    "SCHEMA_VERSION",
    "UNCERTAIN",
    "AttentionMap",
    "CellMap",
    "MaskBox",
    "MaskMap",
    "Outlines",
    "SlideSource",
    "TileMap",
    "attention_map",
    "cell_map",
    "coverage_of",
    "field_picture",
    "from_json",
    "keep",
    "kept",
    "picture",
    "report_schema",
    "result_objects",
    "segment_files",
    "segment_picture",
    "thumbnail_jpeg",
    "tissue_map",
    "to_html",
    "to_json",
    "to_sr",
    "write_all",
    "write_revision",
]
