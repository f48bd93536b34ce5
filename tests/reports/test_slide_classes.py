"""A slide that was classified as a whole: every encoding says the same of it (DESIGN.md law 1)."""

import html
import json
import re
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import jsonschema
import numpy as np
import pydicom
import pytest
from PIL import Image

from gateway.domain.codes import PRIVATE_SCHEME, Code
from gateway.domain.explanation import ClassChange, ExplainedObject, Explanation, Importance, Interval
from gateway.domain.report import (
    BoxPx,
    EvidenceSource,
    ObjectKind,
    Report,
    SlideClass,
    SlideClassification,
    SlideQuality,
    SlideReading,
    StainFigures,
    TopTile,
)
from gateway.reports import (
    DICOM,
    AttentionMap,
    SlideSource,
    attention_map,
    explaining,
    from_json,
    picture,
    report_schema,
    thumbnail_jpeg,
    to_json,
    wording,
)
from tests.reports.conftest import encoded, reading_of, report_of
from tests.reports.pdf_text import pages
from tests.reports.test_consistency import DIAGNOSIS, check_common, diagnosis_in, sr_groups
from tests.support.dciodvfy import needs_dciodvfy, validate

LABELS = (("Hyperplastic polyp", 0.07), ("Adenocarcinoma", 0.81), ("Other", 0.12))
WEIGHTS = (0.4, 0.3, 0.2, 0.1)
CHANGES = (-1e-5, 0.0, 0.25)


def _found(index: int, ratio: float | None) -> ExplainedObject:
    triple = f"nuclei-level object{index} in colon pathology"
    importance = None
    if ratio is not None:
        importance = Importance(
            ratio=ratio,
            control=Interval(mean=1.0625, low=0.9375, high=1.25),
            exceeds=ratio > 1.25,
            changes=tuple(ClassChange(index=n, change=change, control=0.0) for n, change in enumerate(CHANGES)),
        )
    return ExplainedObject(
        index=index,
        prompt=f"object {index}",
        triple=triple,
        category=Code("91723000", "SCT", "Anatomical Structure"),
        code=Code("84640000", "SCT", "Nucleus"),
        supported=index != 1,
        val_dice=0.75,
        presence=0.5,
        tiles=3 if importance else 0,
        area_share=0.125 if importance else 0.0,
        weight_share=0.25 if importance else 0.0,
        importance=importance,
    )


EXPLANATION = Explanation(
    target=1,
    loss=0.21072,
    tiles=4,
    weight_share=1.0,
    repeats=20,
    blur_um=8.0,
    objects=(_found(2, 3.5), _found(0, 1.125), _found(1, None)),
)


def classified(slide: SlideReading, *, exploratory: bool = False, answered: bool = True) -> SlideClassification:
    assert slide.grid is not None
    assert slide.level_mpp is not None
    return SlideClassification(
        series=slide.series,
        exploratory=exploratory,
        classes=tuple(
            SlideClass(
                index=index,
                code=Code(f"pattern-{index}", PRIVATE_SCHEME, f"Slide pattern {index}")
                if exploratory
                else Code(f"class-{index}", PRIVATE_SCHEME, name),
                color=f"#0072b{index}",
                supported=index < 2,
                probability=probability,
            )
            for index, (name, probability) in enumerate(LABELS)
        ),
        answer=1 if answered else None,
        operating_point="answer",
        min_probability=0.6 if answered else 0.9,
        tiles=6,
        bag=4,
        evidence=EvidenceSource.ATTENTION if answered else EvidenceSource.OCCLUSION,
        top_tiles=tuple(
            TopTile(
                sop_instance_uid=slide.sop_instance_uids[0],
                box=BoxPx(x_px=200 * number, y_px=200, width_px=200, height_px=200),
                x_um=200 * number * slide.level_mpp,
                y_um=200 * slide.level_mpp,
                size_um=slide.grid.tile_um,
                attention=weight / WEIGHTS[0],
                share=weight,
            )
            for number, weight in enumerate(WEIGHTS)
        ),
        explanation=EXPLANATION,
    )


