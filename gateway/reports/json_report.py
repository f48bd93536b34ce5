"""Report <-> JSON, and the JSON Schema (draft 2020-12) that LIS engineers validate against."""

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from gateway.domain.bethesda import NAMES
from gateway.domain.codes import Code
from gateway.domain.report import Report
from gateway.domain.screened import Adaptation, ScreeningClass, ScreeningResult
from gateway.operations.codec import adapter, dump, load
from gateway.reports.case_call import case_call

SCHEMA_VERSION = "1.8"
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
    "SegmentationResult.area_mm2": {
        **_COUNT,
        "description": "Tissue area that was read at the finest resolution that prompts were answered at, mm².",
    },
    "Segmented.index": {**_COUNT, "description": "The prompt's place in the order, from 0."},
    "Segmented.prompt": {"description": "The prompt as it was given."},
    "Segmented.triple": {"description": "What was understood by it; the label of its segment."},
    "Segmented.color": _COLOR,
    "Segmented.supported": {"description": "Whether the model was measured for it, and well enough."},
    "Segmented.present": {"description": "False: looked for, not found; the mask is empty."},
    "Segmented.presence": {**_SHARE, "description": "The model's probability that there is any."},
    "Segmented.min_presence": {**_SHARE, "description": "Least presence that counts as found."},
    "Segmented.mpp": {**_POSITIVE, "description": "Micrometres a side of a pixel of the mask."},
    "Segmented.area_mm2": _COUNT,
    "Segmented.area_fraction": {
        **_SHARE,
        "description": "Share (0..1) of the tissue area that was read at this prompt's own resolution.",
    },
    "Segmented.mean_probability": {**_SHARE, "description": "Mean probability over the mask; null where it is empty."},
    "Segmented.val_dice": {**_SHARE, "description": "Dice on the model's validation data; null where not measured."},
    "Segmented.seg": {"description": "The file whose segment with this label it is; null where none was written."},
    "ObjectFigures.count": _COUNT,
    "ObjectFigures.density_per_mm2": {
        **_COUNT,
        "description": "Objects per mm² of the tissue that was read at this prompt's own resolution.",
    },
    "ObjectFigures.mean_area_um2": {**_COUNT, "description": "Null, as all sizes, where there are no objects."},
    "ObjectFigures.area_p10_um2": _COUNT,
    "ObjectFigures.area_median_um2": _COUNT,
    "ObjectFigures.area_p90_um2": _COUNT,
    "ObjectFigures.irregularity": {
        **_SHARE,
        "description": "0 a disk, towards 1 the more ragged; by area; null where there are no objects.",
    },
    "Report.screenings": {"description": "What each slide of the cervix was read as, one result a slide."},
    "ScreeningResult.series": _UID,
    "ScreeningResult.abnormal": {"description": "Null where the category is withheld."},
    "ScreeningResult.categories": {
        "description": "Numbers of the classes named, the first the slide's category; a second stands beside it. Empty "
        "where none is named: `withheld` says why.",
    },
    "ScreeningResult.classes": {"description": "All seven; empty where no cell was found."},
    "ScreeningResult.abnormal_from": {**_SHARE, "description": "The least 1 - p(NILM) of an abnormal slide."},
    "ScreeningResult.detected": {"description": "Cells found, by abnormal class in Bethesda's order."},
    "ScreeningResult.bag": {**_COUNT, "description": "Cells that the slide's model saw."},
    "ScreeningResult.gallery": {"description": "Cells that the answer rests on, the heaviest first."},
    "ScreeningResult.scale": {
        **_POSITIVE,
        "description": "Factor from the level that was read to what the detector was shown: above 1 enlarged, below "
        "1 reduced. Null where a release before 1.7 read the slide.",
    },
    "Adequacy.squamous_cells": {**_COUNT, "description": "Estimated number of squamous cells on the slide."},
    "Adequacy.least_cells": {**_COUNT, "description": "How many are asked for."},
    "Adequacy.obscured_share": {**_SHARE, "description": "Part of the stained area."},
    "Adequacy.blurred_share": {**_SHARE, "description": "Part of the stained area."},
    "Adaptation.version": {**_COUNT, "description": "0: nobody fitted the site."},
    "Adaptation.digest": _SHA256,
    "Adaptation.applied": {"description": "Whether it changes anything."},
    "Adaptation.features_mapped": {
        "description": "Whether it maps cells' features, beside colours. Null where a release before 1.8 read the "
        "slide.",
    },
    "Adaptation.gate": {"description": "What the distances are held against."},
    "ScreeningClass.index": {"minimum": 0, "maximum": len(NAMES) - 1, "description": "Number of the class."},
    "ScreeningClass.supported": {"description": "False: never named, though it counts towards abnormal."},
    "ScreeningClass.probability": _SHARE,
    "ScreeningClass.probability_unadapted": _SHARE,
    "ScreeningClass.logit": {
        "description": "As the slide's engine answered, with the adaptation: what the card's temperature and biases "
        "make `probability` of. Null where a release before 1.8 read the slide.",
    },
    "ScreeningClass.logit_unadapted": {"description": "The same without the adaptation."},
    "ScreenedCell.index": {"description": "Number of the class that the detector gave it."},
    "ScreenedCell.score": _SHARE,
    "ScreenedCell.towards": {"description": "Number of the class whose logit it adds to."},
    "ScreenedCell.x_um": {"description": "Its middle, micrometres from the slide image's left edge."},
    "ScreenedCell.y_um": {"description": "Its middle, micrometres from the slide image's top edge."},
    "ScreenedCell.width_um": _POSITIVE,
    "ScreenedCell.height_um": _POSITIVE,
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
    "SlideClassification.explanation": {
        "description": "What the objects of the order's prompts mean to it; null where the order has none."
    },
    "Explanation.target": {**_COUNT, "description": "Index of the class whose loss is compared: the most probable."},
    "Explanation.loss": {**_COUNT, "description": "Cross-entropy of that class before anything is blurred, nats."},
    "Explanation.tiles": {"minimum": 1, "description": "Tiles, the heaviest, on which the objects are looked for."},
    "Explanation.weight_share": {**_SHARE, "description": "Part of these tiles in all weights."},
    "Explanation.repeats": {"minimum": 1, "description": "Repeats of each object's control."},
    "Explanation.blur_um": {**_POSITIVE, "description": "Standard deviation of the blur, micrometres."},
    "Explanation.objects": {"description": "The most important first; those not found last."},
    "ExplainedObject.index": {**_COUNT, "description": "The prompt's place in the order, from 0."},
    "ExplainedObject.supported": {"description": "Whether the model of masks was measured for it, and well enough."},
    "ExplainedObject.val_dice": {**_SHARE, "description": "Dice on its validation data; null where not measured."},
    "ExplainedObject.presence": {**_SHARE, "description": "Greatest probability to be there on any of the tiles."},
    "ExplainedObject.tiles": {**_COUNT, "description": "Tiles that hold any of it."},
    "ExplainedObject.area_share": {**_SHARE, "description": "Its part in the tiles' area."},
    "ExplainedObject.weight_share": {**_SHARE, "description": "Its part in the tiles' weights, by its pixels."},
    "ExplainedObject.importance": {"description": "Null where it was not found on these tiles."},
    "Importance.ratio": {**_COUNT, "description": "Loss with the object blurred, of the loss before."},
    "Importance.control": {"description": "The same with random areas of tissue of equal size blurred, over repeats."},
    "Importance.exceeds": {
        "description": "Whether the ratio lies above all of the control's repeats but at most 2.5 %."
    },
    "Importance.changes": {"description": "By class: the change of its probability."},
    "Interval.low": {"description": "Below it lie at most 2.5 % of the repeats."},
    "Interval.high": {"description": "Above it lie at most 2.5 % of the repeats."},
    "ClassChange.index": _COUNT,
    "ClassChange.change": {"minimum": -1, "maximum": 1, "description": "With the object blurred."},
    "ClassChange.control": {"minimum": -1, "maximum": 1, "description": "With random areas blurred, in the mean."},
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


