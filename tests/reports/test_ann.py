import subprocess
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import pydicom
import pytest
from highdicom.ann import MicroscopyBulkSimpleAnnotations, annread
from highdicom.color import CIELabColor

from gateway.domain.codes import NO_UNITS, Code
from gateway.domain.report import Report
from gateway.operations.errors import PathserveError
from gateway.reports import SlideSource
from gateway.reports.ann import OUTLINE_AREA, REGION_NUMBER, Group, write_annotations, write_groups
from gateway.reports.derived import Kind, ObjectName
from gateway.reports.regions import regions_of
from gateway.reports.sr_concepts import AREA, MEAN_PROBABILITY, TISSUE
from gateway.reports.wording import RESEARCH_USE
from tests.reports.conftest import COMMITTED, source_of, volume_headers
from tests.reports.drawn import POOR, REAL_SLIDES, drawn, poor, real_levels, ring_area
from tests.support.dciodvfy import needs_dciodvfy, validate


def written(folder: Path, report: Report, source: SlideSource) -> MicroscopyBulkSimpleAnnotations:
    write_annotations(folder / "regions.ann.dcm", report, source)
    return annread(folder / "regions.ann.dcm")


def measured(group, name: Code) -> np.ndarray:
    names, values, _ = group.get_measurements()
    return values[:, [found.value for found in names].index(name.code)]


@pytest.fixture(scope="module")
def slide() -> tuple[Report, SlideSource]:
    return drawn(volume_headers(COMMITTED), patch=20)


@pytest.mark.validators
@needs_dciodvfy
@pytest.mark.parametrize("name", REAL_SLIDES)
def test_what_is_read_back_is_what_was_found(name: str, tmp_path: Path) -> None:
    report, source = drawn(real_levels(name))
    document = written(tmp_path, report, source)
    assert validate(tmp_path / "regions.ann.dcm") == []
    dumped = subprocess.run(["dcmdump", str(tmp_path / "regions.ann.dcm")], capture_output=True, text=True, check=True)
    assert dumped.stdout.count("(006a,0003)") == len(document.AnnotationGroupSequence)  # a UID each
    assert (document.AnnotationCoordinateType, document.PixelOriginInterpretation) == ("2D", "VOLUME")
    assert [item.ReferencedSOPInstanceUID for item in document.ReferencedImageSequence] == [source.image.SOPInstanceUID]
    (series,) = document.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == source.image.SeriesInstanceUID
    assert list(series.ReferencedInstanceSequence) == list(document.ReferencedImageSequence)
    classes = {tissue.index: tissue for tissue in report.tissue[0].classes}
    expected = groupby(regions_of(report, source, simple=True), key=lambda region: region.index)
    for (index, regions), group in zip(expected, document.AnnotationGroupSequence, strict=True):
        regions, tissue = list(regions), classes[index]
        assert group.label == tissue.code.display
        assert group.annotated_property_type.value == tissue.code.code
        assert group.annotated_property_category.value == TISSUE.code
        shown = CIELabColor.from_dicom_value(group.RecommendedDisplayCIELabValue).to_rgb(clip=True)
        assert shown == pytest.approx([int(tissue.color[at : at + 2], 16) for at in (1, 3, 5)], abs=1)
        drawn_there = group.get_graphic_data("2D")
        assert group.NumberOfAnnotations == len(drawn_there) == len(regions)
        for polygon, region in zip(drawn_there, regions, strict=True):
            assert polygon.tolist() == region.rings[0].tolist()
        assert measured(group, MEAN_PROBABILITY) == pytest.approx([region.mean_probability for region in regions])
        assert measured(group, REGION_NUMBER).tolist() == [region.number for region in regions]
        assert measured(group, OUTLINE_AREA) == pytest.approx([region.area_mm2 for region in regions])
        assert measured(group, AREA).sum() == pytest.approx(tissue.area_mm2, rel=1e-5)
        assert [unit.value for unit in group.get_measurements()[2]] == ["1", "mm2", "mm2", "1"]
        assert group.AnnotationGroupDescription == RESEARCH_USE
        algorithm = group.AnnotationGroupAlgorithmIdentificationSequence[0]
        assert all(model.engine_sha256 in algorithm.AlgorithmParameters for model in report.models)


def test_no_hole_is_filled(slide: tuple[Report, SlideSource], tmp_path: Path) -> None:
    report, source = slide
    with_holes = [region for region in regions_of(report, source) if len(region.rings) > 1]
    assert with_holes
    groups = {group.label: group for group in written(tmp_path, report, source).AnnotationGroupSequence}
    labels = {tissue.index: tissue.code.display for tissue in report.tissue[0].classes}
    for region in with_holes:
        group = groups[labels[region.index]]
        mine = np.flatnonzero(measured(group, REGION_NUMBER) == region.number)
        polygons = group.get_graphic_data("2D")
        assert len(mine) > 1
        assert sum(ring_area(polygons[part]) for part in mine) == sum(ring_area(ring) for ring in region.rings)


@pytest.mark.validators
@needs_dciodvfy
@pytest.mark.parametrize("name", POOR)
def test_a_poor_header_still_gives_an_object(name: str, tmp_path: Path) -> None:
    report, source = poor(name)
    document = written(tmp_path, report, source)
    assert validate(tmp_path / "regions.ann.dcm") == []
    for keyword in ("PatientName", "PatientID", "ContainerIdentifier", "FrameOfReferenceUID"):
        assert document.get(keyword) == source.image.get(keyword)
    assert len(document.get("SpecimenDescriptionSequence", [])) == len(
        source.image.get("SpecimenDescriptionSequence", [])
    )
    assert len(document.AnnotationGroupSequence) == len({region.index for region in regions_of(report, source)})