def report_on(slide: SlideReading, result: SlideClassification) -> Report:
    seen = replace(
        slide,
        quality=SlideQuality(
            focus_p10=0.09,
            focus_median=0.146,
            focus_p90=0.21,
            blurred_share=0.031,
            saturation=0.49,
            brightness=0.46,
            pen_area_mm2=1.75,
        ),
        stain_figures=StainFigures(
            haematoxylin_od=0.371,
            eosin_od=0.332,
            haematoxylin=(0.55, 0.74, 0.39),
            eosin=(0.24, 0.89, 0.39),
            distance_deg=13.2,
        ),
    )
    report = report_of([seen], [])
    return replace(
        report,
        schema_version="1.8",
        protocol="slide-classification",
        slide_classes=(result,),
        exploratory=result.exploratory,
        order=replace(report.order, protocol="slide-classification"),
    )


def source_of(image: pydicom.Dataset, result: SlideClassification, *, drawn: bool = True) -> SlideSource:
    placed = AttentionMap(
        series=result.series,
        rows_N=np.ones(len(WEIGHTS), np.int32),
        columns_N=np.arange(len(WEIGHTS), dtype=np.int32),
        attention_N=np.array([tile.attention for tile in result.top_tiles], np.float32),
    )
    return SlideSource(
        series=image.SeriesInstanceUID,
        levels=(image,),
        instances=((image.SOPInstanceUID,),),
        read=0,
        tiles=None,
        attention=placed if drawn else None,
    )


@pytest.fixture(scope="module")
def inside(image: pydicom.Dataset) -> tuple[Report, SlideSource]:
    slide = reading_of(image)
    result = classified(slide)
    return report_on(slide, result), source_of(image, result)


@pytest.fixture(scope="module")
def outside(image: pydicom.Dataset) -> tuple[Report, SlideSource]:
    """Exploratory, without an answer, by occlusion."""
    slide = replace(reading_of(image), site=None)
    result = classified(slide, exploratory=True, answered=False)
    return report_on(slide, result), source_of(image, result)


@pytest.fixture(params=["inside", "outside"])
def case(request: pytest.FixtureRequest) -> tuple[Report, SlideSource]:
    found: tuple[Report, SlideSource] = request.getfixturevalue(request.param)
    return found


