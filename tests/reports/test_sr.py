import shutil
import subprocess
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from highdicom.spatial import PixelToReferenceTransformer
from highdicom.sr import Comprehensive3DSR, srread
from pydicom import DataElement
from pydicom.config import IGNORE
from pydicom.datadict import dictionary_VR, tag_for_keyword

from gateway.domain.codes import PRIVATE_SCHEME, Code
from gateway.domain.report import Finding, FindingKind, Report
from gateway.operations.errors import PathserveError
from gateway.reports import to_sr
from tests.support.dicom import file_bytes


def walk(item: pydicom.Dataset):
    yield item
    for child in item.get("ContentSequence", []):
        yield from walk(child)


def named(document: pydicom.Dataset, code: str) -> list[pydicom.Dataset]:
    return [
        item
        for item in walk(document)
        if "ConceptNameCodeSequence" in item and item.ConceptNameCodeSequence[0].get("CodeValue") == code
    ]


def texts(document: pydicom.Dataset) -> str:
    return "\n".join(item.TextValue for item in walk(document) if item.get("ValueType") == "TEXT")


def written(document: pydicom.Dataset) -> pydicom.Dataset:
    return pydicom.dcmread(BytesIO(file_bytes(document)))


def validated(document: pydicom.Dataset, folder: Path) -> list[str]:
    """dciodvfy's errors; fails where the tool says nothing at all."""
    path = folder / "report.sr.dcm"
    path.write_bytes(file_bytes(document))
    said = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False).stderr
    assert said.startswith("Comprehensive3DSR")
    return [line for line in said.splitlines() if line.startswith("Error")]


@pytest.fixture(scope="module")
def document(report: Report, image: pydicom.Dataset) -> pydicom.Dataset:
    """The report's SR as it is read back from its file: for looking at, not for changing."""
    return written(to_sr(report, [image]))


needs_validators = pytest.mark.skipif(
    not (shutil.which("dciodvfy") and shutil.which("dsrdump")), reason="needs dicom3tools and dcmtk"
)


@pytest.mark.validators
@needs_validators
@pytest.mark.parametrize("name", ["report", "exploratory"])
def test_validators_find_no_error(name: str, request, image: pydicom.Dataset, tmp_path: Path) -> None:
    document = to_sr(request.getfixturevalue(name), [image])
    assert validated(document, tmp_path) == []
    dumped = subprocess.run(
        ["dsrdump", "+Pl", str(tmp_path / "report.sr.dcm")], capture_output=True, text=True, check=False
    )
    assert dumped.returncode == 0, dumped.stderr
    assert "Research use only, not a medical device." in dumped.stdout
    assert "PRELIMINARY" in dumped.stdout


@pytest.mark.validators
@needs_validators
def test_validators_two_slides(
    two_slides: Report, image: pydicom.Dataset, second_image: pydicom.Dataset, tmp_path: Path
) -> None:
    assert validated(to_sr(two_slides, [image, second_image]), tmp_path) == []


@pytest.mark.validators
@needs_validators
def test_validators_on_a_whole_slide(whole_slide: tuple[Report, pydicom.Dataset], tmp_path: Path) -> None:
    report, source = whole_slide
    assert validated(to_sr(report, [source]), tmp_path) == []


@pytest.mark.validators
@needs_validators
def test_validators_find_a_planted_error(report: Report, image: pydicom.Dataset, tmp_path: Path) -> None:
    document = to_sr(report, [image])
    del document.CompletionFlag
    assert validated(document, tmp_path) != []


def test_encoding_twice_gives_the_same_bytes(report: Report, image: pydicom.Dataset) -> None:
    assert file_bytes(to_sr(report, [image])) == file_bytes(to_sr(report, [image]))


def test_another_analysis_is_another_object(report: Report, image: pydicom.Dataset) -> None:
    first, second = to_sr(report, [image]), to_sr(replace(report, analysis_id="other"), [image])
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert first.SeriesInstanceUID != second.SeriesInstanceUID


