"""A cervical slide as it was read: every encoding says the same of it (DESIGN.md law 1)."""

import html
import json
import re
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom
import jsonschema
import numpy as np
import pydicom
import pytest

from gateway.domain.bethesda import AGC, CLASSES, HSIL, NAMES
from gateway.domain.report import Finding, FindingKind, Report, Signature
from gateway.domain.screened import ScreeningResult
from gateway.domain.tables import finding_code
from gateway.operations.errors import PathserveError
from gateway.reports import (
    DICOM,
    SlideSource,
    cell_map,
    from_json,
    picture,
    report_schema,
    screened_words,
    thumbnail_jpeg,
    to_json,
    wording,
    write_revision,
)
from gateway.reports.cells_ann import write_cell_annotations
from gateway.reports.geojson import write_geojson
from gateway.reports.outputs import own_outputs_replaced
from tests.reports.conftest import encoded, reading_of
from tests.reports.drawn import POOR
from tests.reports.pdf_text import pages
from tests.reports.screened import (
    abnormal,
    both,
    cells_of,
    exploratory,
    negative,
    no_cells,
    reached,
    screened,
    source_with,
    unnamed,
    unsatisfactory,
    withheld,
)
from tests.reports.test_consistency import DIAGNOSIS, check_common, diagnosis_in, html_rows, sr_groups
from tests.support.dciodvfy import needs_dciodvfy, validate

KINDS = (abnormal, both, negative, withheld, unnamed, unsatisfactory, reached, no_cells, exploratory)
CATEGORY, ADEQUACY = ("19762-4", "LN"), ("19764-0", "LN")
OF_CLASSES = {
    "probabilities": "probability",
    "probabilities_unadapted": "probability_unadapted",
    "logits": "logit",
    "logits_unadapted": "logit_unadapted",
}
"""Members of a case by class, and the field of a class that each repeats."""
PICTURES = ("thumbnail-1.jpg", "cell-map-1.png")


@dataclass(frozen=True)
class Written:
    report: Report
    source: SlideSource
    files: dict[str, bytes]

    @property
    def result(self) -> ScreeningResult:
        [result] = self.report.screenings
        return result


def write(image: pydicom.Dataset, kind: Callable[..., ScreeningResult]) -> Written:
    report, source = screened(image, kind(reading_of(image)))
    [result] = report.screenings
    grey = np.full((80, 60, 3), 220, np.uint8)
    assert source.cells is not None
    cell = thumbnail_jpeg(grey)
    level_px = int(image.TotalPixelMatrixColumns), int(image.TotalPixelMatrixRows)
    data = dict(zip(PICTURES, (cell, cell_map(grey, level_px, source.cells)), strict=True))
    data |= {f"cell-1-{rank}.jpg": cell for rank, _ in enumerate(result.gallery, 1)}
    roles = ["thumbnail", "cell-map", *(f"cell-{rank}" for rank, _ in enumerate(result.gallery, 1))]
    shown = tuple(
        picture(role, file, made, result.series) for role, (file, made) in zip(roles, data.items(), strict=True)
    )
    named, files = encoded(replace(report, pictures=shown), [source], data)
    return Written(named, source, files)


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def written(request: pytest.FixtureRequest, image: pydicom.Dataset) -> Written:
    return write(image, request.param)


@pytest.fixture(scope="module")
def named_twice(image: pydicom.Dataset) -> Written:
    return write(image, both)


@pytest.fixture(scope="module")
def outside(image: pydicom.Dataset) -> Written:
    return write(image, exploratory)


def items(container: pydicom.Dataset) -> list[pydicom.Dataset]:
    """Every content item of a structured report."""
    below = container.get("ContentSequence") or []
    return [found for item in below for found in (item, *items(item))]


def name_of(item: pydicom.Dataset) -> tuple[str, str]:
    code = item.ConceptNameCodeSequence[0]
    return code.get("CodeValue") or code.LongCodeValue, code.CodingSchemeDesignator


def values_of(document: pydicom.Dataset, name: tuple[str, str]) -> list[str]:
    codes = [
        item.ConceptCodeSequence[0] for item in items(document) if item.ValueType == "CODE" and name_of(item) == name
    ]
    return [code.get("CodeValue") or code.LongCodeValue for code in codes]


def own(code: str) -> tuple[str, str]:
    return code, "99PATHSERVE"


