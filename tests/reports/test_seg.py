"""Segmentations: what the report says of each place, read back by others, on real slides and on poor headers."""

import json
import shutil
import subprocess
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from highdicom.seg import segread
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.sr.codedict import codes
from pydicom.valuerep import DSfloat

from gateway.domain.codes import PRIVATE_SCHEME, Code
from gateway.domain.report import Report
from gateway.operations.errors import PathserveError
from gateway.reports import UNCERTAIN, SlideSource, to_sr
from gateway.reports.derived import Kind, ObjectName
from gateway.reports.pyramid import level_of, map_level
from gateway.reports.seg import Segment, write_seg, write_segments
from tests.conftest import data_path
from tests.reports.conftest import (
    COMMITTED,
    reading_of,
    report_of,
    result_of,
    single,
    source_of,
    volume_headers,
)
from tests.support.dciodvfy import needs_dciodvfy, validate

TISSUE = Code("85756007", "SCT", "Tissue")


def case_of(folder: Path, *, scale: float = 1.0, exploratory: bool = False) -> tuple[Report, SlideSource]:
    """A made-up result on the real headers of all levels of a slide."""
    levels = volume_headers(folder)
    slide = reading_of(levels[0])
    result = result_of(slide, scale=scale, exploratory=exploratory)
    source = source_of(levels[0], result)
    return report_of([slide], [result]), replace(source, levels=tuple(levels), instances=single(levels))


def slide_folder(name: str) -> Path:
    return COMMITTED if name == COMMITTED.name else data_path("slides", name)


def expected(source: SlideSource, report: Report, shape: tuple[int, int]) -> np.ndarray:
    """The class of each pixel of a level, +2 (UNCERTAIN is 1, nothing 0), tile by tile: a pixel belongs to the tile
    that its centre lies in."""
    grid = report.slides[0].grid
    y = (np.arange(shape[0]) + 0.5) * source.image.TotalPixelMatrixRows / shape[0]
    x = (np.arange(shape[1]) + 0.5) * source.image.TotalPixelMatrixColumns / shape[1]
    drawn = np.zeros(shape, int)
    tiles = source.tiles
    for row, column, found in zip(tiles.rows_N, tiles.columns_N, tiles.classes_N, strict=True):
        inside_y = (y >= row * grid.field_px) & (y < (row + 1) * grid.field_px)
        inside_x = (x >= column * grid.field_px) & (x < (column + 1) * grid.field_px)
        drawn[np.ix_(inside_y, inside_x)] = found + 2
    return drawn


def masks(path: Path) -> np.ndarray:
    """The total pixel matrix (rows, columns, segments) as highdicom reads it."""
    return segread(path).get_total_pixel_matrix(combine_segments=False)


@pytest.fixture(scope="module")
def case() -> tuple[Report, SlideSource]:
    return case_of(COMMITTED)


@pytest.fixture(scope="module")
def written(case: tuple[Report, SlideSource], tmp_path_factory: pytest.TempPathFactory) -> pydicom.Dataset:
    path = tmp_path_factory.mktemp("seg") / "tissue-1.seg.dcm"
    write_seg(path, *case, segmentation_type="BINARY")
    return pydicom.dcmread(path)


