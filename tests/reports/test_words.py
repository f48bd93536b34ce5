"""A report of what was found by words: all encodings say the same, and a prompt is never more than text in any."""

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

from gateway.domain.report import Amendment, ObjectFigures, ObjectKind, Report, Segmented, Signature
from gateway.reports import (
    DICOM,
    SlideSource,
    field_picture,
    from_json,
    picture,
    report_schema,
    segment_picture,
    to_json,
    wording,
    write_revision,
)
from gateway.reports.geojson import write_geojson
from gateway.reports.masks_ann import write_mask_annotations
from gateway.reports.outputs import own_outputs_replaced
from gateway.reports.sr_segments import segment_measurements
from tests.reports.conftest import encoded
from tests.reports.drawn import ring_area
from tests.reports.pdf_text import pages
from tests.reports.test_consistency import DIAGNOSIS, check_common, sr_groups
from tests.reports.test_slide_classes import classified
from tests.reports.worded import UNANSWERED, worded

HOSTILE = (
    "<script>alert(1)</script>\"'&lt;<img src=x onerror=alert(2)>",
    '#set page(fill: red) $x$ *b* _i_ `c` @a <b> \\ #read("/etc/passwd") #import "@preview/x:1"',
    "nuclei\\epithelial^in=colon {{ 7 * 7 }} {% raw %} %s %n ../../etc \u202egnp.exe \u0416\u4e2d\u0627",
    "W" * 200,
)
Case = tuple[Report, SlideSource]
Written = tuple[Report, SlideSource, dict[str, bytes]]


def pictured(case: Case) -> tuple[Report, dict[str, bytes]]:
    """The report with its pictures, which are small here."""
    report, _ = case
    pixels, share = np.full((24, 32, 3), 200, np.uint8), np.linspace(0, 1, 32 * 24, dtype=np.float32).reshape(24, 32)
    data, records = {}, []
    for each in report.segmentations[0].segments:
        if each.present:
            number = each.index + 1
            drawn = {
                f"segment-1-{number}.png": (f"segment-{number}", segment_picture(pixels, share, each.color)),
                f"segment-field-1-{number}.jpg": (
                    f"segment-field-{number}",
                    field_picture(pixels, share > 0.5, each.color),
                ),
            }
            data |= {file: made for file, (_, made) in drawn.items()}
            series = report.slides[0].series
            records += [picture(role, file, made, series) for file, (role, made) in drawn.items()]
    return replace(report, pictures=tuple(records)), data


def write(case: Case) -> Written:
    report, pictures = pictured(case)
    named, files = encoded(report, [case[1]], pictures)
    return named, case[1], files


@pytest.fixture(scope="module")
def written() -> Written:
    return write(worded())


@pytest.fixture(scope="module")
def hostile() -> Written:
    return write(worded(prompts=HOSTILE, exploratory=True))  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["written", "hostile"])
def either(request: pytest.FixtureRequest) -> Written:
    made: Written = request.getfixturevalue(request.param)
    return made


def segments(report: Report) -> tuple[Segmented, ...]:
    return report.segmentations[0].segments


def test_files(either: Written) -> None:
    report, _, files = either
    drawn = [
        "segments-1-1.seg.dcm", "probabilities-1-1.seg.dcm", "segments-1-2.seg.dcm", "probabilities-1-2.seg.dcm",
        "segments-1.ann.dcm", "segments-1.geojson",
    ]  # fmt: skip
    documents = ["report.html", "report.pdf", "report.sr.dcm", "report.pdf.dcm", "report.ko.dcm"]
    assert [item.file for item in report.objects] == [*drawn, *documents]
    assert {item.file for item in report.objects} < set(files)
    for item in report.objects:
        if item.media_type == DICOM:
            check_common(report, item, files[item.file])


def test_json(either: Written) -> None:
    report, _, files = either
    document = json.loads(files["report.json"])
    assert from_json(files["report.json"]) == report
    said = [
        {
            "series": report.slides[0].series,
            "prompt": each.prompt,
            "triple": each.triple,
            "seg": "segments-1-2.seg.dcm" if each.index == 3 else "segments-1-1.seg.dcm",
            "present": each.index != 2,
            "presence": each.presence,
            "supported": each.supported,
        }
        for each in segments(report)
    ]
    assert document["segments"] == said
    assert [each["triple"] for each in document["segmentations"][0]["segments"]] == [each["triple"] for each in said]
    assert document["order"]["prompts"] == [*(each["prompt"] for each in said), UNANSWERED]