def sr_of(written: Written) -> pydicom.Dataset:
    return pydicom.dcmread(BytesIO(written.files["report.sr.dcm"]))


def test_files(written: Written) -> None:
    drawn = ["cells-1.pm.dcm", "cells-1.ann.dcm", "cells-1.geojson"]
    if not sum(written.result.detected):
        drawn.remove("cells-1.ann.dcm")
    documents = ["report.html", "report.pdf", "report.sr.dcm", "report.pdf.dcm", "report.ko.dcm"]
    assert [item.file for item in written.report.objects] == [*drawn, *documents]
    assert {"report.json", *PICTURES, *drawn, *documents} <= set(written.files)
    for item in written.report.objects:
        if item.media_type == DICOM:
            check_common(written.report, item, written.files[item.file])
    listed = {
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for item in pydicom.dcmread(BytesIO(written.files["report.ko.dcm"])).ContentSequence
        if "ReferencedSOPSequence" in item
    }
    for file in (name for name in written.files if name.endswith(".dcm") and name != "report.ko.dcm"):
        assert pydicom.dcmread(BytesIO(written.files[file]), stop_before_pixels=True).SOPInstanceUID in listed


def test_json(written: Written) -> None:
    document, result = json.loads(written.files["report.json"]), written.result
    assert from_json(written.files["report.json"]) == written.report
    jsonschema.validate(document, report_schema())
    category = result.category
    if category is None:
        assert document["category"] is None
    else:
        label = category.code.display if result.exploratory else NAMES[category.index]
        assert document["category"] == {"code": category.code.code, "scheme": category.code.scheme, "label": label}
    if result.classes:
        for member, field in OF_CLASSES.items():
            assert document[member] == {NAMES[each.index]: getattr(each, field) for each in result.classes}
            assert list(document[member]) == ["NILM", "ASC-US", "LSIL", "ASC-H", "HSIL", "SCC", "AGC"]
    else:
        assert [document[member] for member in OF_CLASSES] == [None] * 4
    assert document["operating_point"] == {"name": result.operating_point, "abnormal_from": result.abnormal_from}
    assert document["adaptation"]["digest"] == result.adaptation.digest
    assert document["adaptation"]["features_mapped"] is result.adaptation.features_mapped
    assert document["adequacy"]["code"] == result.adequacy.code.code
    assert [each["code"] for each in document["adequacy"]["reasons"]] == [code.code for code in result.adequacy.reasons]
    assert document["screened_series"] == document["screenings"][0]["series"] == result.series


def test_structured_report_has_one_category_and_probabilities_apart_from_it(written: Written) -> None:
    document, result = sr_of(written), written.result
    category = result.category
    assert values_of(document, CATEGORY) == ([] if category is None else [category.code.code])
    assert values_of(document, own("slide-category")) == ([] if category is None else [category.code.code])
    beside = [each.code.code for number in result.categories[1:] for each in result.classes if each.index == number]
    assert values_of(document, own("category-beside")) == beside
    assert values_of(document, ADEQUACY) == values_of(document, own("slide-adequacy")) == [result.adequacy.code.code]
    # Of the case and of the slide.
    assert values_of(document, own("withheld")) == [code.code for code in result.withheld] * 2
    assert values_of(document, own("adequacy-reason")) == [code.code for code in result.adequacy.reasons]
    bethesda = {entry.code.code for entry in CLASSES}
    called = {name_of(item) for item in items(document) if item.ValueType == "CODE" and bethesda & set(code_of(item))}
    assert called <= {
        CATEGORY, own("slide-category"), own("category-beside"), own("detected-as"), own("contributes-to")
    }  # fmt: skip
    groups = sr_groups(document)
    for role, field in (("probabilities", "probability"), ("probabilities-unadapted", "probability_unadapted")):
        group = groups.get(f"slide-1/{role}", {})
        assert {each.code.code: getattr(each, field) for each in result.classes} == {
            name: value for name, value in group.items() if f"{name}/unit" in group
        }
        assert all(group[f"{each.code.code}/unit"] == "1" for each in result.classes)


def code_of(item: pydicom.Dataset) -> list[str]:
    code = item.ConceptCodeSequence[0]
    return [code.get("CodeValue") or code.LongCodeValue]