def test_the_document_says_what_it_is(
    document: pydicom.Dataset, report: Report, exploratory: Report, image: pydicom.Dataset
) -> None:
    assert document.SOPClassUID == "1.2.840.10008.5.1.4.1.1.88.34"
    assert document.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert (document.CompletionFlag, document.PreliminaryFlag, document.VerificationFlag) == (
        "COMPLETE",
        "PRELIMINARY",
        "UNVERIFIED",
    )
    assert document.ContentQualification == "RESEARCH"
    assert (document.ContentDate, document.ContentTime) == ("20261126", "093015")
    assert document.InstanceCreationDate == document.ContentDate
    assert document.Manufacturer == report.software.manufacturer
    assert document.ManufacturerModelName == report.software.name
    assert document.SoftwareVersions == report.software.version
    assert document.DeviceSerialNumber == report.software.device_uid
    title = document.ConceptNameCodeSequence[0]
    assert title.CodeValue == "126000"
    for text in (document.SeriesDescription, title.CodeMeaning):
        assert "research use" in text
        assert "exploratory" not in text
    outside = to_sr(exploratory, [image])
    for text in (outside.SeriesDescription, outside.ConceptNameCodeSequence[0].CodeMeaning):
        assert text.endswith("research use, exploratory")


def test_patient_and_study_as_received(report: Report, image: pydicom.Dataset) -> None:
    source = deepcopy(image)
    source.IssuerOfPatientID = "HOSPITAL"
    document = written(to_sr(report, [source]))
    for keyword in (
        "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "AccessionNumber",
        "StudyInstanceUID", "StudyID", "StudyDate", "StudyTime",
    ):  # fmt: skip
        assert document[keyword].value == source[keyword].value, keyword
    assert document.SeriesInstanceUID != source.SeriesInstanceUID
    assert document.ReferencedRequestSequence[0].AccessionNumber == report.order.accession


def test_missing_header_fields_stay_empty(report: Report, image: pydicom.Dataset) -> None:
    source = deepcopy(image)
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
        delattr(source, keyword)
    document = written(to_sr(report, [source]))
    assert not document.PatientName
    assert not document.PatientID
    assert document["PatientSex"].value in (None, "")


def test_time_in_the_zone_of_the_study(report: Report, image: pydicom.Dataset) -> None:
    source = deepcopy(image)
    source.TimezoneOffsetFromUTC = "-0530"
    document = written(to_sr(report, [source]))
    assert document.TimezoneOffsetFromUTC == "-0530"
    assert (document.ContentDate, document.ContentTime) == ("20261126", "040015")


@pytest.mark.parametrize("offset", ["+9900", "+2400", "-1230", "+0160", "CET", "", ["+0100", "+0200"]])
def test_a_time_zone_that_is_none_is_not_taken(report: Report, image: pydicom.Dataset, offset: str | list[str]) -> None:
    source = deepcopy(image)
    source.TimezoneOffsetFromUTC = offset
    document = written(to_sr(report, [source]))
    assert "TimezoneOffsetFromUTC" not in document
    assert (document.ContentDate, document.ContentTime) == ("20261126", "093015")


@pytest.mark.parametrize(("offset", "time"), [("+1400", "233015"), ("-0030", "090015"), ("-1200", "213015")])
def test_the_ends_of_the_time_zones(report: Report, image: pydicom.Dataset, offset: str, time: str) -> None:
    source = deepcopy(image)
    source.TimezoneOffsetFromUTC = offset
    assert written(to_sr(report, [source])).ContentTime == time


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        (None, "Doe^Jane"),
        ("ISO_IR 100", "Müller^Jürgen"),
        ("ISO_IR 192", "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    ],
)
def test_names_survive_any_character_set(charset, name: str, report: Report, image: pydicom.Dataset) -> None:
    source = deepcopy(image)
    source.file_meta = image.file_meta
    if charset is None:
        source.pop("SpecificCharacterSet", None)
    else:
        source.SpecificCharacterSet = charset
    source.PatientName = name
    other = pydicom.Dataset()
    other.PatientID, other.IssuerOfPatientID, other.TypeOfPatientID = "1", name.split("^")[-1], "TEXT"
    source.OtherPatientIDsSequence = [other]
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, source, enforce_file_format=True)
    buffer.seek(0)
    received = pydicom.dcmread(buffer)
    document = written(to_sr(replace(report, statement="Größe in µm"), [received]))
    assert document.SpecificCharacterSet == "ISO_IR 192"
    assert str(document.PatientName) == name
    assert document.OtherPatientIDsSequence[0].IssuerOfPatientID == name.split("^")[-1]
    assert "Größe in µm" in texts(document)


def test_reads_back_by_template(report: Report, image: pydicom.Dataset) -> None:
    document = srread(BytesIO(file_bytes(to_sr(report, [image]))))
    assert isinstance(document, Comprehensive3DSR)
    groups = document.content.get_image_measurement_groups()
    assert len(groups) == 1 + len(report.tissue[0].classes) + 1
    rois = document.content.get_planar_roi_measurement_groups()
    assert len(rois) == sum(len(tissue.evidence) for tissue in report.tissue[0].classes)
    uids = [group.tracking_uid for group in (*groups, *rois)]
    assert len(set(uids)) == len(uids)
    assert all(report.analysis_id in group.tracking_identifier for group in (*groups, *rois))