def test_a_report_of_an_earlier_version_is_read(report: Report) -> None:
    document = json.loads(to_json(report))
    del document["segments"], document["segmentations"]
    assert from_json(json.dumps(document).encode()) == report


def test_one_limit_for_all_prompts_is_handed_to_each_of_them(written: Written) -> None:
    """As reports of version 1.4 have it; such a report may still wait to be delivered or signed."""
    report, _, _ = written
    document = json.loads(to_json(report))
    document["schema_version"] = "1.4"
    del document["screenings"], document["logits"]
    [result] = document["segmentations"]
    for each in result["segments"]:
        del each["min_presence"]
    result["min_presence"] = 0.625
    [found] = report.segmentations
    due = replace(found, segments=tuple(replace(each, min_presence=0.625) for each in found.segments))
    assert from_json(json.dumps(document).encode()) == replace(report, segmentations=(due,))


def test_structured_report(either: Written) -> None:
    report, source, files = either
    document = pydicom.dcmread(BytesIO(files["report.sr.dcm"]))
    groups = sr_groups(document)
    result = report.segmentations[0]
    assert groups["slide-1/tissue"]["42798000"] == result.area_mm2
    for each in result.segments:
        group = groups[f"slide-1/segment-{each.index + 1}"]
        assert group["code"] == (each.code.code, each.code.scheme)
        assert (group["42798000"], group["42798000/unit"]) == (each.area_mm2, "mm2")
        assert (group["area-share"], group["area-share/unit"]) == (each.area_fraction * 100, "%")
        assert group["presence-score"] == each.presence
        assert group.get("mask-probability") == each.mean_probability
        if each.objects is not None:
            assert (group["object-count"], group["object-count/unit"]) == (each.objects.count, "{objects}")
            assert group["object-density"] == each.objects.density_per_mm2
            assert group["object-density/unit"] == "{objects}/mm2"
            assert group["object-area/unit"] == "um2"
            assert group["irregularity"] == each.objects.irregularity
        else:
            assert "object-count" not in group
    evidence = {
        instance.ReferencedSOPInstanceUID
        for series in document.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }
    for each in segments(report):
        said = sr_group(document, f"segment-{each.index + 1}")
        images = [item.ReferencedSOPSequence[0] for item in said if item.ValueType == "IMAGE"]
        file = pydicom.dcmread(BytesIO(files[str(each.seg)]), stop_before_pixels=True)
        [segment] = [item for item in file.SegmentSequence if item.SegmentLabel == each.triple]
        referenced = [item for item in images if "ReferencedSegmentNumber" in item]
        if each.present:
            [reference] = referenced
            assert reference.ReferencedSOPInstanceUID == file.SOPInstanceUID
            assert reference.ReferencedSegmentNumber == segment.SegmentNumber
        else:  # nothing is to be seen there
            assert referenced == []
        assert file.SOPInstanceUID in evidence
        tracked = {item.get("TextValue") or item.get("UID") for item in said}
        assert {segment.TrackingID, segment.TrackingUID} <= tracked
        coded = {item.ConceptNameCodeSequence[0].CodeValue: item for item in said if item.ValueType == "CODE"}
        presence = coded["presence"].ConceptCodeSequence[0]
        assert presence.CodeMeaning == ("Present" if each.present else "Absent")
        assert coded["supported"].ConceptCodeSequence[0].CodeMeaning == ("Yes" if each.supported else "No")
        texts = [item.TextValue for item in said if item.ValueType == "TEXT"]
        assert any(text.endswith("of the tissue that was read at this resolution") for text in texts)
        assert f"understood as: {each.triple}" in texts
        assert any(text.startswith("prompt: ") for text in texts)
        assert f"present: presence >= {each.min_presence:g}" in texts
    assert len(source.masks) == 2


def sr_group(document: pydicom.Dataset, role: str) -> list[pydicom.Dataset]:
    """The content of one measurement group."""
    measurements = next(
        item for item in document.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == "126010"
    )
    for group in measurements.ContentSequence:
        if any(str(item.get("TextValue", "")).endswith(f"/{role}") for item in group.ContentSequence):
            return list(group.ContentSequence)
    raise AssertionError(f"no group {role}")


