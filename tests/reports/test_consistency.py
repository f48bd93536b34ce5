"""One report, many encodings: all of them say the same (DESIGN.md law 1)."""

import html
import json
import re
from dataclasses import replace
from io import BytesIO

import numpy as np
import pydicom
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from gateway.domain.report import Amendment, ObjectKind, Report, ResultObject, Signature, TissueResult
from gateway.reports import DICOM, SlideSource, result_objects, wording
from tests.reports.conftest import encoded, source_of
from tests.reports.pdf_text import pages

DIAGNOSIS = re.compile(r"adenocarcinoma|carcinoma|cancer|tumou?r|malignan|dysplasia|normal", re.IGNORECASE)


def sr_groups(document: pydicom.Dataset) -> dict[str, dict[str, object]]:
    """Measurement groups by the role in their tracking identifier: label, numbers and codes by concept."""
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
            elif item.ValueType == "CODE":
                said[name] = item.ConceptCodeSequence[0].CodeMeaning
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
    named, files = encoded(report, sources)
    assert set(files) == {"report.json", *(item.file for item in named.objects)}
    for item in named.objects:
        if item.media_type == DICOM:
            check_common(named, item, files[item.file])
    for source in sources:
        if source.tiles is not None:
            check_drawn(named, source, files)
    check_pdf(named, files)
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


def test_signed_and_amended(report: Report, image: pydicom.Dataset) -> None:
    """The figures stay; what a person adds is looked at in `test_revisions`."""
    signature = Signature(by="person:jane", name="Jane Doe", organisation="pathology", time=report.issued)
    amended = report.signed(signature).amended(Amendment("Second look.", "It is necrosis."), signature)
    check(amended, sources_of(report, image))


def test_two_slides(two_slides: Report, image: pydicom.Dataset, second_image: pydicom.Dataset) -> None:
    check(two_slides, sources_of(two_slides, image, second_image))


def names(report: Report, sources: list[SlideSource]) -> list[str]:
    return [item.file for item in result_objects(report.slides, sources)]


def drawn(number: int) -> list[str]:
    return [f"tissue-{number}.{ending}" for ending in ("seg.dcm", "pm.dcm", "ann.dcm", "geojson")]


def test_files_come_in_the_order_in_which_they_refer_to_each_other(
    two_slides: Report, image: pydicom.Dataset, second_image: pydicom.Dataset
) -> None:
    sources = sources_of(two_slides, image, second_image)
    study = ["report.sr.dcm", "report.pdf.dcm", "report.ko.dcm"]
    assert names(two_slides, sources) == [*drawn(1), *drawn(2), "report.html", "report.pdf", *study]


def test_a_slide_of_a_wrong_stain_gets_nothing_drawn(
    two_slides: Report, image: pydicom.Dataset, second_image: pydicom.Dataset
) -> None:
    first, second = two_slides.tissue
    one = [source_of(image, None), source_of(second_image, second)]
    study = ["report.sr.dcm", "report.pdf.dcm", "report.ko.dcm"]
    assert names(two_slides, one) == [*drawn(2), "report.html", "report.pdf", *study]
    check(two_slides, one)
    none = [source_of(image, None), source_of(second_image, None)]
    assert names(two_slides, none) == ["report.html", "report.pdf", "report.sr.dcm"]
    check(two_slides, none)
    assert first.series == one[0].series


def test_a_slide_that_was_not_read_keeps_its_number(two_slides: Report, second_image: pydicom.Dataset) -> None:
    unread, second = two_slides.slides[2], two_slides.slides[1]
    report = replace(two_slides, slides=(unread, second), tissue=two_slides.tissue[1:])
    assert names(report, sources_of(report, second_image))[:4] == drawn(2)


def test_a_slide_that_is_uncertain_everywhere_has_no_annotations(report: Report, image: pydicom.Dataset) -> None:
    [source] = sources_of(report, image)
    assert source.tiles is not None
    nowhere = replace(source.tiles, classes_N=np.full_like(source.tiles.classes_N, -1))
    assert "tissue-1.ann.dcm" not in names(report, [replace(source, tiles=nowhere)])