def test_encoding_twice_gives_the_same_bytes(slide: tuple[Report, SlideSource], tmp_path: Path) -> None:
    for name in "ab":
        write_annotations(tmp_path / name, *slide)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_names_come_from_the_analysis(slide: tuple[Report, SlideSource], tmp_path: Path) -> None:
    report, source = slide
    one = written(tmp_path, report, source)
    other = written(tmp_path, replace(report, analysis_id="other"), source)
    name = ObjectName(report.analysis_id, Kind.ANN, source.series)
    assert (one.SOPInstanceUID, one.SeriesInstanceUID) == (name.sop_instance_uid, name.series_instance_uid)
    uids = {group.AnnotationGroupUID for document in (one, other) for group in document.AnnotationGroupSequence}
    assert len(uids) == 2 * len(one.AnnotationGroupSequence)


def test_outside_the_intended_use_the_code_is_exploratory(tmp_path: Path) -> None:
    report, source = drawn(volume_headers(COMMITTED), exploratory=True)
    document = written(tmp_path, report, source)
    assert document.SeriesDescription == "Tissue classification, research use, exploratory: regions"
    for group in document.AnnotationGroupSequence:
        assert group.label.startswith("Tissue pattern")
        assert group.AnnotationPropertyTypeCodeSequence[0].CodeValue.startswith("pattern-")
        assert "Exploratory" in group.AnnotationGroupDescription
        assert group.AnnotationGroupAlgorithmIdentificationSequence[0].AlgorithmName == report.protocol


def test_without_a_region_there_is_no_object(report: Report, image: pydicom.Dataset, tmp_path: Path) -> None:
    with pytest.raises(PathserveError, match="at least one"):
        write_annotations(tmp_path / "none.ann.dcm", report, source_of(image, None))
    assert not (tmp_path / "none.ann.dcm").exists()


def group_of(points: np.ndarray, **changes: object) -> Group:
    values = {
        "uid": "2.25.5",
        "label": "Nucleus",
        "description": "",
        "graphic": "POINT",
        "points_P2": points,
        "first_N": np.arange(len(points)),
        "category": Code("91723000", "SCT", "Anatomical Structure"),
        "property_type": Code("84640000", "SCT", "Nucleus"),
        "color": "#00ff00",
        "measurements": [(MEAN_PROBABILITY, NO_UNITS, np.linspace(0, 1, len(points)))],
    }
    return Group(**{**values, **changes})


POINTS = np.array([[0.1, 0.2], [3, 4], [2**24 + 1, 5]])


@pytest.mark.validators
@needs_dciodvfy
@pytest.mark.parametrize(
    ("points", "attribute"),
    [(POINTS, "DoublePointCoordinatesData"), (np.round(POINTS[:2]), "PointCoordinatesData")],
)
def test_no_coordinate_loses_a_bit(
    points: np.ndarray, attribute: str, report: Report, image: pydicom.Dataset, tmp_path: Path
) -> None:
    group = group_of(points)
    write_groups(tmp_path / "p.dcm", report, image, ObjectName("a", Kind.ANN, "b"), [group])
    read = annread(tmp_path / "p.dcm").AnnotationGroupSequence[0]
    assert attribute in read
    assert np.concatenate(read.get_graphic_data("2D")).tolist() == points.tolist()
    assert validate(tmp_path / "p.dcm") == []


@pytest.mark.validators
@needs_dciodvfy
def test_polygons_of_any_length_and_scores_that_lack(report: Report, image: pydicom.Dataset, tmp_path: Path) -> None:
    triangle, square = [[0, 0], [1.5, 0], [0, 1]], [[5, 5], [6, 5], [6, 6], [5, 6.25]]
    measurements = [(MEAN_PROBABILITY, NO_UNITS, np.array([0.5, np.nan]))]
    points = np.array([*triangle, *square])
    group = group_of(points, graphic="POLYGON", first_N=np.array([0, 3]), measurements=measurements)
    write_groups(tmp_path / "p.dcm", report, image, ObjectName("a", Kind.ANN, "b"), [group])
    read = annread(tmp_path / "p.dcm").AnnotationGroupSequence[0]
    assert [polygon.tolist() for polygon in read.get_graphic_data("2D")] == [triangle, square]
    assert measured(read, MEAN_PROBABILITY) == pytest.approx([0.5, np.nan], nan_ok=True)
    assert validate(tmp_path / "p.dcm") == []


@pytest.mark.parametrize(
    "group",
    [
        group_of(POINTS, first_N=np.array([0, 1])),
        group_of(POINTS, first_N=np.array([0, 1, 3])),
        group_of(POINTS, graphic="POLYGON", first_N=np.array([0, 1]), measurements=[]),
        group_of(POINTS, graphic="POLYGON", first_N=np.array([1]), measurements=[]),
        group_of(POINTS, measurements=[(MEAN_PROBABILITY, NO_UNITS, np.zeros(2))]),
        group_of(np.array([[0, np.nan]])),
        group_of(POINTS[:0]),
        group_of(np.zeros((2, 3))),
    ],
)
def test_points_that_make_no_annotations_are_refused(
    group: Group, report: Report, image: pydicom.Dataset, tmp_path: Path
) -> None:
    with pytest.raises(PathserveError):
        write_groups(tmp_path / "p.dcm", report, image, ObjectName("a", Kind.ANN, "b"), [group])
    assert not list(tmp_path.iterdir())