def test_what_is_not_written_is_not_referred_to() -> None:
    named, _, files = write(worded(found=False))
    document = pydicom.dcmread(BytesIO(files["report.sr.dcm"]))
    for each in segments(named):
        said = sr_group(document, f"segment-{each.index + 1}")
        sources = [item for item in said if item.ValueType == "IMAGE"]
        assert {item.ConceptNameCodeSequence[0].CodeMeaning for item in sources} == {"Source of Measurement"}
        assert each.seg is None
    assert json.loads(files["segments-1.geojson"])["features"] == []
    nothing = "Nothing was found of the prompts that were answered. One prompt was not answered."
    assert nothing in files["report.html"].decode()
    assert "".join(nothing.split()) in "".join("".join(pages(files["report.pdf"])).split())
    answered = replace(named, order=replace(named.order, prompts=named.order.prompts[:-1]))
    assert wording.nothing_found(answered, named.segmentations[0]).startswith("Nothing was found of any prompt in")


def test_annotations(either: Written) -> None:
    report, source, files = either
    dataset = pydicom.dcmread(BytesIO(files["segments-1.ann.dcm"]))
    found = [each for each in segments(report) if each.present]
    assert [group.AnnotationGroupLabel for group in dataset.AnnotationGroupSequence] == [each.triple for each in found]
    for group, each in zip(dataset.AnnotationGroupSequence, found, strict=True):
        assert group.AnnotationPropertyTypeCodeSequence[0].CodeValue == each.code.code
        assert group.GraphicType == "POLYGON"
        measured = {
            item.ConceptNameCodeSequence[0].CodeValue: np.frombuffer(
                item.MeasurementValuesSequence[0].FloatingPointValues, "<f4"
            )
            for item in group.MeasurementsSequence
        }
        assert ("Exploratory" in group.AnnotationGroupDescription) == report.exploratory
        if each.objects is not None:
            assert group.NumberOfAnnotations == each.objects.count
            assert len(measured["irregularity"]) == each.objects.count
        else:
            assert measured["42798000"].sum() / 1e6 == pytest.approx(each.area_mm2, rel=1e-3)
            assert "irregularity" not in measured
        assert (measured["mask-probability"] > 0.5).all()
    assert dataset.ReferencedImageSequence[0].ReferencedSOPInstanceUID == source.image.SOPInstanceUID


def test_geojson(either: Written) -> None:
    report, _, files = either
    collection = json.loads(files["segments-1.geojson"])
    assert [each["prompt"] for each in collection["pathserve"]["segments"]] == [e.prompt for e in segments(report)]
    for each in segments(report):
        features = [
            feature
            for feature in collection["features"]
            if feature["properties"]["classification"]["name"] == each.triple
        ]
        assert bool(features) == each.present
        kinds = {feature["properties"]["objectType"] for feature in features}
        if each.objects is not None:
            assert len(features) == each.objects.count
            assert kinds == {"detection"}
        elif each.present:
            assert kinds == {"annotation"}
            assert sorted(len(feature["geometry"]["coordinates"]) for feature in features) == [1, 2]  # one has a hole
        for feature in features:
            outer, *holes = [np.array(ring) for ring in feature["geometry"]["coordinates"]]
            assert ring_area(outer[:-1]) > 0
            assert all(ring_area(hole[:-1]) < 0 for hole in holes)
            assert np.array_equal(outer[0], outer[-1])
            color = feature["properties"]["classification"]["color"]
            assert "#{:02x}{:02x}{:02x}".format(*color) == each.color
            assert feature["properties"]["name"].endswith("(exploratory)") == report.exploratory
    ids = [feature["id"] for feature in collection["features"]]
    assert len(set(ids)) == len(ids)


def test_geojson_of_a_slide_that_was_also_classified(written: Written, tmp_path: Path) -> None:
    report, source, files = written
    both = replace(report, slide_classes=(classified(report.slides[0]),))
    write_geojson(tmp_path / "both.geojson", both, source)
    features = json.loads((tmp_path / "both.geojson").read_bytes())["features"]
    tiles = len(both.slide_classes[0].top_tiles)
    assert features[tiles:] == json.loads(files["segments-1.geojson"])["features"]
    assert tiles


@pytest.mark.parametrize(
    ("value", "limit", "printed"),
    [
        (0.5, 0.455, ("0.500", "0.455")),
        (0.99953, 0.99968, ("0.9995", "0.9997")),
        (0.4, 0.99968, ("0.4000", "0.9997")),
        (0.00002, 0.00001, ("0.00002", "0.00001")),
        (0.5, 1.0, ("0.500", "1.000")),
    ],
)
def test_a_presence_is_told_from_its_limit(value: float, limit: float, printed: tuple[str, str]) -> None:
    assert wording.presence(value, limit) == printed