def test_structured_report_has_adequacy_cells_and_adaptation(written: Written) -> None:
    document, result = sr_of(written), written.result
    groups = sr_groups(document)
    adequacy = groups["slide-1/adequacy"]
    assert adequacy["code"] == (result.adequacy.code.code, "SCT")
    assert (adequacy["squamous-cells"], adequacy["least-cells"]) == (
        result.adequacy.squamous_cells, result.adequacy.least_cells,
    )  # fmt: skip
    assert adequacy["obscured-share"] == result.adequacy.obscured_share * 100
    assert adequacy["unfocused-share"] == result.adequacy.blurred_share * 100
    if result.classes:
        counted = groups["slide-1/cells"]
        codes = [each.code.code for each in result.classes[1:]]
        assert [counted[code] for code in codes] == list(result.detected)
        assert counted["bag-cells"] == result.bag
    shown = {each.index: each.code for each in result.classes}
    cells = {role: group for role, group in groups.items() if role.startswith("slide-1/cell-")}
    assert list(cells) == [f"slide-1/cell-{rank}" for rank, _ in enumerate(result.gallery, 1)]
    for group, cell in zip(cells.values(), result.gallery, strict=True):
        assert (group["cell-score"], group["contribution"]) == (cell.score, cell.contribution)
        assert group["detected-as"] == shown[cell.index].display
        assert group["contributes-to"] == shown[cell.towards].display
    said = document.to_json()
    state = result.adaptation
    for words in (
        f"scaled by {screened_words.scaled_by(result, written.report.slides[0])}",
        f"operating point {result.operating_point}: that of the model's source, not the site's own",
        f"adaptation to site {state.site}, version {state.version}, verdict {state.verdict}",
        f"sha256 {state.digest}, signed by {state.signed_by or 'nobody'}",
        *([f"operating point {result.operating_point}: 1 - probability of"] if result.classes else []),
    ):
        assert json.dumps(words)[1:-1] in said


def test_cells_lie_in_the_structured_report_where_they_lie_on_the_slide(
    image: pydicom.Dataset, named_twice: Written
) -> None:
    content = highdicom.sr.srread(BytesIO(named_twice.files["report.sr.dcm"])).content
    groups = content.get_planar_roi_measurement_groups()
    assert len(groups) == len(named_twice.result.gallery)
    origin = image.TotalPixelMatrixOriginSequence[0]
    for group, cell in zip(groups, named_twice.result.gallery, strict=True):
        corners_mm = group.roi.value
        sides_um = np.linalg.norm(np.diff(corners_mm, axis=0), axis=1) * 1000
        assert sides_um == pytest.approx([cell.width_um, cell.height_um] * 2, abs=0.01)
        middle_mm = (corners_mm[0] + corners_mm[2]) / 2
        away_um = 1000 * np.hypot(
            middle_mm[0] - float(origin.XOffsetInSlideCoordinateSystem),
            middle_mm[1] - float(origin.YOffsetInSlideCoordinateSystem),
        )
        assert away_um == pytest.approx(np.hypot(cell.x_um, cell.y_um), abs=0.5)  # the origin is a pixel's centre


def test_pages(written: Written) -> None:
    result = written.result
    text = "".join(pages(written.files["report.pdf"]))
    source = written.files["report.html"].decode()
    page = " ".join(html.unescape(re.sub("<[^>]*>", " ", source)).split())
    case = screened_words.case_words(written.report)
    assert case is not None
    told = (case, screened_words.call_words(result), screened_words.adequacy_words(result))
    sentences = [
        *(f"{said.head} {said.rest}" for said in told),
        screened_words.outside_labels(result),
        screened_words.caption(result) if result.classes else screened_words.NOTHING_FOUND,
        f"Scaled by {screened_words.scaled_by(result, written.report.slides[0])}",
        *(f"{label} {value}" for label, value in screened_words.adaptation_facts(result)),
        *([screened_words.GALLERY_CAPTION] if result.gallery else []),
        *(title for _, title, _ in screened_words.gallery_pictures(result)),
    ]  # fmt: skip
    for sentence in sentences:
        assert sentence in page
        assert "".join(sentence.split()) in text
    rows = html_rows(source, 1)
    assert [rows[str(each.index)] for each in result.classes] == screened_words.class_rows(result)
    for row in (*screened_words.class_rows(result), *screened_words.gallery_rows(result)):
        assert "".join("".join(row).split()) in text
    assert source.count('data-cell="') == len(result.gallery)
    assert "No picture at hand" not in page
    alternatives = re.findall(r'<img [^>]*alt="([^"]+)"', source)
    assert len(set(alternatives)) == 2 + len(result.gallery)