def test_key_objects_list_all_that_lies_in_their_study(
    two_slides: Report, image: pydicom.Dataset, second_image: pydicom.Dataset
) -> None:
    named, files = encoded(two_slides, sources_of(two_slides, image, second_image))
    datasets = {
        item.file: pydicom.dcmread(BytesIO(files[item.file]), stop_before_pixels=True)
        for item in named.objects
        if item.media_type == DICOM
    }
    selection = datasets.pop("report.ko.dcm")
    listed = [
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for item in selection.ContentSequence
        if "ReferencedSOPSequence" in item
    ]
    own = [str(dataset.SOPInstanceUID) for dataset in datasets.values()]
    assert listed == [*own, image.SOPInstanceUID, second_image.SOPInstanceUID]


def test_two_studies(second_study: tuple[Report, list[pydicom.Dataset]]) -> None:
    report, images = second_study
    assert names(report, sources_of(report, *images)) == [
        *drawn(1), *drawn(2), "report.html", "report.pdf", "report.sr.dcm", "report-2.sr.dcm", "report.pdf.dcm",
        "report-2.pdf.dcm", "report.ko.dcm", "report-2.ko.dcm",
    ]  # fmt: skip
    check(report, sources_of(report, *images))


def check_common(report: Report, item: ResultObject, data: bytes) -> None:
    """Whose it is, what it may be used for, what made it and when."""
    dataset = pydicom.dcmread(BytesIO(data), stop_before_pixels=True)
    slide = next(slide for slide in report.slides if slide.read and item.study == slide.study)
    header = slide.header
    assert header is not None
    assert (dataset.StudyInstanceUID, dataset.PatientID, str(dataset.PatientName)) == (
        item.study, header.patient_id, header.patient_name,
    )  # fmt: skip
    assert (dataset.PatientBirthDate, dataset.PatientSex, dataset.AccessionNumber) == (
        header.patient_birth_date, header.patient_sex, header.accession,
    )  # fmt: skip
    assert dataset.SeriesInstanceUID not in {slide.series for slide in report.slides}
    assert dataset.SeriesDescription.startswith(wording.document_title(report))
    assert ("exploratory" in dataset.SeriesDescription) == report.exploratory
    assert (dataset.Manufacturer, dataset.ManufacturerModelName) == (
        report.software.manufacturer, report.software.name,
    )  # fmt: skip
    assert (dataset.DeviceSerialNumber, dataset.SoftwareVersions) == (
        report.software.device_uid, report.software.version,
    )  # fmt: skip
    assert (dataset.ContentDate, dataset.ContentTime) == ("20261126", "093015")


def check_pdf(report: Report, files: dict[str, bytes]) -> None:
    """The PDF names whose it is on every page, each class with its figures, and what the reader must know."""
    document = files["report.pdf"]
    text = pages(document)
    said = "".join(text)
    header = report.slides[0].header
    assert header is not None
    for page in text:
        assert str(header.patient_id) in page
        assert ("Exploratory" in page) == report.exploratory
    for result in report.tissue:
        for tissue in result.classes:
            row = (
                tissue.code.display,
                wording.area(tissue.area_mm2),
                wording.percent(tissue.share),
                wording.probability(tissue.mean_probability),
                str(tissue.tiles),
            )
            assert "".join("".join(row).split()) in said
    assert [finding for finding in report.findings if "".join(finding.text.split()) not in said] == []
    for name, data in files.items():
        if name.endswith(".pdf.dcm"):
            dataset = pydicom.dcmread(BytesIO(data))
            assert dataset.EncapsulatedDocument[: dataset.EncapsulatedDocumentLength] == document


