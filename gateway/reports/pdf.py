"""Report -> PDF/A for people, in the words and figures of the HTML page.

typst sets it: values reach the template as JSON data, never as markup, and everything stays in memory. The template
imports no package, so nothing is ever fetched.
"""

import base64
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from gateway.domain.explanation import Explanation
from gateway.domain.report import (
    Report,
    SegmentationResult,
    SlideClassification,
    SlideReading,
    TissueClass,
    TissueResult,
)
from gateway.domain.screened import ScreeningResult
from gateway.operations.errors import PathserveError
from gateway.reports import explaining, screened_words, wording
from gateway.reports.sr_concepts import plain

_TEMPLATE = Path(__file__).parent / "templates" / "report.typ"
_HEAD_CHARACTERS = 40
_REPLACEMENT = "□"
_UNSHOWN = re.compile(r'the text `"((?:[^"\\]|\\.)*)"` could not be displayed')
_ESCAPE = re.compile(r"\\u\{([0-9a-f]+)\}|\\(.)")
# typst takes files in memory as text only, so a picture travels inside an SVG, and into the PDF as it is.
_SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {width} {height}">'
    '<image width="{width}" height="{height}" xlink:href="data:{media_type};base64,{data}"/></svg>'
)
_NOT_GIVEN, _NOT_KNOWN = "not given", "not known"


def to_pdf(report: Report, pictures: Mapping[str, bytes]) -> bytes:
    """The report for people, PDF/A-2a and PDF/UA-1. `pictures`: the bytes behind `report.pictures` by file name; a
    missing one is named as missing in its place.

    A character that no font shows, neither typst's own nor the system's, is replaced by □, and the document says so.
    The bytes depend on the report and the pictures only, and on the system's fonts only where typst's own do not
    suffice. Raises PathserveError.
    """
    import typst  # 80 MB of code that only this function needs

    content, images = _content(report, pictures)
    template = _TEMPLATE.read_bytes()
    own_fonts_only = True
    unshown: set[str] = set()
    while True:
        files = {"main.typ": template, "report.json": _data(content, unshown), **images}
        # The package's types do not know files in memory.
        compiler = typst.Compiler(files, ignore_system_fonts=own_fonts_only)  # type: ignore[type-var]
        try:
            pages = compiler.compile(
                format="pdf", pdf_standards=["a-2a", "ua-1"], timestamp=int(report.issued.timestamp())
            )
            return cast(bytes, pages)
        except typst.TypstError as error:
            more = _named_unshown(error.diagnostic) - unshown
            if own_fonts_only:
                own_fonts_only = False
            elif more:
                unshown |= more
            else:
                raise PathserveError(f"The report cannot be set as PDF: {error.message}. Report this.") from None


def _data(content: dict[str, Any], unshown: set[str]) -> bytes:
    """The content as JSON, without the texts that no font shows: of each only what is ASCII stays."""
    replacements = {
        text: "".join(character if character.isascii() else _REPLACEMENT for character in text)
        for text in sorted(unshown, key=len, reverse=True)
    }

    def shown(value: str) -> str:
        for text, replacement in replacements.items():
            value = value.replace(text, replacement)
        return value

    replaced = f"{_REPLACEMENT} stands for a character that this document has no font for; report.html shows it."
    document = {**_each(content, shown), "replaced": replaced if unshown else None}
    return json.dumps(document, ensure_ascii=False).encode()


def _named_unshown(diagnostic: str) -> set[str]:
    """The texts, a character with its marks each, that typst names as those no font shows."""
    return {
        _ESCAPE.sub(lambda escape: chr(int(escape[1], 16)) if escape[1] else escape[2], text)
        for text in _UNSHOWN.findall(diagnostic)
    }