def test_a_withheld_category_is_said_first_and_why(written: Written) -> None:
    result = written.result
    source = written.files["report.html"].decode()
    first = re.search(r'<div class="(call|banner)" role="note">\s*<p><strong>(?!Research|Exploratory)([^<]*)', source)
    assert first is not None
    assert source.index(first[0]) < source.index('<dl class="identity">')
    if result.category is not None:
        assert first[1] == "call"
        return
    abnormal_too = bool(result.abnormal)
    assert first.groups() == (
        "banner", "Abnormal, but no category is given." if abnormal_too else "No category is given.",
    )  # fmt: skip
    reasons = [code.display for code in (*result.withheld, *result.adequacy.reasons)]
    assert reasons
    assert all(reason in source[: source.index('<dl class="identity">')] for reason in reasons)


def test_whose_operating_point_it_is_and_what_the_scale_was(image: pydicom.Dataset) -> None:
    slide = reading_of(image)
    for name, whose in (("sensitivity 95 % at stain A", "the model's source"), ("order", "the order")):
        facts = dict(screened_words.adaptation_facts(abnormal(slide, operating_point=name)))
        assert facts["Operating point"] == f"“{name}”, that of {whose}, not the site's own"
    for level_mpp, said in (
        (0.5, "1.333, from 0.500 to 0.375 µm per pixel"),
        (0.25, "0.667, from 0.250 to 0.375 µm per pixel"),
    ):
        result = abnormal(slide, scale=level_mpp / 0.375)
        assert screened_words.scaled_by(result, replace(slide, level_mpp=level_mpp)) == said


def test_an_unsatisfactory_slide_that_reaches_the_operating_point_is_told_in_every_encoding(
    image: pydicom.Dataset,
) -> None:
    slide = reading_of(image)
    code = finding_code("unsatisfactory-yet-reached")
    told = Finding(kind=FindingKind.CONFIDENCE, code=code, text="Abnormal cells may be there.", series=slide.series)
    report, source = screened(image, reached(slide), [told])
    _, files = encoded(report, [source])
    assert code.code in [each["code"]["code"] for each in json.loads(files["report.json"])["findings"]]
    for text in (files["report.html"].decode(), "".join(pages(files["report.pdf"]))):
        assert "".join(told.text.split()) in "".join(html.unescape(text).split())
    document = pydicom.dcmread(BytesIO(files["report.sr.dcm"]))
    assert code.code in [value for item in items(document) if item.ValueType == "CODE" for value in code_of(item)]
    assert told.text in document.to_json()


def test_shares_are_said_to_be_of_the_stained_area(image: pydicom.Dataset) -> None:
    said = screened_words.adequacy_words(abnormal(reading_of(image)))
    assert said.rest.endswith("of the stained area 6.2 % is obscured, 3.1 % is out of focus.")


def test_both_classes_are_named(named_twice: Written) -> None:
    said = screened_words.call_words(named_twice.result)
    assert said.head == "HSIL: High-grade squamous intraepithelial lesion."
    assert said.rest.startswith("Beside it AGC: Atypical glandular cells.")
    assert json.loads(named_twice.files["report.json"])["screenings"][0]["categories"] == [HSIL, AGC]


def test_every_cell_is_annotated(written: Written) -> None:
    result, cells = written.result, written.source.cells
    assert cells is not None
    if not sum(result.detected):
        assert "cells-1.ann.dcm" not in written.files
        return
    document = highdicom.ann.annread(BytesIO(written.files["cells-1.ann.dcm"]))
    assert document.ContentLabel == "CELLS"
    shown = {each.index: each.code for each in result.classes}
    groups = document.get_annotation_groups()
    assert [group.label for group in groups] == [shown[number].display for number in range(1, 7)]
    limit = np.array([written.source.image.TotalPixelMatrixColumns, written.source.image.TotalPixelMatrixRows] * 2)
    for number, group, count in zip(range(1, 7), groups, result.detected, strict=True):
        assert group.graphic_type.value == "RECTANGLE"
        assert group.number_of_annotations == count
        assert group.annotated_property_type.value == shown[number].code
        assert ("Exploratory" in group.AnnotationGroupDescription) == result.exploratory
        of_class = cells.classes_N == number
        boxes_K4 = np.clip(cells.boxes_N4[of_class], 0, limit)
        found_K4 = np.array([[*corners.min(0), *corners.max(0)] for corners in group.get_graphic_data("2D")])
        assert found_K4 == pytest.approx(boxes_K4, abs=1e-3)
        names, scores_K1, units = group.get_measurements()
        assert [(name.value, unit.value) for name, unit in zip(names, units, strict=True)] == [("cell-score", "1")]
        assert scores_K1[:, 0].tolist() == cells.scores_N[of_class].tolist()