def check_drawn(report: Report, source: SlideSource, files: dict[str, bytes]) -> None:
    """What is drawn on a slide has the names, codes, areas and probabilities of the report."""
    result = next(result for result in report.tissue if result.series == source.series)
    names = {item.kind: item.file for item in report.objects if item.series == source.series}
    found = {tissue.code.code: tissue for tissue in result.classes if tissue.tiles}

    segmentation = pydicom.dcmread(BytesIO(files[names[ObjectKind.SEGMENTATION]]))
    said = [(segment.SegmentLabel, segment.SegmentDescription) for segment in segmentation.SegmentSequence]
    assert [label for label, _ in said] == [*(tissue.code.display for tissue in result.classes), wording.UNCERTAIN]
    for (_, description), tissue in zip(said, result.classes, strict=False):
        if tissue.tiles:
            assert description.startswith(f"{tissue.tiles} tiles, {wording.area(tissue.area_mm2)} mm², ")
            assert f"{wording.percent(tissue.share)} %" in description
        else:
            assert description == "Looked for, not found."

    heat = pydicom.dcmread(BytesIO(files[names[ObjectKind.PARAMETRIC_MAP]]))
    values = np.unique(np.frombuffer(heat.PixelData, "<u2"))
    assert source.tiles is not None
    expected = np.unique(source.tiles.probabilities_NC.max(axis=1).astype(np.float64))
    assert values[values > 0] / 65535 == pytest.approx(expected, abs=1e-5)

    annotations = pydicom.dcmread(BytesIO(files[names[ObjectKind.ANNOTATIONS]]))
    groups = {}
    for group in annotations.AnnotationGroupSequence:
        code = group.AnnotationPropertyTypeCodeSequence[0]
        groups[code.get("CodeValue") or code.LongCodeValue] = group
    assert list(groups) == list(found)
    for code, group in groups.items():
        measured = {
            item.ConceptNameCodeSequence[0].CodeValue: np.frombuffer(
                item.MeasurementValuesSequence[0].FloatingPointValues, "<f4"
            )
            for item in group.MeasurementsSequence
        }
        assert group.AnnotationGroupLabel == found[code].code.display
        assert measured["42798000"].sum() == pytest.approx(found[code].area_mm2, rel=1e-5)
        assert ("Exploratory" in group.AnnotationGroupDescription) == result.exploratory

    collection = json.loads(files[names[ObjectKind.GEOJSON]])
    assert collection["pathserve"]["exploratory"] == result.exploratory
    for code, tissue in found.items():
        regions = [f["properties"] for f in collection["features"] if f["properties"]["metadata"]["code"] == code]
        assert {region["classification"]["name"] for region in regions} == {tissue.code.display}
        measured = [region["measurements"] for region in regions]
        assert sum(each["Tiles"] for each in measured) == tissue.tiles
        assert sum(each["Tissue area mm^2"] for each in measured) == pytest.approx(tissue.area_mm2, rel=1e-5)
        mean = sum(each["Mean probability"] * each["Tiles"] for each in measured) / tissue.tiles
        assert mean == pytest.approx(tissue.mean_probability, rel=1e-5)


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


def diagnosis_in(data: bytes) -> bool:
    """Whether a word of diagnosis is among the text of a file; pixels, which come last, are not searched."""
    return DIAGNOSIS.search(data[:300_000].decode("utf-8", errors="replace")) is not None


def test_exploratory_names_no_diagnosis(exploratory: Report, report: Report, image: pydicom.Dataset) -> None:
    _, files = encoded(exploratory, sources_of(exploratory, image))
    assert [name for name, data in files.items() if diagnosis_in(data)] == []
    assert DIAGNOSIS.search("".join(pages(files["report.pdf"]))) is None
    _, inside = encoded(report, sources_of(report, image))
    # A heat map and a list of objects name no class, and a PDF's text is compressed.
    silent = {"tissue-1.pm.dcm", "report.ko.dcm", "report.pdf", "report.pdf.dcm"}
    assert {name for name, data in inside.items() if not diagnosis_in(data)} == silent


def test_encoders_leave_their_input_alone(report: Report, image: pydicom.Dataset) -> None:
    before = image.to_json()
    sources = sources_of(report, image)
    assert encoded(report, sources) == encoded(report, sources)
    assert image.to_json() == before


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        (0.0, "0.00"),
        (6.25e-8, "<0.000001"),
        (1e-6, "0.000001"),
        (4e-5, "0.000040"),
        (0.0004, "0.0004"),
        (0.0099, "0.0099"),
        (0.01, "0.01"),
        (123.456, "123.46"),
    ],
)
def test_small_areas_do_not_vanish(value: float, printed: str) -> None:
    assert wording.area(value) == printed


@pytest.mark.parametrize(("share", "printed"), [(0.0, "0.00"), (4e-5, "<0.01"), (6e-5, "0.01"), (1.0, "100.00")])
def test_small_shares_do_not_vanish(share: float, printed: str) -> None:
    assert wording.percent(share, digits=2) == printed
