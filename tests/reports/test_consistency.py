"""One report, many encodings: JSON, SR and HTML say the same (DESIGN.md law 1)."""

import html
import json
import re
from dataclasses import replace
from io import BytesIO

import pydicom
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from gateway.domain.report import Report, TissueResult
from gateway.reports import SlideSource, wording
from tests.reports.conftest import encoded, source_of

DIAGNOSIS = re.compile(r"adenocarcinoma|carcinoma|cancer|tumou?r|malignan|dysplasia|normal", re.IGNORECASE)


def sr_groups(document: pydicom.Dataset) -> dict[str, dict[str, object]]:
    """Measurement groups by the role in their tracking identifier: label, numbers by concept, algorithm left out."""
    measurements = next(
        item for item in document.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == "126010"
    )
    groups = {}
    for group in measurements.ContentSequence:
        said: dict[str, object] = {}
        for item in group.ContentSequence:
            name = item.ConceptNameCodeSequence[0].CodeValue
            if name == "112039":
                role = item.TextValue.split("/", 1)[1]
            elif name == "121071":
                code = item.ConceptCodeSequence[0]
                said["code"] = (code.get("CodeValue") or code.LongCodeValue, code.CodingSchemeDesignator)
                said["label"] = code.CodeMeaning
            elif item.ValueType == "NUM":
                value = item.MeasuredValueSequence[0]
                said[name] = value.get("FloatingPointValue", value.NumericValue)
                assert value.NumericValue == pytest.approx(said[name], rel=1e-9, abs=1e-12)
                said[f"{name}/unit"] = value.MeasurementUnitsCodeSequence[0].CodeValue
        groups[role] = said
    return groups