def test_every_cell_is_in_geojson(written: Written) -> None:
    result, cells = written.result, written.source.cells
    assert cells is not None
    collection = json.loads(written.files["cells-1.geojson"])
    assert collection["pathserve"]["exploratory"] == result.exploratory
    features = collection["features"]
    assert len({feature["id"] for feature in features}) == len(features) == sum(result.detected)
    shown = {each.index: each.code.display for each in result.classes}
    for feature, number, score, box in zip(
        features, cells.classes_N.tolist(), cells.scores_N.tolist(), cells.boxes_N4, strict=True
    ):
        properties = feature["properties"]
        assert properties["objectType"] == "detection"
        assert properties["classification"]["name"] == shown[number]
        assert properties["measurements"] == {"Score": score}
        assert properties["name"].endswith("(exploratory)") == result.exploratory
        [ring] = feature["geometry"]["coordinates"]
        assert ring[0] == ring[-1] == pytest.approx(np.maximum(box[:2], 0), abs=1e-2)
        assert len(ring) == 5


def test_heat_map_has_the_greatest_score_of_each_tile(written: Written) -> None:
    cells = written.source.cells
    assert cells is not None
    heat = pydicom.dcmread(BytesIO(written.files["cells-1.pm.dcm"]))
    assert heat.ContentLabel == "CELL_SCORE"
    mapping = heat.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0].CodeValue == "cell-score"
    values = np.unique(np.frombuffer(heat.PixelData, "<u2"))
    read = values[values > 0] / 65535  # 0 is what was not read; where no cell is, the least that is not 0
    assert read == pytest.approx(np.unique(cells.highest_M.astype(np.float64)), abs=2e-5)


@pytest.mark.validators
@needs_dciodvfy
def test_validator_finds_no_error(written: Written, tmp_path: Path) -> None:
    for file, data in written.files.items():
        if file.endswith(".dcm"):
            (tmp_path / file).write_bytes(data)
            assert validate(tmp_path / file) == [], file


@pytest.mark.validators
@needs_dciodvfy
@pytest.mark.parametrize("name", POOR)
def test_a_poor_header_still_gives_a_report_and_annotations(name: str, image: pydicom.Dataset, tmp_path: Path) -> None:
    poor = pydicom.Dataset.from_json(image.to_json())
    poor.file_meta = image.file_meta
    POOR[name](poor)
    report, source = screened(image, abnormal(reading_of(image)))
    _, files = encoded(report, [replace(source, levels=(poor,))])
    for file in ("report.sr.dcm", "cells-1.ann.dcm"):
        (tmp_path / file).write_bytes(files[file])
        assert validate(tmp_path / file) == []
    regions = [
        item for item in items(pydicom.dcmread(tmp_path / "report.sr.dcm")) if item.ValueType.startswith("SCOORD")
    ]
    placed = name not in ("no frame of reference", "odd orientation")
    assert {item.ValueType for item in regions} == {"SCOORD3D" if placed else "SCOORD"}


def texts(value: object) -> list[str]:
    """Every text in JSON that is no member's name: the members are those of every report."""
    if isinstance(value, dict):
        return [text for each in value.values() for text in texts(each)]
    if isinstance(value, list):
        return [text for each in value for text in texts(each)]
    return [value] if isinstance(value, str) else []


def test_exploratory_names_no_diagnosis(outside: Written, named_twice: Written) -> None:
    said = {**outside.files, "report.json": "\n".join(texts(json.loads(outside.files["report.json"]))).encode()}
    assert [name for name, data in said.items() if diagnosis_in(data)] == []
    assert DIAGNOSIS.search("".join(pages(outside.files["report.pdf"]))) is None
    assert not [name for name in NAMES if name in outside.files["report.html"].decode()]
    for file in ("report.html", "report.sr.dcm", "cells-1.ann.dcm", "cells-1.geojson"):
        assert diagnosis_in(named_twice.files[file])