def test_evidence_lies_where_the_tile_lies(document: pydicom.Dataset, report: Report, image: pydicom.Dataset) -> None:
    """The polygon's corners against highdicom's pixel-centre transform: half a pixel outside the corner pixels."""
    evidence = report.tissue[0].classes[0].evidence[0]
    polygon = named(document, "111030")[0]
    assert polygon.GraphicType == "POLYGON"
    assert polygon.ReferencedFrameOfReferenceUID == image.FrameOfReferenceUID
    corners_mm = np.array(polygon.GraphicData).reshape(-1, 3)
    assert np.array_equal(corners_mm[0], corners_mm[-1])
    origin = image.TotalPixelMatrixOriginSequence[0]
    spacing = [float(v) for v in image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing]
    centre_of = PixelToReferenceTransformer(
        [float(origin.XOffsetInSlideCoordinateSystem), float(origin.YOffsetInSlideCoordinateSystem), 0.0],
        [float(v) for v in image.ImageOrientationSlide],
        spacing,
    )
    box = evidence.box
    last = (box.x_px + box.width_px - 1, box.y_px + box.height_px - 1)
    middle_mm = centre_of(np.array([(box.x_px, box.y_px), last])).mean(axis=0)
    assert corners_mm[:4].mean(axis=0) == pytest.approx(middle_mm, abs=1e-5)
    sides_mm = np.linalg.norm(np.diff(corners_mm, axis=0), axis=1)
    assert sides_mm == pytest.approx([box.width_px * spacing[0]] * 4, rel=1e-4)


def test_without_origin_the_evidence_is_in_pixels(report: Report, image: pydicom.Dataset) -> None:
    source = deepcopy(image)
    source.TotalPixelMatrixOriginSequence = []
    regions = named(written(to_sr(report, [source])), "111030")
    box = report.tissue[0].classes[0].evidence[0].box
    assert regions[0].ValueType == "SCOORD"
    assert regions[0].PixelOriginInterpretation == "VOLUME"
    assert list(regions[0].GraphicData[:4]) == [box.x_px, box.y_px, box.x_px + box.width_px, box.y_px]


def _origin_without_x(image: pydicom.Dataset) -> None:
    del image.TotalPixelMatrixOriginSequence[0].XOffsetInSlideCoordinateSystem


@pytest.mark.parametrize(
    "spoil",
    [
        _origin_without_x,
        lambda image: setattr(image, "ImageOrientationSlide", [0, 0, 0, 0, 0, 0]),
        lambda image: setattr(image, "ImageOrientationSlide", [1, 0, 0, 1, 0, 0]),
        lambda image: setattr(image, "ImageOrientationSlide", [1, 0, 0]),
        lambda image: setattr(image, "FrameOfReferenceUID", ""),
    ],
)
def test_a_place_that_cannot_be_true_is_not_given_in_mm(
    report: Report, image: pydicom.Dataset, spoil: Callable[[pydicom.Dataset], None]
) -> None:
    source = deepcopy(image)
    spoil(source)
    assert {region.ValueType for region in named(written(to_sr(report, [source])), "111030")} == {"SCOORD"}


def test_observer_specimen_algorithm_and_source(
    document: pydicom.Dataset, report: Report, image: pydicom.Dataset
) -> None:
    specimen = image.SpecimenDescriptionSequence[0]
    assert [item.UID for item in named(document, "121012")] == [report.software.device_uid]
    assert [item.UID for item in named(document, "121039")] == [specimen.SpecimenUID]
    assert [item.TextValue for item in named(document, "111700")] == [image.ContainerIdentifier]
    assert {item.ConceptCodeSequence[0].CodeValue for item in named(document, "111000")} == {"123110"}
    parameters = "\n".join(item.TextValue for item in named(document, "111002"))
    for model in report.models:
        for part in (model.name, model.engine_sha256, model.weights_sha256, model.recipe_sha256, model.manifest_sha256):
            assert part in parameters
        assert f"{model.name} version {model.version}, {model.target} {model.precision}" in parameters
    sources = {item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in named(document, "121112")}
    assert sources == {image.SOPInstanceUID}
    scanner = document.ContributingEquipmentSequence[0]
    assert (scanner.Manufacturer, scanner.DeviceSerialNumber) == (image.Manufacturer, image.DeviceSerialNumber)
    evidence = document.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert evidence.SeriesInstanceUID == image.SeriesInstanceUID