def _each(value: Any, change: Callable[[str], str]) -> Any:
    """The value with every text in it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _each(item, change) for key, item in value.items()}
    return [_each(item, change) for item in value] if isinstance(value, list) else value


def _content(report: Report, pictures: Mapping[str, bytes]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What the template says, all text, and the pictures that it shows by the names it knows them by."""
    patient = wording.patient(report)
    name = wording.person(patient["name"]) if patient["name"] else _NOT_GIVEN
    images: dict[str, bytes] = {}
    given_id = patient["id"] or _NOT_GIVEN
    content = {
        "title": wording.document_title(report),
        "author": report.software.manufacturer,
        "protocol": wording.protocol_title(report),
        "who": _headed(name),
        "which": f"Patient id {_headed(given_id)} · Accession {_headed(patient['accession'] or _NOT_GIVEN)}",
        "marks": f"Research use · {wording.mark(report)}" + (" · Exploratory" if report.exploratory else ""),
        "issued": wording.moment(report.issued),
        "analysis": report.analysis_id,
        "statements": [wording.RESEARCH_USE, wording.standing(report)],
        "remark": wording.remark_of_signer(report),
        "amendments": [
            {
                "title": wording.amendment_title(amended),
                "rows": [list(row) for row in wording.amendment_rows(amended)],
            }
            for amended in report.amendments
        ],
        "exploratory": wording.EXPLORATORY if report.exploratory else None,
        "case": _said(screened_words.case_words(report)),
        "identity": [
            ["Patient", name],
            ["Patient id", f"{given_id} ({patient['issuer']})" if patient["issuer"] else given_id],
            ["Birth date", wording.date(patient["birth_date"] or _NOT_GIVEN)],
            ["Sex", patient["sex"] or _NOT_GIVEN],
            ["Accession", patient["accession"] or _NOT_GIVEN],
            ["Priority", report.order.priority.value],
        ],
        "remarks": [
            *(
                [wording.kind_title(finding.kind), f"{wording.slide_name(report, finding.series)}: {finding.text}"]
                for finding in report.findings
            ),
            *(
                ["Not read", f"{wording.slide_name(report, slide.series)}: {reason}"]
                for slide, reason in wording.unread(report)
            ),
        ],
        "nothing": "Nothing beside the result: every slide of the order was read, and each lies inside the intended "
        "use of the model.",
        "slides": [_slide(report, slide, pictures, images) for slide in report.slides if slide.read],
        "statement": report.statement,
        "models": [
            {
                "name": f"{model.name}, version {model.version}, {model.target} {model.precision}",
                "facts": [
                    ["Engine, sha256", model.engine_sha256],
                    ["Weights, sha256", model.weights_sha256],
                    ["Recipe", model.recipe],
                    ["Recipe, sha256", model.recipe_sha256],
                    ["Data manifest, sha256", model.manifest_sha256],
                ],
            }
            for model in report.models
        ],
        "settings": [[key, str(value)] for key, value in report.order.settings],
        "identifiers": [
            [[f"Slide {number}, study", slide.study], [f"Slide {number}, series", slide.series or _NOT_KNOWN]]
            for number, slide in enumerate(report.slides, 1)
        ],
        "footer": f"{report.software.name} {report.software.version}, {report.software.manufacturer} · report format "
        f"{report.schema_version} · {report.state.value} · {wording.RESEARCH_USE}",
    }
    return _each(content, plain), images  # no font shows control characters


def _headed(text: str) -> str:
    """What the head of every page has room for; the first page says more."""
    return wording.cut(text, _HEAD_CHARACTERS)