def html_rows(page: str, number: int) -> dict[str, list[str]]:
    """The rows of slide `number`'s class table (from 1), by class index: label, area, share, probability, tiles."""
    section = page.split('<section class="slide">')[number]
    return {
        key: [html.unescape(re.sub("<[^>]*>", "", cell)) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for key, row in re.findall(r'<tr data-class="([^"]+)"[^>]*>(.*?)</tr>', section)
    }


def sources_of(report: Report, *images: pydicom.Dataset) -> list[SlideSource]:
    return [source_of(image, result) for image, result in zip(images, report.tissue, strict=True)]


def check(report: Report, sources: list[SlideSource]) -> None:
    _, files = encoded(report, sources)
    document = json.loads(files["report.json"])
    page = files["report.html"].decode()
    groups: dict[str, dict[str, object]] = {}
    said_in_sr = ""
    for name, data in files.items():
        if name.endswith(".sr.dcm"):
            dataset = pydicom.dcmread(BytesIO(data))
            groups |= sr_groups(dataset)
            said_in_sr += dataset.to_json()

    for finding in document["findings"]:
        assert html.escape(finding["text"]) in page
        assert json.dumps(finding["text"])[1:-1] in said_in_sr
        assert finding["code"]["code"] in said_in_sr
    for slide_number, result in enumerate(document["tissue"], 1):
        rows = html_rows(page, slide_number)
        whole = groups[f"slide-{slide_number}/tissue"]
        assert whole["42798000"] == result["area_mm2"]
        assert whole["tile-count"] == result["tiles"]
        assert rows["all"] == ["Tissue read", wording.area(result["area_mm2"]), "", "", str(result["tiles"])]
        uncertain = groups[f"slide-{slide_number}/uncertain"]
        assert uncertain["42798000"] == result["uncertain_area_mm2"]
        assert uncertain["area-share"] == result["uncertain_share"] * 100
        assert uncertain["tile-count"] == result["uncertain_tiles"]
        assert rows["uncertain"] == [
            "Uncertain",
            wording.area(result["uncertain_area_mm2"]),
            wording.percent(result["uncertain_share"]),
            "–",
            str(result["uncertain_tiles"]),
        ]
        assert len(rows) == len(result["classes"]) + 2
        for tissue in result["classes"]:
            role = f"slide-{slide_number}/class-{tissue['index']}"
            group = groups[role]
            assert group["code"] == (tissue["code"]["code"], tissue["code"]["scheme"])
            assert group["label"] == tissue["code"]["display"]
            assert (group["42798000"], group["42798000/unit"]) == (tissue["area_mm2"], "mm2")
            assert (group["area-share"], group["area-share/unit"]) == (tissue["share"] * 100, "%")
            assert group["tile-count"] == tissue["tiles"]
            assert group.get("mean-probability") == tissue["mean_probability"]
            assert rows[str(tissue["index"])] == [
                tissue["code"]["display"],
                wording.area(tissue["area_mm2"]),
                wording.percent(tissue["share"]),
                wording.probability(tissue["mean_probability"]),
                str(tissue["tiles"]),
            ]
            for rank, evidence in enumerate(tissue["evidence"], 1):
                assert groups[f"{role}/tile-{rank}"]["111012"] == evidence["probability"] * 100


def test_one_slide(report: Report, image: pydicom.Dataset) -> None:
    check(report, sources_of(report, image))


def test_exploratory(exploratory: Report, image: pydicom.Dataset) -> None:
    check(exploratory, sources_of(exploratory, image))


def test_two_slides(two_slides: Report, image: pydicom.Dataset, second_image: pydicom.Dataset) -> None:
    check(two_slides, sources_of(two_slides, image, second_image))


def test_two_studies(second_study: tuple[Report, list[pydicom.Dataset]]) -> None:
    report, images = second_study
    check(report, sources_of(report, *images))


counts = st.lists(st.integers(0, 100_000), min_size=7, max_size=7)


def test_any_figures(report: Report, image: pydicom.Dataset) -> None:
    result: TissueResult = report.tissue[0]

    # Without shrinking: an example takes a quarter of a second, and its figures are readable as they are.
    @settings(max_examples=8, deadline=None, phases=(Phase.explicit, Phase.generate), database=None)
    @given(
        tiles=counts,
        uncertain=st.integers(0, 100_000),
        tile_mm2=st.floats(1e-6, 10),
        probabilities=st.lists(st.floats(0, 1), min_size=7, max_size=7),
    )
    def hold(tiles: list[int], uncertain: int, tile_mm2: float, probabilities: list[float]) -> None:
        total = max(1, sum(tiles) + uncertain)
        classes = tuple(
            replace(
                tissue,
                tiles=count,
                area_mm2=count * tile_mm2,
                share=count / total,
                mean_probability=probability if count else None,
                evidence=tissue.evidence[:1] if count else (),
            )
            for tissue, count, probability in zip(result.classes, tiles, probabilities, strict=True)
        )
        drawn = replace(
            result,
            classes=classes,
            uncertain_tiles=uncertain,
            uncertain_area_mm2=uncertain * tile_mm2,
            uncertain_share=uncertain / total,
            tiles=sum(tiles) + uncertain,
            area_mm2=(sum(tiles) + uncertain) * tile_mm2,
        )
        # The grid has no room for so many tiles, so nothing is drawn on the slide.
        check(replace(report, tissue=(drawn,)), [source_of(image, None)])

    hold()


def test_exploratory_names_no_diagnosis(exploratory: Report, report: Report, image: pydicom.Dataset) -> None:
    _, files = encoded(exploratory, sources_of(exploratory, image))
    for name, data in files.items():
        text = data.decode("utf-8", errors="replace")
        assert DIAGNOSIS.search(text) is None, name
    _, inside = encoded(report, sources_of(report, image))
    assert all(DIAGNOSIS.search(data.decode("utf-8", errors="replace")) for data in inside.values())


def test_encoders_leave_their_input_alone(report: Report, image: pydicom.Dataset) -> None:
    before = image.to_json()
    sources = sources_of(report, image)
    assert encoded(report, sources) == encoded(report, sources)
    assert image.to_json() == before


@pytest.mark.parametrize(
    ("value", "printed"), [(0.0, "0.00"), (0.0004, "0.0004"), (0.0099, "0.0099"), (0.01, "0.01"), (123.456, "123.46")]
)
def test_small_areas_do_not_vanish(value: float, printed: str) -> None:
    assert wording.area(value) == printed