def test_all_encodings_say_the_same(case: tuple[Report, SlideSource]) -> None:
    report, source = case
    named, files = encoded(report, [source])
    [result] = report.slide_classes
    for item in named.objects:
        if item.media_type == DICOM:
            check_common(named, item, files[item.file])
    text = "".join(pages(files["report.pdf"]))
    page = html.unescape(re.sub("<[^>]*>", "", files["report.html"].decode()))
    document = pydicom.dcmread(BytesIO(files["report.sr.dcm"]))
    groups = sr_groups(document)
    whole = groups["slide-1/tissue"]

    for sentence in (wording.answer(result), wording.weights(result)):
        assert sentence in page
        assert "".join(sentence.split()) in text
    for label, figure in wording.how_seen(report.slides[0]):
        assert label in page
        assert figure in page
        assert "".join(f"{label}{figure}".split()) in text
    assert "Stain, optical density" in page

    assert [role for role in groups if "slide-class" in role] == [f"slide-1/slide-class-{n}" for n in range(3)]
    for each in result.classes:
        group = groups[f"slide-1/slide-class-{each.index}"]
        assert group["code"] == (each.code.code, PRIVATE_SCHEME)
        assert group["probability"] == each.probability
        row = (each.code.display, "yes" if each.supported else "no", wording.probability(each.probability))
        assert "".join("".join(row).split()) in text
        assert re.search(
            rf'data-class="{each.index}".*?{row[0]}.*?<td>{row[1]}</td>.*?{row[2]}', files["report.html"].decode()
        )
    assert (whole["tile-count"], whole["bag-tiles"]) == (result.tiles, result.bag)
    for rank, tile in enumerate(result.top_tiles, 1):
        group = groups[f"slide-1/top-tile-{rank}"]
        assert group["attention"] == tile.attention
        assert group["attention-share"] == tile.share * 100
        assert f"{rank}: {wording.percent(tile.share, digits=2)} % of the weights" in page
    explanation = result.explanation
    assert explanation is not None
    assert [role for role in groups if "/object-" in role] == [f"slide-1/object-{n}" for n in (3, 1, 2)]
    for sentence in (
        explaining.importance_caption(result, explanation),
        explaining.biomarker_caption(explanation),
        *(f"{heading}" for heading in (*explaining.IMPORTANCE_HEADING, *explaining.biomarker_heading(result))),
    ):
        assert sentence in page
        assert "".join(sentence.split()) in text
    assert "where chance alone puts 1 in 21 of" in explaining.importance_caption(result, explanation)
    for found in explanation.objects:
        for row in (explaining.importance_row(found), explaining.biomarker_row(found, result)):
            assert "".join("".join(row).split()) in text
            assert "\n".join(row) in page or "".join(row) in page
        group = groups[f"slide-1/object-{found.index + 1}"]
        assert group["code"] == ("84640000", "SCT")
        assert (group["explained-area"], group["explained-weight"]) == (
            found.area_share * 100,
            found.weight_share * 100,
        )
        # Of the explained tiles, never of the slide: what is not on them may be elsewhere.
        assert group["explained-found"] == ("Yes" if found.importance else "No")
        assert group["explained-score"] == found.presence
        assert not {"presence", "presence-score"} & group.keys()
        assert group.get("importance") == (found.importance.ratio if found.importance else None)
        assert group.get("imp-control-high") == (1.25 if found.importance else None)
    unknown = next(found for found in explanation.objects if not found.supported)
    assert explaining.importance_row(unknown) == [
        f"{unknown.triple} (not validated)", "measured, not validated: Dice 0.75", "not found", "–", "–",
    ]  # fmt: skip
    assert "<strong>measured, not validated: Dice 0.75</strong>" in files["report.html"].decode()
    assert explaining.biomarker_row(explanation.objects[0], result)[5:] == ["-<0.01", "0.00", "+25.00"]
    seen, stain = report.slides[0].quality, report.slides[0].stain_figures
    assert seen is not None
    assert stain is not None
    assert (whole["focus"], whole["blurred-share"]) == (seen.focus_median, seen.blurred_share * 100)
    assert (whole["saturation"], whole["brightness"]) == (seen.saturation, seen.brightness)
    assert whole["pen-area"] == seen.pen_area_mm2
    assert (whole["haematoxylin-od"], whole["eosin-od"]) == (stain.haematoxylin_od, stain.eosin_od)
    assert whole["stain-distance"] == stain.distance_deg
    said = document.to_json()
    assert not [code for code in ("52101004", "272519000") if code in said], "Present, Absent"
    answer = result.answered
    assert (answer.code.code if answer else "no-answer") in said
    assert f"from-{result.evidence.value}" in said
    assert f"probability >= {result.min_probability:g}" in said


def test_what_is_drawn_has_the_weights_of_the_report(case: tuple[Report, SlideSource]) -> None:
    report, source = case
    named, files = encoded(report, [source])
    names = {item.kind: item.file for item in named.objects if item.series is not None}
    assert names == {ObjectKind.PARAMETRIC_MAP: "slide-1.pm.dcm", ObjectKind.GEOJSON: "slide-1.geojson"}
    [result] = report.slide_classes

    heat = pydicom.dcmread(BytesIO(files["slide-1.pm.dcm"]))
    assert heat.ContentLabel == "ATTENTION"
    mapping = heat.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert mapping.LUTLabel == "Attention"
    values = np.unique(np.frombuffer(heat.PixelData, "<u2"))
    expected = sorted({tile.attention for tile in result.top_tiles})
    assert values[values > 0] / 65535 == pytest.approx(expected, abs=1e-5)

    collection = json.loads(files["slide-1.geojson"])
    assert collection["pathserve"]["exploratory"] == result.exploratory
    assert len(collection["features"]) == len(result.top_tiles)
    for feature, tile in zip(collection["features"], result.top_tiles, strict=True):
        [ring] = feature["geometry"]["coordinates"]
        assert ring[0] == ring[-1] == [tile.box.x_px, tile.box.y_px]
        assert ring[2] == [tile.box.x_px + 200, tile.box.y_px + 200]
        measured = feature["properties"]["measurements"]
        assert measured == {"Attention": tile.attention, "Share of the weights %": tile.share * 100}
        assert feature["properties"]["name"].endswith("(exploratory)") == result.exploratory
    assert len({feature["id"] for feature in collection["features"]}) == len(result.top_tiles)