def _slide(
    report: Report, slide: SlideReading, pictures: Mapping[str, bytes], images: dict[str, bytes]
) -> dict[str, Any]:
    result, classified = report.tissue_of(slide.series), report.classes_of(slide.series)
    segmented, screening = report.segments_of(slide.series), report.screening_of(slide.series)
    header = slide.header
    scanner = " ".join(map(wording.cut, filter(None, (header.manufacturer, header.model_name)))) if header else ""
    facts = [
        ["Specimen", wording.cut((header.specimen_id if header else None) or _NOT_GIVEN)],
        ["Site", wording.cut(slide.site.display) if slide.site else _NOT_KNOWN],
        ["Stain", wording.cut(slide.stain or _NOT_KNOWN)],
        ["Scanner", scanner or _NOT_GIVEN],
    ]
    if slide.grid:
        grid = slide.grid
        facts.append(["Read at", f"{grid.mpp:.3f} µm per pixel, {slide.tiles_read} tiles of {grid.tile_um:.0f} µm"])
    scaled = screened_words.scaled_by(screening, slide) if screening else None
    if scaled is not None:
        facts.append(["Scaled by", scaled])
    if slide.tissue_area_mm2 is not None:
        facts.append(["Tissue found", f"{wording.area(slide.tissue_area_mm2)} mm²"])
    facts += [[label, figure] for label, figure in wording.how_seen(slide)]
    missing = f"{slide.frames_missing} frames were missing in the slide and were read as empty background."
    outside = "Exploratory: this slide lies outside the intended use of the model."
    return {
        "name": wording.slide_name(report, slide.series),
        "facts": facts,
        "missing": missing if slide.frames_missing else None,
        "exploratory": outside
        if any(each and each.exploratory for each in (result, classified, segmented, screening))
        else None,
        "result": _result(result) if result else None,
        "classified": _classified(classified) if classified else None,
        "segmented": _segmented(report, segmented) if segmented else None,
        "screened": _screened(screening) if screening else None,
        "without": "This slide was read; it has no result.",
        "pictures": [
            _picture(report, slide.series, *words, pictures, images)
            for words in _slide_pictures(report, classified, segmented, screening)
        ],
        "tiles": [
            _picture(report, slide.series, *words, pictures, images)
            for words in _evidence_pictures(classified, screening)
        ],
    }


def _evidence_pictures(
    classified: SlideClassification | None, screening: ScreeningResult | None
) -> Sequence[tuple[str, str, str]]:
    if screening is not None:
        return screened_words.gallery_pictures(screening)
    return wording.tile_pictures(classified) if classified else ()


def _slide_pictures(
    report: Report,
    classified: SlideClassification | None,
    segmented: SegmentationResult | None,
    screening: ScreeningResult | None,
) -> Sequence[tuple[str, str, str]]:
    if screening is not None:
        return screened_words.pictures(report, screening)
    if segmented is not None:
        return wording.segment_pictures(report, segmented)
    return wording.ATTENTION_PICTURES if classified else wording.TISSUE_PICTURES


def _picture(
    report: Report,
    series: str,
    role: str,
    title: str,
    alternative: str,
    pictures: Mapping[str, bytes],
    images: dict[str, bytes],
) -> dict[str, str | None]:
    """What the template knows of one picture; its bytes are put into `images`."""
    found = next((picture for picture in report.pictures if (picture.series, picture.role) == (series, role)), None)
    file = None
    if found and (data := pictures.get(found.file)):
        file = f"picture-{len(images) + 1}.svg"
        images[file] = _SVG.format(
            width=found.width_px,
            height=found.height_px,
            media_type=found.media_type,
            data=base64.b64encode(data).decode(),
        ).encode()
    return {"file": file, "title": title, "alternative": alternative, "absent": "No picture at hand"}


def _result(result: TissueResult) -> dict[str, Any]:
    classes = sorted(result.classes, key=lambda tissue: tissue.area_mm2, reverse=True)
    return {
        "caption": "Share of the tissue area that was read. A tile counts for its most probable class if that reaches "
        f"{wording.probability(result.min_probability)} (operating point “{result.operating_point}”), else as "
        "uncertain.",
        "heading": ["Class", "Area, mm²", "Share, %", "Mean probability", "Tiles"],
        "rows": [
            *(
                [
                    tissue.color,
                    tissue.code.display,
                    wording.area(tissue.area_mm2),
                    wording.percent(tissue.share),
                    wording.probability(tissue.mean_probability),
                    str(tissue.tiles),
                ]
                for tissue in classes
            ),
            [
                None,
                wording.UNCERTAIN,
                wording.area(result.uncertain_area_mm2),
                wording.percent(result.uncertain_share),
                wording.probability(None),
                str(result.uncertain_tiles),
            ],
        ],
        "total": ["Tissue read", wording.area(result.area_mm2), "", "", str(result.tiles)],
        "tiles-caption": "Position of the tile's top left corner, in micrometres from the slide image's top left "
        "corner.",
        "tiles-heading": ["Class", "x, µm", "y, µm", "Side, µm", "Probability"],
        "tiles": [row for tissue in result.classes for row in _tiles(tissue)],
    }