def _coded(**more: Any) -> dict[str, Any]:
    properties: dict[str, Any] = {**{key: {"type": "string"} for key in ("code", "scheme", "label")}, **more}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _or_null(schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}], "description": description}


_PROBABILITIES = {
    "type": "object",
    "properties": {name: {**_SHARE, "type": "number"} for name in NAMES},
    "required": list(NAMES),
    "additionalProperties": False,
}
_LOGITS = {**_PROBABILITIES, "properties": {name: {"type": "number"} for name in NAMES}}
_CASE: dict[str, Any] = {
    "category": _or_null(_coded(), "The case's category; null where it is withheld, or nothing was screened."),
    "probabilities": _or_null(_PROBABILITIES, "As served, by Bethesda's abbreviation; null where no cell was found."),
    "probabilities_unadapted": _or_null(_PROBABILITIES, "The same without the adaptation to the slide's site."),
    "logits": _or_null(
        _LOGITS,
        "What the slide's engine answered, as served: the logits of `probabilities`, before the card's temperature and "
        "biases. Null where no cell was found, or a release before 1.8 read the slide.",
    ),
    "logits_unadapted": _or_null(_LOGITS, "The same without the adaptation to the slide's site."),
    "adaptation": _or_null({"$ref": f"#/$defs/{Adaptation.__name__}"}, "The state of the slide's site."),
    "operating_point": _or_null(
        {
            "type": "object",
            "properties": {"name": {"type": "string"}, "abnormal_from": {**_SHARE, "type": "number"}},
            "required": ["name", "abnormal_from"],
            "additionalProperties": False,
        },
        "A slide is abnormal where 1 - p(NILM) reaches `abnormal_from`. The point is that of the model's source or, "
        "by the name `order`, the order's; never the site's own.",
    ),
    "adequacy": _or_null(_coded(reasons={"type": "array", "items": _coded()}), "Whether the slide can be judged."),
    "screened_series": _or_null({**_UID, "type": "string"}, "The slide that speaks for the case."),
}
"""Members of `cervical-screening`, which callers look at first: those of the slide that speaks for the case
(`case_call`). They repeat what `screenings` says, and are not read back."""