def test_the_same_report_gives_the_same_bytes(image: pydicom.Dataset, named_twice: Written) -> None:
    assert write(image, both).files == named_twice.files


def test_a_report_of_version_1_5_is_read(named_twice: Written) -> None:
    document = json.loads(named_twice.files["report.json"])
    new = ["screenings", "category", *OF_CLASSES, "adaptation", "operating_point", "adequacy", "screened_series"]
    for member in new:
        del document[member]
    document["schema_version"] = "1.5"
    read = from_json(json.dumps(document).encode())
    assert read == replace(named_twice.report, screenings=())
    again = json.loads(to_json(read))
    jsonschema.validate(again, report_schema())
    assert [again[member] for member in new] == [[], *[None] * (len(new) - 1)]


def of_1_7(written: Written) -> tuple[dict[str, Any], ScreeningResult]:
    """The report as the release before the logits wrote it, which did not say whether features were mapped, and what is
    read of its slide."""
    document = json.loads(written.files["report.json"])
    document["schema_version"] = "1.7"
    del document["logits"], document["logits_unadapted"]
    for said in (document, document["screenings"][0]):
        del said["adaptation"]["features_mapped"]
    for each in document["screenings"][0]["classes"]:
        del each["logit"], each["logit_unadapted"]
    classes = (replace(each, logit=None, logit_unadapted=None) for each in written.result.classes)
    adaptation = replace(written.result.adaptation, features_mapped=None)
    return document, replace(written.result, classes=tuple(classes), adaptation=adaptation)


def test_a_report_of_version_1_7_is_read_and_says_no_logits(written: Written) -> None:
    document, due = of_1_7(written)
    assert not jsonschema.Draft202012Validator(report_schema()).is_valid(document)
    read = from_json(json.dumps(document).encode())
    assert read == replace(written.report, screenings=(due,))
    again = json.loads(to_json(read))
    jsonschema.validate(again, report_schema())
    assert (again["schema_version"], again["logits"], again["logits_unadapted"]) == ("1.8", None, None)
    assert again["adaptation"]["features_mapped"] is None
    assert again["probabilities"] == document["probabilities"]


def test_a_report_of_version_1_6_is_read_and_says_no_scale(named_twice: Written) -> None:
    document, due = of_1_7(named_twice)
    del document["screenings"][0]["scale"]
    document["schema_version"] = "1.6"
    read = from_json(json.dumps(document).encode())
    assert read == replace(named_twice.report, screenings=(replace(due, scale=None),))
    jsonschema.validate(json.loads(to_json(read)), report_schema())
    _, files = encoded(read, [named_twice.source])
    assert "Scaled by" not in files["report.html"].decode()
    assert "Scaledby" not in "".join(pages(files["report.pdf"]))
    assert "scaled by" not in pydicom.dcmread(BytesIO(files["report.sr.dcm"])).to_json()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("screenings", 0, "scale"), 0),
        (("category",), "HSIL"),
        (("category", "label"), None),
        (("probabilities", "NILM"), 1.5),
        (("probabilities", "Adenocarcinoma"), 0.1),
        (("logits", "HSIL"), None),
        (("logits", "HSIL"), "2.5"),
        (("logits_unadapted", "Adenocarcinoma"), 0.1),
        (("logits_unadapted",), {}),
        (("screenings", 0, "classes", 0, "logit"), "2.5"),
        (("adequacy", "code"), 1),
        (("operating_point", "abnormal_from"), 2),
        (("adaptation", "digest"), "abc"),
        (("adaptation", "features_mapped"), "yes"),
        (("screenings", 0, "classes", 0, "index"), 7),
        (("screenings", 0, "gallery", 0, "width_um"), 0),
    ],
)
def test_schema_refuses(path: tuple[str | int, ...], value: object, named_twice: Written) -> None:
    document = json.loads(named_twice.files["report.json"])
    part = document
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    assert not jsonschema.Draft202012Validator(report_schema()).is_valid(document)