def test_a_scanner_without_a_name_is_no_equipment(report: Report, image: pydicom.Dataset) -> None:
    source = deepcopy(image)
    del source.Manufacturer
    assert "ContributingEquipmentSequence" not in written(to_sr(report, [source]))


@pytest.mark.parametrize("uid", ["", ["1.2.3", "1.2.4"]])
def test_a_specimen_without_a_uid_of_its_own_is_not_named(report: Report, image: pydicom.Dataset, uid: object) -> None:
    source = deepcopy(image)
    source.SpecimenDescriptionSequence[0].SpecimenUID = uid
    assert named(written(to_sr(report, [source])), "121039") == []


def test_slides_of_one_study_share_a_document(
    two_slides: Report, image: pydicom.Dataset, second_image: pydicom.Dataset
) -> None:
    document = written(to_sr(two_slides, [second_image, image]))
    specimens = {item.UID for item in named(document, "121039")}
    assert specimens == {source.SpecimenDescriptionSequence[0].SpecimenUID for source in (image, second_image)}
    assert all(len(named(group, "121039")) == 1 for group in named(document, "125007"))
    assert "Slide 3 was not read: The series has no VOLUME image." in texts(document)


def test_each_study_has_its_document(second_study: tuple[Report, list[pydicom.Dataset]]) -> None:
    report, images = second_study
    documents = [to_sr(report, [image]) for image in images]
    assert [document.StudyInstanceUID for document in documents] == [image.StudyInstanceUID for image in images]
    assert len({document.SOPInstanceUID for document in documents}) == 2
    for document, image in zip(documents, images, strict=True):
        sources = {item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in named(document, "121112")}
        assert sources == {image.SOPInstanceUID}
    with pytest.raises(PathserveError, match="one study"):
        to_sr(report, images)


def test_a_slide_without_its_image_is_an_error(two_slides: Report, image: pydicom.Dataset) -> None:
    with pytest.raises(PathserveError, match="slide 2"):
        to_sr(two_slides, [image])
    with pytest.raises(PathserveError, match="one study"):
        to_sr(two_slides, [])


def test_hostile_text_is_tamed(report: Report, image: pydicom.Dataset, tmp_path: Path) -> None:
    finding = Finding(
        kind=FindingKind.QUALITY,
        code=Code("x" * 40, PRIVATE_SCHEME, "back\\slash " * 20),
        text="nul \0, bell \a, ünï, 山, \\ and a very long tail " + "z" * 100_000,
        series=None,
    )
    hostile = replace(
        report,
        findings=(finding,),
        order=replace(report.order, accession="A" * 40, settings=(("key\0", "<script>"),)),
        software=replace(report.software, manufacturer="m\\" * 80),
    )
    document = written(to_sr(hostile, [image]))
    assert len(document.Manufacturer) <= 64
    assert "nul , bell , ünï, 山, \\ and" in texts(document)
    assert "ReferencedRequestSequence" not in document


def test_hostile_header_is_copied_not_judged(report: Report, image: pydicom.Dataset) -> None:
    source = deepcopy(image)
    hostile = {
        "PatientName": "N" * 300 + "^<script>",
        "PatientID": "I" * 300,
        "PatientSex": "UNKNOWN",
        "PatientBirthDate": "01/02/1970",
        "StudyDate": "yesterday",
        "AccessionNumber": "A" * 40,
        "Manufacturer": "M" * 200,
        "SoftwareVersions": ["1", "V" * 100],
        "AcquisitionDateTime": "around noon",
        "TimezoneOffsetFromUTC": "CET",
    }
    for keyword, value in hostile.items():
        source.add(DataElement(tag_for_keyword(keyword), dictionary_VR(keyword), value, validation_mode=IGNORE))
    document = to_sr(report, [source])
    for keyword in ("PatientName", "PatientID", "PatientSex", "PatientBirthDate", "StudyDate", "AccessionNumber"):
        assert document[keyword].value == hostile[keyword]
    assert document.ContributingEquipmentSequence[0].Manufacturer == hostile["Manufacturer"]
    assert str(document.ContentTime) == "093015"
    assert hostile["PatientName"].encode() in file_bytes(document)


def test_time_never_comes_from_the_clock(report: Report, image: pydicom.Dataset) -> None:
    later = datetime(2031, 3, 4, 23, 59, 59, tzinfo=UTC)
    data = file_bytes(to_sr(replace(report, issued=later), [image]))
    assert b"20310304" in data
    assert datetime.now(UTC).strftime("%Y%m%d").encode() not in data