def test_json_is_valid_and_comes_back(case: tuple[Report, SlideSource]) -> None:
    report, _ = case
    assert from_json(to_json(report)) == report
    jsonschema.validate(json.loads(to_json(report)), report_schema())


@pytest.mark.validators
@needs_dciodvfy
def test_validator_finds_no_error(case: tuple[Report, SlideSource], tmp_path: Path) -> None:
    report, source = case
    named, files = encoded(report, [source])
    for item in named.objects:
        if item.media_type == DICOM:
            (tmp_path / item.file).write_bytes(files[item.file])
            assert validate(tmp_path / item.file) == []


def test_exploratory_names_no_diagnosis(
    outside: tuple[Report, SlideSource], inside: tuple[Report, SlideSource]
) -> None:
    _, files = encoded(outside[0], [outside[1]])
    assert [name for name, data in files.items() if diagnosis_in(data)] == []
    assert DIAGNOSIS.search("".join(pages(files["report.pdf"]))) is None
    _, named = encoded(inside[0], [inside[1]])
    assert {name for name, data in named.items() if diagnosis_in(data)} == {
        "report.json", "report.html", "report.sr.dcm",
    }  # fmt: skip


def test_a_wrong_stain_leaves_the_structured_report_alone(image: pydicom.Dataset) -> None:
    slide = reading_of(image)
    result = classified(slide, exploratory=True)
    named, files = encoded(report_on(slide, result), [source_of(image, result, drawn=False)])
    assert [item.file for item in named.objects] == ["report.html", "report.pdf", "report.sr.dcm"]
    assert set(files) == {"report.json", *(item.file for item in named.objects)}


def test_a_slide_that_was_not_classified_says_so(image: pydicom.Dataset) -> None:
    slide = reading_of(image)
    report = replace(report_on(slide, classified(slide)), slide_classes=())
    _, files = encoded(report, [source_of(image, classified(slide), drawn=False)])
    assert "This slide was read; it has no result." in files["report.html"].decode()
    assert "Thisslidewasread;ithasnoresult." in "".join(pages(files["report.pdf"]))


def test_pages_show_the_map_and_the_tiles(inside: tuple[Report, SlideSource]) -> None:
    report, source = inside
    grid, series = report.slides[0].grid, source.series
    assert grid is not None
    thumbnail = np.full((297, 222, 3), 230, np.uint8)
    assert source.attention is not None
    drawn = attention_map(thumbnail, grid, source.attention, (2220, 2967))
    tile = thumbnail_jpeg(np.full((224, 224, 3), 120, np.uint8))
    data = {"thumbnail-1.jpg": thumbnail_jpeg(thumbnail), "attention-map-1.png": drawn}
    data |= {f"top-tile-1-{rank}.jpg": tile for rank in range(1, 5)}
    roles = ["thumbnail", "attention-map", *(f"top-tile-{rank}" for rank in range(1, 5))]
    shown = tuple(picture(role, file, data[file], series) for role, file in zip(roles, data, strict=True))
    _, files = encoded(replace(report, pictures=shown), [source], data)
    page = files["report.html"].decode()
    assert page.count('src="data:image/') == 6
    assert "No picture at hand" not in page
    assert "Nopictureathand" not in "".join(pages(files["report.pdf"]))

    pixels = np.asarray(Image.open(BytesIO(drawn)))
    heaviest, lightest, unread = pixels[30, 10], pixels[30, 70], pixels[5, 5]
    assert heaviest[0] < lightest[0], "the heaviest tile is the darkest"
    assert (unread == 230).all()


def test_the_same_report_gives_the_same_bytes(inside: tuple[Report, SlideSource]) -> None:
    report, source = inside
    assert encoded(report, [source]) == encoded(report, [source])
