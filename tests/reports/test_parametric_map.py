"""The heat map: the best probability of each tile that was read, told apart from what was not read."""

import json
import shutil
import subprocess
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from highdicom.pm.sop import pmread
from pydicom.sr.codedict import codes

from gateway.domain.report import Report
from gateway.operations.errors import PathserveError
from gateway.reports import SlideSource
from gateway.reports.derived import Kind, ObjectName
from gateway.reports.parametric_map import NOT_READ, write_parametric_map
from gateway.reports.pyramid import map_level
from tests.conftest import data_path
from tests.reports.conftest import COMMITTED, reading_of, report_of, result_of, single, source_of, volume_headers
from tests.support.dciodvfy import needs_dciodvfy, validate


def case_of(folder: Path) -> tuple[Report, SlideSource]:
    """Random probabilities, 0 and 1 among them, on the real headers of all levels of a slide."""
    levels = volume_headers(folder)
    slide = reading_of(levels[0])
    result = result_of(slide)
    source = source_of(levels[0], result)
    tiles = source.tiles
    assert tiles is not None
    probabilities_NC = np.random.default_rng(0).random(tiles.probabilities_NC.shape, np.float32) ** 2
    probabilities_NC[0], probabilities_NC[1] = 0, 1
    tiles = replace(tiles, probabilities_NC=probabilities_NC)
    return report_of([slide], [result]), replace(source, levels=tuple(levels), instances=single(levels), tiles=tiles)


def stored(path: Path) -> np.ndarray:
    """The stored values of the total pixel matrix, as highdicom reads them."""
    return pmread(path).get_total_pixel_matrix(apply_real_world_transform=False, apply_modality_transform=False)


@pytest.fixture(scope="module")
def case() -> tuple[Report, SlideSource]:
    return case_of(COMMITTED)


@pytest.fixture(scope="module")
def written(case: tuple[Report, SlideSource], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pm") / "tissue-1.pm.dcm"
    write_parametric_map(path, *case)
    return path


@pytest.mark.parametrize("name", ["cmu_small_he", "metaplasia_he", "csf_breast_pap"])
def test_each_tile_has_its_best_probability(name: str, tmp_path: Path) -> None:
    report, source = case_of(COMMITTED if name == COMMITTED.name else data_path("slides", name))
    path = tmp_path / "tissue-1.pm.dcm"
    write_parametric_map(path, report, source)
    values = stored(path)
    real = pmread(path).get_total_pixel_matrix(apply_real_world_transform=True)
    scale = source.image.TotalPixelMatrixRows / values.shape[0]
    field_px, tiles = report.slides[0].grid.field_px, source.tiles
    read = np.zeros(values.shape, bool)
    for row, column, best in zip(tiles.rows_N, tiles.columns_N, tiles.probabilities_NC.max(axis=1), strict=True):
        y, x = (int((at + 0.5) * field_px / scale) for at in (row, column))
        assert real[y, x] == pytest.approx(best, abs=1.01 / 65535)
        top, left = (round(at * field_px / scale) for at in (row, column))
        read[top : round((row + 1) * field_px / scale), left : round((column + 1) * field_px / scale)] = True
    assert abs(int((values > 0).sum()) - int(read.sum())) <= 0.02 * read.sum()


def test_a_probability_of_nothing_is_not_taken_for_unread(case: tuple[Report, SlideSource], written: Path) -> None:
    _, source = case
    values = stored(written)
    assert source.tiles.probabilities_NC[0].max() == 0
    assert (values[5, 5], values[5, 18], values[-1, -1]) == (1, 65535, NOT_READ)
    dataset = pydicom.dcmread(written)
    assert dataset.PixelPaddingValue == NOT_READ
    assert dataset.RecognizableVisualFeatures == "NO"  # no one is known by it
    assert "0: not read" in dataset.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0].LUTExplanation


def test_only_the_report_s_classes_count(case: tuple[Report, SlideSource], tmp_path: Path) -> None:
    """A class that the report does not speak of lends its probability to nothing."""
    report, source = case
    result = report.tissue[0]
    fewer = replace(report, tissue=(replace(result, classes=result.classes[:2]),))
    write_parametric_map(tmp_path / "x", fewer, source)
    best = source.tiles.probabilities_NC[:, :2].max(axis=1)
    assert stored(tmp_path / "x")[5, 31] == pytest.approx(best[2] * 65535, abs=1)


def test_it_says_what_its_values_mean(written: Path) -> None:
    mapping = pydicom.dcmread(written).SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert mapping.RealWorldValueSlope == 1 / 65535
    assert mapping.RealWorldValueIntercept == 0
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "1"
    quantity = mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0]
    assert (quantity.CodeValue, quantity.CodeMeaning) == ("122157", "Probability")
    shown = pmread(written).get_total_pixel_matrix(
        apply_real_world_transform=False, apply_voi_transform=True, voi_output_range=(0.0, 1.0)
    )
    assert np.allclose(shown, stored(written) / 65535, atol=1e-9)  # the window shows all values


def test_it_lies_on_the_level_of_the_segmentation(case: tuple[Report, SlideSource], written: Path) -> None:
    report, source = case
    dataset = pydicom.dcmread(written)
    level = map_level(report, source)
    assert (dataset.TotalPixelMatrixRows, dataset.TotalPixelMatrixColumns) == (level.tiling.rows, level.tiling.columns)
    assert dataset.FrameOfReferenceUID == level.image.FrameOfReferenceUID
    assert [item.ReferencedSOPInstanceUID for item in dataset.SourceImageSequence] == [level.image.SOPInstanceUID]
    assert dataset.SOPInstanceUID == ObjectName(report.analysis_id, Kind.PM, source.series).sop_instance_uid
    assert dataset.ContainerIdentifier == level.image.ContainerIdentifier