def test_of_no_objects_nothing_is_measured(written: Written, tmp_path: Path) -> None:
    """A mask whose pieces are all too small for objects: a count of 0, no sizes, and its regions."""
    report, source, files = written
    glands = report.segmentations[0].segments[3]
    sizes = ("mean_area_um2", "area_p10_um2", "area_median_um2", "area_p90_um2", "irregularity")
    zero = ObjectFigures(count=0, density_per_mm2=0.0, **dict.fromkeys(sizes))
    none = replace(glands, objects=zero)
    assert wording.object_row(none, zero)[1:] == ["0", "0.0", "–", "–", "–"]
    codes = [item.name.value for item in segment_measurements(none)]
    assert codes == [*(item.name.value for item in segment_measurements(glands)), "object-count", "object-density"]
    result = replace(report.segmentations[0], segments=(*report.segmentations[0].segments[:3], none))
    uncounted = replace(report, segmentations=(result,))
    document = json.loads(to_json(uncounted))
    jsonschema.validate(document, report_schema())
    told = document["segmentations"][0]["segments"][3]["objects"]
    assert told == {"count": 0, "density_per_mm2": 0, **dict.fromkeys(sizes), "approximate": True}
    assert from_json(json.dumps(document).encode()) == uncounted
    write_mask_annotations(tmp_path / "none.ann.dcm", uncounted, source)
    group = pydicom.dcmread(tmp_path / "none.ann.dcm").AnnotationGroupSequence[-1]
    assert group.NumberOfAnnotations > 0
    assert "Regions only: none has the least size of an object." in group.AnnotationGroupDescription
    write_geojson(tmp_path / "none.geojson", uncounted, source)
    assert (tmp_path / "none.geojson").read_bytes() == files["segments-1.geojson"]


