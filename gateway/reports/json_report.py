"""Report <-> JSON, and the JSON Schema (draft 2020-12) that LIS engineers validate against."""

import json
from copy import deepcopy
from typing import Any

from gateway.domain.report import Report
from gateway.operations.codec import adapter, dump, loads

SCHEMA_ID = "urn:pathserve:schema:report:1"

_UID = {"pattern": r"^(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+$", "maxLength": 64}
_SHA256 = {"pattern": "^[0-9a-f]{64}$"}
_COLOR = {"pattern": "^#[0-9a-fA-F]{6}$"}
_SHARE = {"minimum": 0, "maximum": 1}
_POSITIVE = {"exclusiveMinimum": 0}
_COUNT = {"minimum": 0}

_TIGHTER: dict[str, dict[str, Any]] = {
    "Report.schema_version": {"pattern": r"^1(\.[0-9]+)?$"},
    "Report.analysis_id": {"pattern": "^[a-z0-9][a-z0-9-]{0,63}$", "description": "Id of the analysis (the order)."},
    "Report.issued": {"description": "When this revision was first built, UTC."},
    "Report.statement": {"description": "Research use: what the model was made and measured for."},
    "Report.exploratory": {"description": "True where a slide lies outside the intended use of the model."},
    "Report.models": {"description": "Every model behind the figures, with the digests that trace it."},
    "Report.order": {"description": "The order as it was received, with any setting changed for it."},
    "Report.slides": {"description": "Every slide of the order, read or not.", "minItems": 1},
    "Report.findings": {"description": "What the reader must know beside the result."},
    "Report.tissue": {"description": "What tissue is where, one result a slide."},
    "Report.revision": {
        "minimum": 1,
        "description": "1 is the machine's; each signature and each correction is one more.",
    },
    "Report.supersedes": {"description": "The revision that this one takes the place of; null for the first."},
    "Report.signature": {"description": "Who signed this revision; null where no person has."},
    "Report.amendments": {
        "description": "The corrections by persons so far, oldest first; each adds to the earlier ones."
    },
    "Signature.by": {"description": "Who it was, as the audit trail knows the person."},
    "Signature.time": {"description": "When it was signed, UTC."},
    "SignedAmendment.revision": {"minimum": 2, "description": "The revision in which it was made."},
    "Report.pictures": {"description": "Pictures that lie beside this file."},
    "RegionUm.x_um": _COUNT,
    "RegionUm.y_um": _COUNT,
    "RegionUm.width_um": _POSITIVE,
    "RegionUm.height_um": _POSITIVE,
    "Software.device_uid": _UID,
    "ModelVersion.engine_sha256": _SHA256,
    "ModelVersion.weights_sha256": _SHA256,
    "ModelVersion.recipe_sha256": _SHA256,
    "ModelVersion.manifest_sha256": _SHA256,
    "SlideReading.study": _UID,
    "SlideReading.series": {
        "anyOf": [_UID, {"const": ""}],
        "description": "Series of the slide; empty where the archive does not know the study.",
    },
    "SlideReading.reason": {"description": "Why the slide was not read; null where it was."},
    "SlideReading.level_mpp": _POSITIVE,
    "SlideReading.level_width_px": _POSITIVE,
    "SlideReading.level_height_px": _POSITIVE,
    "SlideReading.tissue_area_mm2": {**_COUNT, "description": "Tissue found on the slide, mm²."},
    "SlideReading.tiles_read": _COUNT,
    "SlideReading.frames_missing": {**_COUNT, "description": "Frames that the slide lacks, shown as background."},
    "SlideHeader.study_uid": _UID,
    "SlideHeader.series_uid": _UID,
    "TileGrid.mpp": {**_POSITIVE, "description": "Micrometres per pixel as the model sees the slide."},
    "TileGrid.tile_px": _POSITIVE,
    "TileGrid.field_px": _POSITIVE,
    "TileGrid.columns": _POSITIVE,
    "TileGrid.rows": _POSITIVE,
    "TissueResult.series": _UID,
    "TissueResult.tiles": _COUNT,
    "TissueResult.area_mm2": {**_COUNT, "description": "Tissue area that was read, mm²."},
    "TissueResult.uncertain_tiles": _COUNT,
    "TissueResult.uncertain_area_mm2": _COUNT,
    "TissueResult.uncertain_share": {**_SHARE, "description": "Share (0..1) that reached no operating point."},
    "TissueResult.min_probability": _SHARE,
    "TissueClass.color": _COLOR,
    "TissueClass.tiles": _COUNT,
    "TissueClass.area_mm2": _COUNT,
    "TissueClass.share": {**_SHARE, "description": "Share (0..1) of the tissue area that was read."},
    "TissueClass.mean_probability": {
        **_SHARE,
        "description": "Mean probability over the class's tiles; null without tiles.",
    },
    "Report.segmentations": {"description": "What was found of the order's prompts, one result a slide."},
    "SegmentationResult.series": _UID,
    "SegmentationResult.area_mm2": {**_COUNT, "description": "Tissue area that was read, mm²."},
    "SegmentationResult.min_presence": {**_SHARE, "description": "Least presence that counts as found."},
    "Segmented.index": {**_COUNT, "description": "The prompt's place in the order, from 0."},
    "Segmented.prompt": {"description": "The prompt as it was given."},
    "Segmented.triple": {"description": "What was understood by it; the label of its segment."},
    "Segmented.color": _COLOR,
    "Segmented.supported": {"description": "Whether the model was measured for it."},
    "Segmented.present": {"description": "False: looked for, not found; the mask is empty."},
    "Segmented.presence": {**_SHARE, "description": "The model's probability that there is any."},
    "Segmented.mpp": {**_POSITIVE, "description": "Micrometres a side of a pixel of the mask."},
    "Segmented.area_mm2": _COUNT,
    "Segmented.area_fraction": {**_SHARE, "description": "Share (0..1) of the tissue area that was read."},
    "Segmented.mean_probability": {**_SHARE, "description": "Mean probability over the mask; null where it is empty."},
    "Segmented.val_dice": {**_SHARE, "description": "Dice on the model's validation data; null where not measured."},
    "Segmented.seg": {"description": "The file whose segment with this label it is; null where none was written."},
    "ObjectFigures.count": _COUNT,
    "ObjectFigures.density_per_mm2": {**_COUNT, "description": "Objects per mm² of the tissue that was read."},
    "ObjectFigures.mean_area_um2": _COUNT,
    "ObjectFigures.area_p10_um2": _COUNT,
    "ObjectFigures.area_median_um2": _COUNT,
    "ObjectFigures.area_p90_um2": _COUNT,
    "ObjectFigures.irregularity": {**_SHARE, "description": "0 a disk, towards 1 the more ragged; by area."},
    "Report.slide_classes": {"description": "What each slide as a whole is taken for, one result a slide."},
    "SlideReading.quality": {"description": "How well the slide can be seen; null where it was not measured."},
    "SlideReading.stain_figures": {
        "description": "How it is stained; null where too little is, or the model is for another stain."
    },
    "SlideClass.color": _COLOR,
    "SlideClass.probability": _SHARE,
    "SlideClassification.series": _UID,
    "SlideClassification.answer": {"description": "Index of the class that reached the operating point, or null."},
    "SlideClassification.min_probability": _SHARE,
    "SlideClassification.tiles": {**_COUNT, "description": "Tiles that were read."},
    "SlideClassification.bag": {**_COUNT, "description": "Tiles that the slide's model saw."},
    "TopTile.sop_instance_uid": _UID,
    "TopTile.attention": {**_SHARE, "description": "Weight, of the slide's heaviest tile."},
    "TopTile.share": {**_SHARE, "description": "Part (0..1) of all weights on the slide."},
    "TopTile.size_um": {**_POSITIVE, "description": "Side of the square, micrometres."},
    "TopTile.x_um": {**_COUNT, "description": "Left edge, micrometres from the slide image's left edge."},
    "TopTile.y_um": {**_COUNT, "description": "Top edge, micrometres from the slide image's top edge."},
    "SlideQuality.focus_p10": _COUNT,
    "SlideQuality.focus_median": _COUNT,
    "SlideQuality.focus_p90": _COUNT,
    "SlideQuality.blurred_share": {**_SHARE, "description": "Share (0..1) of the tiles out of focus."},
    "SlideQuality.saturation": _SHARE,
    "SlideQuality.brightness": _SHARE,
    "SlideQuality.pen_area_mm2": _COUNT,
    "StainFigures.haematoxylin_od": {**_COUNT, "description": "Mean optical density (base 10) over stained pixels."},
    "StainFigures.eosin_od": {**_COUNT, "description": "Mean optical density (base 10) over stained pixels."},
    "StainFigures.distance_deg": {
        "description": "Degrees from the stain colours of the model's card; null where it names none."
    },
    "Evidence.sop_instance_uid": _UID,
    "Evidence.probability": _SHARE,
    "Evidence.x_um": {**_COUNT, "description": "Left edge, micrometres from the slide image's left edge."},
    "Evidence.y_um": {**_COUNT, "description": "Top edge, micrometres from the slide image's top edge."},
    "Evidence.size_um": {**_POSITIVE, "description": "Side of the square, micrometres."},
    "BoxPx.x_px": _COUNT,
    "BoxPx.y_px": _COUNT,
    "BoxPx.width_px": _POSITIVE,
    "BoxPx.height_px": _POSITIVE,
    "Report.objects": {"description": "The other files of the report, in the order in which the archive gets them."},
    "ResultObject.study": {"description": "The study that the file is about; null where it is about the whole case."},
    "ResultObject.series": {"description": "The slide's series, where the file is about one slide."},
    "Picture.sha256": _SHA256,
    "Picture.width_px": _POSITIVE,
    "Picture.height_px": _POSITIVE,
    "Picture.series": _UID,
}