@needs_dciodvfy
@pytest.mark.validators
@pytest.mark.parametrize("name", ["cmu_small_he", "metaplasia_he", "csf_breast_pap"])
def test_the_validator_finds_no_error(name: str, tmp_path: Path) -> None:
    path = tmp_path / "tissue-1.pm.dcm"
    write_parametric_map(path, *case_of(COMMITTED if name == COMMITTED.name else data_path("slides", name)))
    assert validate(path) == []


@pytest.mark.validators
@pytest.mark.skipif(not shutil.which("dcm2json"), reason="needs dcmtk")
def test_dcmtk_reads_it(written: Path) -> None:
    as_json = json.loads(subprocess.run(["dcm2json", written], check=True, capture_output=True).stdout)
    assert as_json["00480006"]["Value"] == [139]


def test_twice_the_same_bytes(case: tuple[Report, SlideSource], written: Path, tmp_path: Path) -> None:
    write_parametric_map(tmp_path / "again", *case)
    assert (tmp_path / "again").read_bytes() == written.read_bytes()


def _no_place(image: pydicom.Dataset) -> None:
    del image.FrameOfReferenceUID, image.ImageOrientationSlide, image.TotalPixelMatrixOriginSequence


def _no_device_or_patient(image: pydicom.Dataset) -> None:
    for keyword in ("Manufacturer", "DeviceSerialNumber", "PatientName", "PatientID", "AccessionNumber"):
        delattr(image, keyword)


def _long_and_foreign(image: pydicom.Dataset) -> None:
    image.PatientName, image.ContainerIdentifier = "Müller^Jürgen=山田^太郎", "C" * 64


@needs_dciodvfy
@pytest.mark.validators
@pytest.mark.parametrize("spoil", [_no_place, _no_device_or_patient, _long_and_foreign])
def test_a_poor_header_still_gives_a_map(
    spoil: Callable[[pydicom.Dataset], None], case: tuple[Report, SlideSource], written: Path, tmp_path: Path
) -> None:
    report, source = case
    level = deepcopy(source.levels[-1])
    level.SpecificCharacterSet = "ISO_IR 192"
    spoil(level)
    path = tmp_path / "tissue-1.pm.dcm"
    write_parametric_map(path, report, replace(source, levels=(*source.levels[:-1], level)))
    assert validate(path) == []
    assert np.array_equal(stored(path), stored(written))
    assert pydicom.dcmread(path).get("PatientName", "") == level.get("PatientName", "")


def test_a_slide_without_tiles_has_none(case: tuple[Report, SlideSource], tmp_path: Path) -> None:
    report, source = case
    with pytest.raises(PathserveError, match="without a result"):
        write_parametric_map(tmp_path / "x", report, replace(source, tiles=None))
    with pytest.raises(PathserveError, match="without a result"):
        write_parametric_map(tmp_path / "x", replace(report, tissue=()), source)


def test_a_full_disk_is_an_os_error(case: tuple[Report, SlideSource]) -> None:
    with pytest.raises(OSError, match="No space left"):
        write_parametric_map(Path("/dev/full"), *case)


def test_it_says_all_that_highdicom_says(case: tuple[Report, SlideSource], written: Path) -> None:
    """Element by element against an object that highdicom makes of the same values."""
    report, source = case
    image = deepcopy(map_level(report, source).image)
    image.Rows, image.Columns, image.NumberOfFrames = 192, 144, 1
    theirs = hd.pm.ParametricMap(
        source_images=[image],
        pixel_array=stored(written).astype(np.uint16)[None],
        series_instance_uid="2.25.1",
        series_number=1,
        sop_instance_uid="2.25.2",
        instance_number=1,
        manufacturer="m",
        manufacturer_model_name="m",
        software_versions="1",
        device_serial_number="1",
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[
            hd.pm.RealWorldValueMapping(
                "Probability", "p", codes.UCUM.NoUnits, (0, 65535), slope=1 / 65535, intercept=0
            )
        ],
        voi_lut_transformations=[hd.VOILUTTransformation(window_center=32768, window_width=65536)],
        tile_pixel_array=True,
        tile_size=(192, 144),
        dimension_organization_type="TILED_FULL",
    )
    ours = pydicom.dcmread(written)
    assert {element.keyword for element in theirs} - {element.keyword for element in ours} == set()
    for keyword in (
        "SOPClassUID", "Modality", "ImageType", "Rows", "Columns", "NumberOfFrames", "BitsAllocated", "BitsStored",
        "HighBit", "PixelRepresentation", "PhotometricInterpretation", "DimensionOrganizationType",
        "FrameOfReferenceUID", "TotalPixelMatrixRows", "TotalPixelMatrixColumns", "TotalPixelMatrixFocalPlanes",
        "TotalPixelMatrixOriginSequence", "ImageOrientationSlide", "PresentationLUTShape", "PixelPresentation",
        "ContentQualification", "LossyImageCompression", "SourceImageSequence", "ReferencedSeriesSequence", "PixelData",
    ):  # fmt: skip
        assert ours[keyword].value == theirs[keyword].value, keyword
    mine, other = (dataset.SharedFunctionalGroupsSequence[0] for dataset in (ours, theirs))
    for keyword in ("PixelMeasuresSequence", "FrameVOILUTSequence", "PixelValueTransformationSequence"):
        assert mine[keyword].value == other[keyword].value, keyword
    assert {element.keyword for element in other} <= {element.keyword for element in mine}