def test_page(either: Written) -> None:
    report, _, files = either
    page = files["report.html"].decode()

    def rows(attribute: str) -> list[list[str]]:
        return [
            [html.unescape(re.sub("<[^>]*>", "", cell)) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", cells)]
            for cells in re.findall(rf'<tr data-{attribute}="[0-9]+"[^>]*>(.*?)</tr>', page)
        ]

    prompts = rows("prompt")
    assert prompts == wording.prompt_rows(report, report.segmentations[0])
    assert [row[0] for row in prompts] == list(report.order.prompts)
    assert [row[3] for row in prompts] == ["found", "found", "not found", "found", "not answered"]
    assert [row[4] for row in prompts] == [
        "0.930 (limit 0.500)", "0.930 (limit 0.500)", "0.040 (limit 0.500)", "0.930 (limit 0.830)", "–",
    ]  # fmt: skip
    valid, invalid = "yes, Dice 0.74", "measured, not validated: Dice 0.74"
    assert [row[2] for row in prompts] == [valid, valid, invalid, valid, "–"]
    for word in (invalid, "not found", "not answered"):
        assert f"<td><strong>{word}</strong></td>" in page
    caption = wording.segments_caption(report.segmentations[0])
    assert caption in html.unescape(page)
    assert "(at the finest that was answered 1.10 mm²)" in caption
    assert rows("segment") == [wording.segment_row(each) for each in segments(report) if each.present]
    for each in segments(report):
        if each.objects is not None:
            assert all(html.escape(cell) in page for cell in wording.object_row(each, each.objects))
    assert "outlines in a field where much of it lies, 16 µm wide" in page  # 32 pixels, that is, of each resolution
    assert page.count("data:image/png") == page.count("data:image/jpeg") == 3
    assert "No picture at hand" not in page


def test_document(either: Written) -> None:
    report, _, files = either
    said = "".join("".join(pages(files["report.pdf"])).split())
    for each in segments(report):
        figures = [wording.segment_row(each)] if each.present else []
        for row in (*figures, *([wording.object_row(each, each.objects)] if each.objects else ())):
            assert "".join("".join(row).split()) in said
        assert "".join(each.triple.split()) in said
    assert "".join(f"{UNANSWERED}––not answered–".split()) in said
    assert [finding for finding in report.findings if "".join(finding.text.split()) not in said] == []


def test_key_objects_list_the_segmentations(written: Written) -> None:
    report, _, files = written
    selection = pydicom.dcmread(BytesIO(files["report.ko.dcm"]))
    listed = [
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for item in selection.ContentSequence
        if "ReferencedSOPSequence" in item
    ]
    own = [
        str(pydicom.dcmread(BytesIO(files[item.file]), stop_before_pixels=True).SOPInstanceUID)
        for item in report.objects
        if item.media_type == DICOM and item.kind is not ObjectKind.KEY_OBJECTS
    ]
    assert listed[:-1] == own
    assert len(set(own)) == len(own) == 7


# What a person typed is text and nothing else


def test_a_prompt_is_text_on_the_page(hostile: Written) -> None:
    _, _, files = hostile
    page = files["report.html"].decode()
    assert "<script" not in page
    assert "onerror=alert" not in re.sub(r">[^<]*<", "><", page)
    assert "49" not in re.findall(r"epithelial.*?7", page)[0]
    for prompt in HOSTILE:
        assert html.escape(prompt, quote=True).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in page


def test_a_prompt_is_text_in_the_document(hostile: Written) -> None:
    said = "".join("".join(pages(hostile[2]["report.pdf"])).split())
    assert "#setpage(fill:red)$x$*b*_i_`c`@a<b>" in said
    assert "#read(" in said
    assert "root:" not in said
    assert "W" * 200 in said


@pytest.mark.parametrize("file", ["report.sr.dcm", "segments-1-1.seg.dcm", "segments-1.ann.dcm", "report.ko.dcm"])
def test_a_prompt_fits_every_element(hostile: Written, file: str) -> None:
    """No value of VR LO or SH is longer than it may be, has a backslash, or a control character (PS3.5 6.2)."""
    dataset = pydicom.dcmread(BytesIO(hostile[2][file]), stop_before_pixels=True)

    def walk(part: pydicom.Dataset) -> None:
        for element in part:
            if element.VR == "SQ":
                for item in element.value:
                    walk(item)
            elif element.VR in ("LO", "SH") and element.value:
                for value in element.value if element.VM > 1 else [element.value]:
                    assert len(value) <= (64 if element.VR == "LO" else 16)
            elif element.VR == "UT":
                assert all(character.isprintable() or character in "\n\t" for character in element.value)

    walk(dataset)


def test_what_was_typed_is_in_the_structured_report(hostile: Written) -> None:
    text = json.dumps(pydicom.dcmread(BytesIO(hostile[2]["report.sr.dcm"])).to_json_dict(), ensure_ascii=False)
    assert f"prompt: {HOSTILE[3]}" in text
    assert "<script>alert(1)</script>" in text


def test_outside_the_intended_use_no_word_of_diagnosis_is_added(hostile: Written) -> None:
    _, _, files = hostile
    for file in ("report.html", "segments-1.geojson"):
        assert DIAGNOSIS.search(re.sub(r"diagnosis", "", files[file].decode())) is None
    assert "exploratory" in pydicom.dcmread(BytesIO(files["segments-1-1.seg.dcm"])).SeriesDescription


def test_a_signed_revision_refers_to_the_same_segments(written: Written, tmp_path: Path) -> None:
    report, source, files = written
    before, after = tmp_path / "before", tmp_path / "after"
    for folder in (before, after):
        folder.mkdir()
    for name, data in files.items():
        (before / name).write_bytes(data)
    signature = Signature(by="person:jane", name="Jane Doe", organisation="pathology", time=report.issued)
    amended = report.signed(signature).amended(Amendment("Second look.", "No glands."), signature)
    write_revision(after, amended, [source.image], [before])
    old, new = (pydicom.dcmread(folder / "report.sr.dcm") for folder in (before, after))
    assert sr_groups(old) == sr_groups(new)
    references = [
        [item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in group if "ReferencedSOPSequence" in item]
        for group in (sr_group(document, "segment-4") for document in (old, new))
    ]
    assert references[0] == references[1]
    restated = json.loads((after / "segments-1.geojson").read_text())
    assert restated["pathserve"]["state"] == "amended"
    assert restated["features"] == json.loads(files["segments-1.geojson"])["features"]
    assert not list(after.glob("*.seg.dcm"))


def test_earlier_outputs_are_replaced(written: Written, tmp_path: Path) -> None:
    for name in written[2]:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "mine.seg.dcm").write_bytes(b"")
    with own_outputs_replaced(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["mine.seg.dcm"]