def test_a_signature_leaves_what_was_read_as_it_is(named_twice: Written, tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    for folder in (first, second):
        folder.mkdir()
    for name, data in named_twice.files.items():
        (first / name).write_bytes(data)
    by = Signature(by="person:jane", name="Jane Doe", organisation="cytology", time=named_twice.report.issued)
    write_revision(second, named_twice.report.signed(by), [named_twice.source.image], [first])
    old, new = (json.loads((folder / "cells-1.geojson").read_text()) for folder in (first, second))
    assert new["features"] == old["features"]
    assert (old["pathserve"]["revision"], new["pathserve"]["revision"]) == (1, 2)
    signed = json.loads((second / "report.json").read_text())
    assert signed["category"]["label"] == "HSIL"
    assert not (second / "cells-1.ann.dcm").exists()
    assert values_of(pydicom.dcmread(second / "report.sr.dcm"), CATEGORY) == ["62061000119107"]


def test_our_earlier_files_go_and_others_stay(named_twice: Written, tmp_path: Path) -> None:
    for name in (*named_twice.files, "cells.ann.dcm", "cell-1.jpg"):
        (tmp_path / name).write_bytes(b"x")
    with own_outputs_replaced(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {"cells.ann.dcm", "cell-1.jpg"}


def test_a_hundred_thousand_cells_are_written_a_part_at_a_time(image: pydicom.Dataset, tmp_path: Path) -> None:
    slide = reading_of(image)
    report, _ = screened(image, abnormal(slide))
    many = source_with(image, cells_of(slide, (60_000, 30_000, 5000, 4900, 30, 70)))
    few = source_with(image, cells_of(slide, (3000, 1500, 250, 245, 2, 3)))
    tracemalloc.start()
    try:
        write_cell_annotations(tmp_path / "many.ann.dcm", report, many)
        _, annotating = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        write_geojson(tmp_path / "few.geojson", report, few)
        _, drawing = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    groups = highdicom.ann.annread(tmp_path / "many.ann.dcm").get_annotation_groups()
    assert sum(group.number_of_annotations for group in groups) == 100_000
    # 32 bytes a cell in the file; numbers as Python objects would be over 100.
    assert annotating < 10e6
    # A file of 2 MB, of which a part of a thousand cells and more is held.
    assert drawing < 6e6


def test_a_class_that_the_report_lacks_is_no_cell_s(image: pydicom.Dataset, tmp_path: Path) -> None:
    slide = reading_of(image)
    report, _ = screened(image, no_cells(slide))
    with pytest.raises(PathserveError, match="does not have"):
        write_cell_annotations(tmp_path / "x.ann.dcm", report, source_with(image, cells_of(slide)))


def test_nothing_is_drawn_on_a_slide_that_is_none_of_the_model_s(image: pydicom.Dataset) -> None:
    result = replace(exploratory(reading_of(image)), gallery=())
    report, source = screened(image, result)
    thumbnail = thumbnail_jpeg(np.full((80, 60, 3), 220, np.uint8))
    report = replace(report, pictures=(picture("thumbnail", PICTURES[0], thumbnail, result.series),))
    named, files = encoded(report, [replace(source, cells=None)], {PICTURES[0]: thumbnail})
    assert [item.file for item in named.objects] == ["report.html", "report.pdf", "report.sr.dcm"]
    page = files["report.html"].decode()
    assert page.count("<img ") == 1
    assert "No picture at hand" not in page
    assert "Cells that were found:" not in page
    assert "Cellsthatwerefound:" not in "".join(pages(files["report.pdf"]))
    assert screened_words.class_rows(result)[1][0] == "Cell pattern 2"
    assert "Cell pattern 2" in page


def test_a_slide_without_anything_to_read_has_no_heat_map(image: pydicom.Dataset) -> None:
    slide = reading_of(image)
    report, source = screened(image, no_cells(slide))
    assert source.cells is not None
    none = source.cells.rows_M[:0]
    empty = replace(source.cells, rows_M=none, columns_M=none, highest_M=source.cells.highest_M[:0])
    named, files = encoded(report, [replace(source, cells=empty)])
    assert [item.file for item in named.objects if item.series] == ["cells-1.geojson"]
    assert json.loads(files["cells-1.geojson"])["features"] == []


def test_other_protocols_have_no_category(report: Report) -> None:
    document = json.loads(to_json(report))
    assert document["category"] is document["probabilities"] is document["adequacy"] is None
    assert screened_words.case_words(report) is None


def test_the_protocol_has_a_name(named_twice: Written) -> None:
    assert wording.document_title(named_twice.report) == "Cervical screening, research use"