_SEGMENTS: dict[str, Any] = {
    "description": "What became of each prompt, on each slide, in short; `segmentations` has the figures.",
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "series": {**_UID, "type": "string"},
            "prompt": {"type": "string"},
            "triple": {"type": "string"},
            "seg": {"type": ["string", "null"]},
            "present": {"type": "boolean"},
            "presence": {**_SHARE, "type": "number"},
            "supported": {"type": "boolean"},
        },
        "required": ["series", "prompt", "triple", "seg", "present", "presence", "supported"],
        "additionalProperties": False,
    },
}
"""The member `segments`, which callers look at first. It repeats what `segmentations` says, and is not read back."""


def to_json(report: Report) -> bytes:
    """The report as UTF-8 JSON: fields in the order of the types, two spaces, one final newline. No NaN, ever."""
    document = {**dump(report), "segments": _segments(report)}
    return (json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False) + "\n").encode()


def _segments(report: Report) -> list[dict[str, Any]]:
    said = _SEGMENTS["items"]["required"][1:]
    return [
        {"series": result.series, **{field: getattr(each, field) for field in said}}
        for result in report.segmentations
        for each in result.segments
    ]


def from_json(data: bytes) -> Report:
    """The report back from its JSON. Raises pydantic.ValidationError."""
    return loads(Report, data)


def report_schema() -> dict[str, Any]:
    """The JSON Schema of report.json: every field is present, unknown ones are refused."""
    schema: dict[str, Any] = adapter(Report).json_schema(mode="serialization")
    definitions: dict[str, Any] = schema["$defs"]
    root = {key: value for key, value in schema.items() if key != "$defs"}
    root["properties"]["segments"] = deepcopy(_SEGMENTS)
    for name, definition in ((Report.__name__, root), *definitions.items()):
        _tighten(name, definition)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        **root,
        "title": "pathserve report",
        "$defs": definitions,
    }


def _tighten(name: str, definition: dict[str, Any]) -> None:
    properties: dict[str, dict[str, Any]] | None = definition.get("properties")
    if properties is None:
        return
    definition["required"] = list(properties)
    definition["additionalProperties"] = False
    for field, schema in properties.items():
        schema.pop("default", None)
        schema.update(_TIGHTER.get(f"{name}.{field}", {}))