@pytest.mark.parametrize("segmentation_type", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("name", ["cmu_small_he", "metaplasia_he", "csf_breast_pap"])
def test_the_classes_lie_where_their_tiles_lie(name: str, segmentation_type: str, tmp_path: Path) -> None:
    report, source = case_of(slide_folder(name))
    path = tmp_path / "tissue-1.seg.dcm"
    write_seg(path, report, source, segmentation_type=segmentation_type)
    read = masks(path)
    drawn = expected(source, report, read.shape[:2])
    indices = [*(tissue.index for tissue in report.tissue[0].classes), UNCERTAIN]
    assert read.shape[2] == len(indices)
    for segment, index in enumerate(indices):
        assert np.array_equal(read[..., segment], drawn == index + 2)
    assert (drawn == 0).any()  # what was not read lies in no segment
    assert read.sum() == (drawn > 0).sum()


@needs_dciodvfy
@pytest.mark.validators
@pytest.mark.parametrize("segmentation_type", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("name", ["cmu_small_he", "metaplasia_he", "csf_breast_pap"])
def test_the_validator_finds_no_error(name: str, segmentation_type: str, tmp_path: Path) -> None:
    path = tmp_path / "tissue-1.seg.dcm"
    write_seg(path, *case_of(slide_folder(name)), segmentation_type=segmentation_type)
    assert validate(path) == []


@pytest.mark.validators
@pytest.mark.skipif(not shutil.which("dcm2json"), reason="needs dcmtk")
def test_dcmtk_reads_it(case: tuple[Report, SlideSource], tmp_path: Path) -> None:
    path = tmp_path / "tissue-1.seg.dcm"
    write_seg(path, *case, segmentation_type="BINARY")
    as_json = json.loads(subprocess.run(["dcm2json", path], check=True, capture_output=True).stdout)
    assert as_json["00620001"]["Value"] == ["BINARY"]
    dumped = subprocess.run(["dcmdump", path], check=True, capture_output=True, text=True).stdout
    assert "TILED_FULL" in dumped


def test_segments_say_what_they_show(case: tuple[Report, SlideSource], written: pydicom.Dataset) -> None:
    report, _ = case
    classes = report.tissue[0].classes
    items = list(written.SegmentSequence)
    assert [item.SegmentNumber for item in items] == list(range(1, len(classes) + 2))
    for item, tissue in zip(items[:-1], classes, strict=True):
        shown = item.SegmentedPropertyTypeCodeSequence[0]
        assert (shown.CodeValue, shown.CodingSchemeDesignator) == (tissue.code.code, tissue.code.scheme)
        assert item.SegmentLabel == tissue.code.display
        assert item.SegmentedPropertyCategoryCodeSequence[0].CodeValue == TISSUE.code
        rgb = hd.color.CIELabColor(*_lab(item.RecommendedDisplayCIELabValue)).to_rgb(clip=True)
        assert np.abs(np.array(rgb) - [int(tissue.color[at : at + 2], 16) for at in (1, 3, 5)]).max() <= 1
        assert ("not found" in item.SegmentDescription) == (tissue.tiles == 0)
        assert item.SegmentAlgorithmType == "AUTOMATIC"
        algorithm = item.SegmentationAlgorithmIdentificationSequence[0]
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == (report.protocol, report.software.version)
        assert algorithm.AlgorithmFamilyCodeSequence[0].CodeValue == "123110"
        assert all(model.engine_sha256 in algorithm.AlgorithmParameters for model in report.models)
    assert items[-1].SegmentedPropertyTypeCodeSequence[0].CodeValue == "uncertain"
    assert "0.6" in items[-1].SegmentDescription


def _lab(stored: list[int]) -> tuple[float, float, float]:
    lightness, a, b = stored
    return lightness / 65535 * 100, a / 65535 * 255 - 128, b / 65535 * 255 - 128


def test_segments_are_tracked_as_in_the_structured_report(
    case: tuple[Report, SlideSource], written: pydicom.Dataset
) -> None:
    report, source = case
    groups = hd.sr.srread(_bytes(to_sr(report, [source.image]))).content.get_image_measurement_groups()
    told = {(group.tracking_identifier, group.tracking_uid) for group in groups}
    tracked = {(item.TrackingID, item.TrackingUID) for item in written.SegmentSequence}
    assert len(tracked) == len(written.SegmentSequence)
    assert tracked <= told


def _bytes(dataset: pydicom.Dataset) -> BytesIO:
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    buffer.seek(0)
    return buffer


def test_it_belongs_to_a_level_of_the_slide(case: tuple[Report, SlideSource], written: pydicom.Dataset) -> None:
    report, source = case
    level = source.levels[-1]  # 200 pixels of the first level are 12.5 of this one
    assert (written.TotalPixelMatrixRows, written.TotalPixelMatrixColumns) == (186, 139)
    for keyword in ("FrameOfReferenceUID", "ImageOrientationSlide", "ContainerIdentifier", "PatientID"):
        assert written[keyword].value == level[keyword].value, keyword
    origin, at = written.TotalPixelMatrixOriginSequence[0], level.TotalPixelMatrixOriginSequence[0]
    assert origin.XOffsetInSlideCoordinateSystem == at.XOffsetInSlideCoordinateSystem
    assert origin.YOffsetInSlideCoordinateSystem == at.YOffsetInSlideCoordinateSystem
    shared = written.SharedFunctionalGroupsSequence[0]
    spacing = level.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    assert shared.PixelMeasuresSequence[0].PixelSpacing == spacing
    series = written.ReferencedSeriesSequence[0]
    assert series.SeriesInstanceUID == level.SeriesInstanceUID
    for references in (
        series.ReferencedInstanceSequence,
        written.SourceImageSequence,
        shared.DerivationImageSequence[0].SourceImageSequence,
    ):
        assert [item.ReferencedSOPInstanceUID for item in references] == [level.SOPInstanceUID]
    name = ObjectName(report.analysis_id, Kind.SEG, source.series)
    assert written.SOPInstanceUID == written.file_meta.MediaStorageSOPInstanceUID == name.sop_instance_uid
    assert written.LossyImageCompression == "01"  # as the slide's pixels that it was derived from
    assert written.BurnedInAnnotation == "NO"
    assert written.SegmentsOverlap == "NO"  # a tile has one class
    (derivation,) = shared.DerivationImageSequence
    assert derivation.DerivationCodeSequence[0].CodeValue == "113076"  # segmentation
    assert derivation.SourceImageSequence[0].SpatialLocationsPreserved == "YES"
    (scheme,) = written.CodingSchemeIdentificationSequence
    assert scheme.CodingSchemeDesignator == PRIVATE_SCHEME


def test_the_place_is_the_slide_s_in_every_direction(case: tuple[Report, SlideSource], tmp_path: Path) -> None:
    report, source = case
    image = deepcopy(source.image)
    origin = image.TotalPixelMatrixOriginSequence[0]
    origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = 11.5, 22.25
    origin.ZOffsetInSlideCoordinateSystem = 0.125
    image.ImageOrientationSlide = [0, 1, 0, -1, 0, 0]
    write_seg(tmp_path / "x", report, replace(source, levels=(image,)), segmentation_type="BINARY")
    read = pydicom.dcmread(tmp_path / "x")
    assert read.TotalPixelMatrixOriginSequence == image.TotalPixelMatrixOriginSequence
    assert read.ImageOrientationSlide == image.ImageOrientationSlide


def test_all_instances_of_a_level_are_its_sources(case: tuple[Report, SlideSource]) -> None:
    report, source = case
    parts = (source.levels[-1].SOPInstanceUID, "2.25.7")
    level = map_level(report, replace(source, instances=(*source.instances[:-1], parts)))
    assert level.image is source.levels[-1]
    assert level.instances == parts


@pytest.mark.parametrize(("field_px", "rows"), [(200, 186), (100, 371), (20, 1484), (5, 2967)])
def test_the_level_is_the_coarsest_that_shows_a_tile(
    field_px: int, rows: int, case: tuple[Report, SlideSource]
) -> None:
    report, source = case
    slide = replace(report.slides[0], grid=replace(report.slides[0].grid, field_px=field_px))
    assert map_level(replace(report, slides=(slide,)), source).tiling.rows == rows


def test_areas_are_those_of_the_report(case: tuple[Report, SlideSource], tmp_path: Path) -> None:
    """A segment's area is that of its whole tiles, up to half a pixel at each border; the report counts the part of it
    that lies under tissue."""
    report, source = case_of(COMMITTED, scale=0.5)
    path = tmp_path / "tissue-1.seg.dcm"
    write_seg(path, report, source, segmentation_type="BINARY")
    read = pydicom.dcmread(path)
    height_mm, width_mm = read.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    tile_px = report.slides[0].grid.field_px * read.TotalPixelMatrixRows / source.image.TotalPixelMatrixRows
    areas_mm2 = masks(path).sum(axis=(0, 1)) * float(height_mm) * float(width_mm)
    assert set(source.tiles.tissue_N) == {0.5}
    for tissue, area_mm2 in zip(report.tissue[0].classes, areas_mm2, strict=False):
        assert area_mm2 * 0.5 == pytest.approx(tissue.area_mm2, rel=2 / tile_px)
    assert areas_mm2.sum() * 0.5 == pytest.approx(report.tissue[0].area_mm2, rel=0.02)


def test_a_model_of_many_classes(case: tuple[Report, SlideSource], tmp_path: Path) -> None:
    report, source = case
    (result,) = report.tissue
    classes = tuple(replace(result.classes[0], index=index) for index in range(300))
    many = replace(source.tiles, classes_N=(np.arange(len(source.tiles.classes_N)) * 3 % 300).astype(np.int32))
    report, source = replace(report, tissue=(replace(result, classes=classes),)), replace(source, tiles=many)
    write_seg(tmp_path / "x", report, source, segmentation_type="LABELMAP")
    read = segread(tmp_path / "x").get_total_pixel_matrix(combine_segments=True)
    drawn = expected(source, report, read.shape)
    assert np.array_equal(read, np.where(drawn == 0, 0, drawn - 1))  # the first class is segment 1
    assert read.max() > 255


def test_outside_the_intended_use_it_is_exploratory(tmp_path: Path) -> None:
    report, source = case_of(COMMITTED, exploratory=True)
    path = tmp_path / "tissue-1.seg.dcm"
    write_seg(path, report, source, segmentation_type="BINARY")
    written = pydicom.dcmread(path)
    assert "exploratory" in written.SeriesDescription
    assert "exploratory" in written.ContentDescription
    for item in written.SegmentSequence:
        assert item.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == PRIVATE_SCHEME
        assert "adenocarcinoma" not in str(item).lower()


@pytest.mark.parametrize("segmentation_type", ["BINARY", "LABELMAP"])
def test_twice_the_same_bytes(case: tuple[Report, SlideSource], segmentation_type: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_seg(tmp_path / name, *case, segmentation_type=segmentation_type)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def _without(*keywords: str) -> Callable[[pydicom.Dataset], None]:
    def spoil(image: pydicom.Dataset) -> None:
        for keyword in keywords:
            delattr(image, keyword)

    return spoil


def _with(keyword: str, value: object) -> Callable[[pydicom.Dataset], None]:
    return lambda image: setattr(image, keyword, value)


def _several_specimens(image: pydicom.Dataset) -> None:
    other = deepcopy(image.SpecimenDescriptionSequence[0])
    other.SpecimenUID, other.SpecimenIdentifier = "2.25.31", "A-2"
    image.SpecimenDescriptionSequence.append(other)


def _no_x(image: pydicom.Dataset) -> None:
    del image.TotalPixelMatrixOriginSequence[0].XOffsetInSlideCoordinateSystem


def _endless_x(image: pydicom.Dataset) -> None:
    endless = DSfloat("inf", validation_mode=pydicom.config.IGNORE)
    image.TotalPixelMatrixOriginSequence[0].XOffsetInSlideCoordinateSystem = endless


def _no_thickness(image: pydicom.Dataset) -> None:
    del image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness


def _flat(image: pydicom.Dataset) -> None:
    image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness = 0


_SPECIMEN = ("ContainerIdentifier", "SpecimenDescriptionSequence")
_PATIENT = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID")


@pytest.mark.parametrize(
    ("spoil", "placed", "lacking"),
    [
        (_without("FrameOfReferenceUID"), False, []),
        (_with("FrameOfReferenceUID", ""), False, []),
        (_without("ImageOrientationSlide"), False, []),
        (_with("ImageOrientationSlide", [0, 0, 0, 0, 0, 0]), False, []),
        (_with("ImageOrientationSlide", [1, 0, 0, 1, 0, 0]), False, []),
        (_with("ImageOrientationSlide", [1, 0, 0]), False, []),
        (_with("TotalPixelMatrixOriginSequence", []), False, []),
        (_no_x, False, []),
        (_endless_x, False, []),
        (_without("PositionReferenceIndicator"), True, []),
        (_without(*_SPECIMEN), True, list(_SPECIMEN)),
        (_without(*_PATIENT), True, []),
        (_without("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions"), True, []),
        (_without("LossyImageCompression", "LossyImageCompressionMethod", "LossyImageCompressionRatio"), True, []),
        (_without("OpticalPathSequence", "ImageType", "DimensionOrganizationSequence"), True, []),
        (_with("PatientName", "Yamada^Tarou=山田^太郎=やまだ^たろう"), True, []),
        (_with("ContainerIdentifier", "C" * 64), True, []),
        (_with("ManufacturerModelName", "M" * 64), True, []),
        (_several_specimens, True, []),
        (_no_thickness, True, []),
        (_flat, True, []),
    ],
)
@needs_dciodvfy
@pytest.mark.validators
def test_a_poor_header_still_gives_a_segmentation(
    spoil: Callable[[pydicom.Dataset], None],
    placed: bool,
    lacking: list[str],
    case: tuple[Report, SlideSource],
    tmp_path: Path,
) -> None:
    """What the slide does not say of its specimen is not made up."""
    report, source = case
    image = deepcopy(source.image)
    image.SpecificCharacterSet = "ISO_IR 192"
    spoil(image)
    path = tmp_path / "tissue-1.seg.dcm"
    poor = replace(source, levels=(image,))
    write_seg(path, report, poor, segmentation_type="BINARY")
    found = validate(path)
    assert [message.split("<")[1].split(">")[0] for message in found] == lacking
    read = pydicom.dcmread(path)
    assert (read.FrameOfReferenceUID == source.image.FrameOfReferenceUID) is placed
    drawn = expected(source, report, (read.TotalPixelMatrixRows, read.TotalPixelMatrixColumns))
    assert np.array_equal(masks(path)[..., 0], drawn == 2)
    assert read.get("PatientName", "") == image.get("PatientName", "")


def test_a_slide_without_tiles_has_none(case: tuple[Report, SlideSource], tmp_path: Path) -> None:
    report, source = case
    with pytest.raises(PathserveError, match="without a result"):
        write_seg(tmp_path / "x", report, replace(source, tiles=None), segmentation_type="BINARY")
    with pytest.raises(PathserveError, match="without a result"):
        write_seg(tmp_path / "x", replace(report, tissue=()), source, segmentation_type="BINARY")
    with pytest.raises(PathserveError, match="not in the report"):
        write_seg(tmp_path / "x", report, replace(source, series="2.25.5"), segmentation_type="BINARY")


def _segments(count: int) -> list[Segment]:
    return [
        Segment(
            label=f"segment {number}",
            category=TISSUE,
            property_type=Code(f"{number}", PRIVATE_SCHEME, f"number {number}"),
            description="",
            color="#336699",
        )
        for number in range(1, count + 1)
    ]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 1100),
    columns=st.integers(1, 600),
    count=st.integers(1, 4),
    segmentation_type=st.sampled_from(["BINARY", "FRACTIONAL", "LABELMAP"]),
    seed=st.integers(0, 99),
)
def test_any_masks_are_read_back(
    case: tuple[Report, SlideSource],
    tmp_path: Path,
    rows: int,
    columns: int,
    count: int,
    segmentation_type: str,
    seed: int,
) -> None:
    """Random masks that may overlap, of any size: written tile by tile, read whole by highdicom."""
    report, source = case
    image = deepcopy(source.image)
    image.TotalPixelMatrixRows, image.TotalPixelMatrixColumns = rows, columns
    level = level_of(replace(source, levels=(image,)), 0)
    random = np.random.default_rng(seed)
    top = {"BINARY": 2, "FRACTIONAL": 256, "LABELMAP": count + 1}[segmentation_type]
    pixels = random.integers(0, top, (1 if segmentation_type == "LABELMAP" else count, rows, columns), np.uint8)
    path = tmp_path / "any.seg.dcm"
    write_segments(
        path,
        report,
        level,
        ObjectName(report.analysis_id, Kind.SEG, source.series),
        _segments(count),
        (channel[window] for channel in pixels for window in level.tiling.windows()),
        segmentation_type=segmentation_type,
    )
    read = segread(path)
    if segmentation_type == "LABELMAP":
        assert np.array_equal(read.get_total_pixel_matrix(combine_segments=True), pixels[0])
    else:
        whole = read.get_total_pixel_matrix(rescale_fractional=False)
        assert np.array_equal(np.moveaxis(whole, -1, 0), pixels)


@needs_dciodvfy
@pytest.mark.validators
@pytest.mark.parametrize("segmentation_type", ["BINARY", "FRACTIONAL"])
@pytest.mark.parametrize("count", [1, 2])
def test_the_validator_finds_no_error_in_any_mask(
    segmentation_type: str, count: int, case: tuple[Report, SlideSource], tmp_path: Path
) -> None:
    report, source = case
    level = map_level(report, source)
    write_segments(
        tmp_path / "any.seg.dcm",
        report,
        level,
        ObjectName(report.analysis_id, Kind.SEG, source.series),
        _segments(count),
        [np.ones((level.tiling.rows, level.tiling.columns), np.uint8)] * count,
        segmentation_type=segmentation_type,
    )
    assert validate(tmp_path / "any.seg.dcm") == []


def test_more_labels_than_a_byte_holds(case: tuple[Report, SlideSource], tmp_path: Path) -> None:
    report, source = case
    level = level_of(source, len(source.levels) - 1)
    labels = np.arange(186 * 139, dtype=np.uint16).reshape(186, 139) % 301
    write_segments(
        tmp_path / "many.seg.dcm",
        report,
        level,
        ObjectName(report.analysis_id, Kind.SEG, source.series),
        _segments(300),
        [labels],
        segmentation_type="LABELMAP",
    )
    assert np.array_equal(segread(tmp_path / "many.seg.dcm").get_total_pixel_matrix(combine_segments=True), labels)
    with pytest.raises(PathserveError, match="1 to 65535 segments"):
        write_segments(
            tmp_path / "none.seg.dcm",
            report,
            level,
            ObjectName(report.analysis_id, Kind.SEG, source.series),
            [],
            [labels],
            segmentation_type="LABELMAP",
        )


@pytest.mark.parametrize("segmentation_type", ["BINARY", "FRACTIONAL", "LABELMAP"])
@pytest.mark.parametrize("count", [1, 2])
def test_it_says_all_that_highdicom_says(
    segmentation_type: str, count: int, case: tuple[Report, SlideSource], tmp_path: Path
) -> None:
    """Element by element against an object that highdicom makes of the same masks."""
    report, source = case
    level = map_level(report, source)
    image = deepcopy(level.image)
    image.Rows, image.Columns, image.NumberOfFrames = 192, 144, 1
    pixels = np.random.default_rng(0).integers(0, 2, (count, 186, 139), np.uint8)
    pixels[1:] &= 1 - pixels[0]
    labels = (pixels * np.arange(1, count + 1, dtype=np.uint8)[:, None, None]).sum(axis=0, dtype=np.uint8)
    algorithm = hd.AlgorithmIdentificationSequence("tissue", codes.cid7162.ArtificialIntelligence, "1")
    theirs = hd.seg.Segmentation(
        source_images=[image],
        pixel_array=labels[None] if segmentation_type == "LABELMAP" else np.moveaxis(pixels, 0, -1)[None],
        segmentation_type=segmentation_type,
        segment_descriptions=[
            hd.seg.SegmentDescription(
                number,
                f"segment {number}",
                codes.SCT.Tissue,
                codes.SCT.Tissue,
                "AUTOMATIC",
                algorithm,
                display_color=hd.color.CIELabColor.from_string("#336699"),
            )
            for number in range(1, count + 1)
        ],
        series_instance_uid="2.25.1",
        series_number=1,
        sop_instance_uid="2.25.2",
        instance_number=1,
        manufacturer="m",
        manufacturer_model_name="m",
        software_versions="1",
        device_serial_number="1",
        tile_pixel_array=True,
        tile_size=(192, 144),
        dimension_organization_type="TILED_FULL",
        omit_empty_frames=False,
    )
    path = tmp_path / "x.seg.dcm"
    write_segments(
        path,
        report,
        level,
        ObjectName(report.analysis_id, Kind.SEG, source.series),
        _segments(count),
        [labels] if segmentation_type == "LABELMAP" else list(pixels * (255 if segmentation_type[0] == "F" else 1)),
        segmentation_type=segmentation_type,
    )
    ours = pydicom.dcmread(path)
    assert {str(element.keyword) for element in theirs} - {str(element.keyword) for element in ours} == set()
    for keyword in (
        "SOPClassUID", "Modality", "ImageType", "Rows", "Columns", "NumberOfFrames", "BitsAllocated", "BitsStored",
        "HighBit", "PixelRepresentation", "PhotometricInterpretation", "DimensionOrganizationType",
        "FrameOfReferenceUID", "TotalPixelMatrixRows", "TotalPixelMatrixColumns", "TotalPixelMatrixFocalPlanes",
        "TotalPixelMatrixOriginSequence", "ImageOrientationSlide", "PresentationLUTShape", "SegmentationType",
        "SegmentationFractionalType",
        "MaximumFractionalValue", "LossyImageCompression", "LossyImageCompressionMethod", "PixelPaddingValue",
        "SourceImageSequence", "ReferencedSeriesSequence",
    ):  # fmt: skip
        assert ours.get(keyword) == theirs.get(keyword), keyword
    mine, other = (dataset.SharedFunctionalGroupsSequence[0] for dataset in (ours, theirs))
    for element in other:
        assert mine[element.tag].value == element.value
    for item, their_item in zip(ours.SegmentSequence, theirs.SegmentSequence, strict=True):
        assert {element.keyword for element in their_item} <= {element.keyword for element in item}
    if segmentation_type == "BINARY":
        assert ours.PixelData == theirs.PixelData
    assert np.array_equal(ours.pixel_array, theirs.pixel_array)