def to_json(report: Report) -> bytes:
    """The report as UTF-8 JSON: fields in the order of the types, two spaces, one final newline. No NaN, ever."""
    document = {**dump(report), "segments": _segments(report), **_case(report)}
    return (json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False) + "\n").encode()


def _segments(report: Report) -> list[dict[str, Any]]:
    said = _SEGMENTS["items"]["required"][1:]
    return [
        {"series": result.series, **{field: getattr(each, field) for field in said}}
        for result in report.segmentations
        for each in result.segments
    ]


def _case(report: Report) -> dict[str, Any]:
    call = case_call(report)
    if call is None:
        return dict.fromkeys(_CASE)
    slide, category, adequacy = call.slide, call.category, call.slide.adequacy
    label = None if category is None else category.code.display if slide.exploratory else NAMES[category.index]
    return {
        "category": None if category is None else _said(category.code, label),
        "probabilities": _by_class(slide, lambda each: each.probability),
        "probabilities_unadapted": _by_class(slide, lambda each: each.probability_unadapted),
        "logits": _by_class(slide, lambda each: each.logit),
        "logits_unadapted": _by_class(slide, lambda each: each.logit_unadapted),
        "adaptation": dump(slide.adaptation),
        "operating_point": {"name": slide.operating_point, "abnormal_from": slide.abnormal_from},
        "adequacy": {**_said(adequacy.code), "reasons": [_said(code) for code in adequacy.reasons]},
        "screened_series": slide.series,
    }


def _by_class(slide: ScreeningResult, figure: Callable[[ScreeningClass], float | None]) -> dict[str, float] | None:
    """One figure of each class by its abbreviation; None where there are no classes, or they lack it."""
    figures = {NAMES[each.index]: value for each in slide.classes if (value := figure(each)) is not None}
    return figures or None


def _said(code: Code, label: str | None = None) -> dict[str, str]:
    return {"code": code.code, "scheme": code.scheme, "label": label or code.display}


def from_json(data: bytes) -> Report:
    """The report back from its JSON, that of an earlier version too. Raises ValueError."""
    document = json.loads(data)
    for result in document.get("segmentations", ()):
        if "min_presence" in result:  # until 1.4 one for all segments
            least = result.pop("min_presence")
            result["segments"] = [{**each, "min_presence": least} for each in result["segments"]]
    # Until 1.5 there were no screenings, until 1.6 they had no scale, until 1.7 no logits: written again, it has all.
    if "logits" not in document:
        document["schema_version"] = SCHEMA_VERSION
    return load(Report, document)


def report_schema() -> dict[str, Any]:
    """The JSON Schema of report.json: every field is present, unknown ones are refused."""
    schema: dict[str, Any] = adapter(Report).json_schema(mode="serialization")
    definitions: dict[str, Any] = schema["$defs"]
    root = {key: value for key, value in schema.items() if key != "$defs"}
    root["properties"] |= deepcopy({"segments": _SEGMENTS, **_CASE})
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