def _classified(classes: SlideClassification) -> dict[str, Any]:
    return {
        "answer": wording.answer(classes),
        "caption": "Probability of each class for the slide as a whole. A class that the model was not measured for is "
        "never the answer.",
        "heading": ["Class", "Measured for", "Probability"],
        "rows": [
            [each.color, each.code.display, "yes" if each.supported else "no", wording.probability(each.probability)]
            for each in sorted(classes.classes, key=lambda each: each.probability, reverse=True)
        ],
        "weights": wording.weights(classes),
        "tiles-caption": "Position of the tile's top left corner, in micrometres from the slide image's top left "
        "corner.",
        "tiles-heading": ["Tile", "x, µm", "y, µm", "Side, µm", "Weight, of the greatest", "Share of the weights, %"],
        "tiles": [
            [
                str(rank),
                f"{tile.x_um:.0f}",
                f"{tile.y_um:.0f}",
                f"{tile.size_um:.0f}",
                wording.probability(tile.attention),
                wording.percent(tile.share, digits=2),
            ]
            for rank, tile in enumerate(classes.top_tiles, 1)
        ],
        "explained": _explained(classes, classes.explanation) if classes.explanation else None,
    }


def _explained(classes: SlideClassification, explanation: Explanation) -> dict[str, Any]:
    rows = [explaining.importance_row(each) for each in explanation.objects]
    return {
        "title": explaining.TITLE,
        "caption": explaining.importance_caption(classes, explanation),
        "heading": list(explaining.IMPORTANCE_HEADING),
        "rows": rows,
        "stressed": _stressed(rows),
        "biomarkers-caption": explaining.biomarker_caption(explanation),
        "biomarkers-heading": explaining.biomarker_heading(classes),
        "biomarkers": [explaining.biomarker_row(each, classes) for each in explanation.objects],
    }


def _segmented(report: Report, result: SegmentationResult) -> dict[str, Any]:
    prompts = wording.prompt_rows(report, result)
    return {
        "prompts-caption": wording.SEGMENTS_CAPTION,
        "prompts-heading": list(wording.PROMPT_HEADING),
        "prompts": prompts,
        "stressed": _stressed(prompts),
        "caption": wording.segments_caption(result),
        "heading": list(wording.SEGMENT_HEADING),
        "rows": [[each.color, *wording.segment_row(each)] for each in wording.found(result)],
        "nothing": wording.nothing_found(report, result),
        "objects-caption": wording.OBJECTS_CAPTION,
        "objects-heading": list(wording.OBJECT_HEADING),
        "objects": wording.object_rows(result),
    }


def _screened(result: ScreeningResult) -> dict[str, Any]:
    rows = screened_words.class_rows(result)
    return {
        "said": [_said(screened_words.call_words(result)), _said(screened_words.adequacy_words(result))],
        "caption": screened_words.caption(result),
        "heading": list(screened_words.HEADING),
        "rows": [[screened_words.color(each.index), *row] for each, row in zip(result.classes, rows, strict=True)],
        "stressed": _stressed(rows),
        "nothing": screened_words.NOTHING_FOUND,
        "outside": screened_words.outside_labels(result),
        "adaptation-title": screened_words.ADAPTATION_TITLE,
        "adaptation": [list(fact) for fact in screened_words.adaptation_facts(result)],
        "gallery-title": screened_words.GALLERY_TITLE,
        "gallery-caption": screened_words.GALLERY_CAPTION,
        "gallery-heading": list(screened_words.GALLERY_HEADING),
        "gallery": screened_words.gallery_rows(result),
    }


def _said(said: screened_words.Said | None) -> dict[str, Any] | None:
    return None if said is None else {"head": said.head, "rest": said.rest, "given": said.given}


def _stressed(rows: list[list[str]]) -> list[str]:
    return [cell for row in rows for cell in row if wording.stressed(cell)]


def _tiles(tissue: TissueClass) -> list[list[str]]:
    return [
        [
            tissue.color,
            tissue.code.display,
            f"{tile.x_um:.0f}",
            f"{tile.y_um:.0f}",
            f"{tile.size_um:.0f}",
            wording.probability(tile.probability),
        ]
        for tile in tissue.evidence
    ]
