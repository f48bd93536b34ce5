"""What was found by words as DICOM segmentations: read by highdicom, each mask is where and what it was."""

import tracemalloc
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from highdicom.seg import segread

from gateway.domain.report import Report
from gateway.operations.errors import PathserveError
from gateway.reports import SlideSource, result_objects, tiled
from gateway.reports.masks_seg import found_in, write_mask_seg
from gateway.reports.sparse import Frames, Plane, decimal_string, write_sparse
from gateway.reports.tiled import Tiling
from tests.reports.worded import DrawnMasks, worded


@pytest.fixture(scope="module")
def case() -> tuple[Report, SlideSource]:
    return worded()


@pytest.fixture(scope="module")
def apart() -> tuple[Report, SlideSource]:
    return worded(overlap=False)


def written(case: tuple[Report, SlideSource], grid: int, form: str, folder: Path) -> Path:
    report, source = case
    path = folder / f"segments-1-{grid + 1}.seg.dcm"
    write_mask_seg(path, report, source, source.masks[grid], segmentation_type=form)
    return path


@pytest.fixture(scope="module")
def binary(case: tuple[Report, SlideSource], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("binary")
    return [written(case, grid, "BINARY", folder) for grid in (0, 1)]


def matrix(path: Path, masks: DrawnMasks) -> np.ndarray:
    """The total pixel matrix (rows, columns, segments)."""
    read = segread(path)
    return read.get_total_pixel_matrix(combine_segments=False, rescale_fractional=False, dtype=np.uint8)


@pytest.mark.parametrize("grid", [0, 1])
def test_each_mask_is_what_was_found(grid: int, case: tuple[Report, SlideSource], binary: list[Path]) -> None:
    masks = case[1].masks[grid]
    read = matrix(binary[grid], masks)
    assert read.shape == (masks.rows, masks.columns, len(masks.indices))
    for at, index in enumerate(masks.indices):
        assert np.array_equal(read[..., at], masks.mask(index))


@pytest.mark.parametrize("grid", [0, 1])
def test_segments_say_what_was_asked_and_what_was_found(
    grid: int, case: tuple[Report, SlideSource], binary: list[Path]
) -> None:
    report, source = case
    dataset = pydicom.dcmread(binary[grid])
    by_index = {each.index: each for each in report.segmentations[0].segments}
    asked = [by_index[index] for index in source.masks[grid].indices]
    assert [segment.SegmentLabel for segment in dataset.SegmentSequence] == [each.triple for each in asked]
    for segment, each in zip(dataset.SegmentSequence, asked, strict=True):
        assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == each.code.code
        assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue == each.category.code
        assert segment.TrackingID == f"{report.analysis_id}/slide-1/segment-{each.index + 1}"
        if each.present:
            assert "% of the tissue that was read at this resolution." in segment.SegmentDescription
        else:
            assert segment.SegmentDescription == "Looked for, not found."


def test_only_tiles_in_which_something_was_found_are_stored(
    case: tuple[Report, SlideSource], binary: list[Path]
) -> None:
    masks = case[1].masks[0]
    dataset = pydicom.dcmread(binary[0])
    places = [
        (
            item.SegmentIdentificationSequence[0].ReferencedSegmentNumber,
            item.PlanePositionSlideSequence[0].RowPositionInTotalImagePixelMatrix,
            item.PlanePositionSlideSequence[0].ColumnPositionInTotalImagePixelMatrix,
        )
        for item in dataset.PerFrameFunctionalGroupsSequence
    ]
    assert dataset.DimensionOrganizationType == "TILED_SPARSE"
    assert dataset.NumberOfFrames == len(places) == sum(len(masks.occupied(index)) for index in masks.indices)
    assert places == [
        (number, row * 512 + 1, column * 512 + 1)
        for number, index in enumerate(masks.indices, 1)
        for row, column in masks.occupied(index).tolist()
    ]
    assert {number for number, _, _ in places} == {1, 2}  # what is absent has a segment and no frame
    indices = [item.FrameContentSequence[0].DimensionIndexValues for item in dataset.PerFrameFunctionalGroupsSequence]
    assert len({tuple(each) for each in indices}) == len(indices)
    assert np.min(indices) == 1


def test_a_mask_of_larger_pixels_covers_the_same_place(case: tuple[Report, SlideSource], binary: list[Path]) -> None:
    """The outer corner of the first pixel is the level's, though its centre lies further in."""
    image = case[1].image
    level, coarse = (np.array(spacing_of(each)) for each in (image, pydicom.dcmread(binary[1])))
    assert coarse == pytest.approx(level * 2)
    corners = [corner_of(each) for each in (image, *map(pydicom.dcmread, binary))]
    assert corners[1] == pytest.approx(corners[0], abs=1e-9)
    assert corners[2] == pytest.approx(corners[0], abs=1e-9)
    assert pydicom.dcmread(binary[1]).FrameOfReferenceUID == image.FrameOfReferenceUID


def spacing_of(image: pydicom.Dataset) -> list[float]:
    return [float(value) for value in image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing]


def corner_of(image: pydicom.Dataset) -> np.ndarray:
    origin = image.TotalPixelMatrixOriginSequence[0]
    rows, columns = np.array(image.ImageOrientationSlide, np.float64).reshape(2, 3)
    down, across = spacing_of(image)
    at = [float(origin[f"{axis}OffsetInSlideCoordinateSystem"].value) for axis in "XY"]
    return np.array(at) - (rows * across / 2 + columns * down / 2)[:2]


def test_each_frame_says_where_it_lies_in_mm(case: tuple[Report, SlideSource], binary: list[Path]) -> None:
    image = case[1].image
    corner = corner_of(image)
    rows, columns = np.array(image.ImageOrientationSlide, np.float64).reshape(2, 3)
    for path in binary:
        dataset = pydicom.dcmread(path)
        down, across = spacing_of(dataset)
        for item in dataset.PerFrameFunctionalGroupsSequence:
            [place] = item.PlanePositionSlideSequence
            column = place.ColumnPositionInTotalImagePixelMatrix - 0.5
            row = place.RowPositionInTotalImagePixelMatrix - 0.5
            expected = corner + (rows * across * column + columns * down * row)[:2]
            found = float(place.XOffsetInSlideCoordinateSystem), float(place.YOffsetInSlideCoordinateSystem)
            assert found == pytest.approx(tuple(expected), abs=1e-6)


def test_fractions_are_the_probabilities_of_the_same_tiles(case: tuple[Report, SlideSource], tmp_path: Path) -> None:
    masks = case[1].masks[1]
    path = written(case, 1, "FRACTIONAL", tmp_path)
    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    assert (dataset.SegmentationFractionalType, dataset.MaximumFractionalValue) == ("PROBABILITY", 255)
    expected = np.zeros((masks.rows, masks.columns), np.uint8)
    for row, column in masks.occupied(3).tolist():
        tile = slice(row * 512, row * 512 + 512), slice(column * 512, column * 512 + 512)
        expected[tile] = masks.fractions_by_index[3][tile]
    assert np.array_equal(matrix(path, masks)[..., 0], expected)


def test_what_overlaps_says_so(
    case: tuple[Report, SlideSource], apart: tuple[Report, SlideSource], binary: list[Path], tmp_path: Path
) -> None:
    assert pydicom.dcmread(binary[0]).SegmentsOverlap == "YES"
    assert pydicom.dcmread(written(apart, 0, "BINARY", tmp_path)).SegmentsOverlap == "NO"
    # Masks that lie beside each other, and probabilities that lie in each other.
    report, source = case
    left, right = np.zeros((2, source.masks[0].rows, source.masks[0].columns), np.uint8)
    left[:9, :20], left[:9, 20:25] = 200, 40
    right[:9, 20:30] = 200
    beside = report, replace(source, masks=(DrawnMasks(source.series, 0, 1.0, 512, {0: left, 1: right}),))
    assert pydicom.dcmread(written(beside, 0, "LABELMAP", tmp_path)).SegmentationType == "LABELMAP"
    assert pydicom.dcmread(written(beside, 0, "FRACTIONAL", tmp_path)).SegmentsOverlap == "YES"


def test_a_label_map_where_nothing_overlaps(apart: tuple[Report, SlideSource], tmp_path: Path) -> None:
    masks = apart[1].masks[0]
    path = written(apart, 0, "LABELMAP", tmp_path)
    read = segread(path)
    assert read.SegmentationType == "LABELMAP"
    expected = np.zeros((masks.rows, masks.columns), np.uint8)
    for number, index in enumerate(masks.indices, 1):
        expected[masks.mask(index)] = number
    assert np.array_equal(read.get_total_pixel_matrix(combine_segments=True), expected)


def test_what_overlaps_is_no_label_map(case: tuple[Report, SlideSource], tmp_path: Path, binary: list[Path]) -> None:
    path = written(case, 0, "LABELMAP", tmp_path)
    assert path.read_bytes() == binary[0].read_bytes()


def test_masks_too_large_for_bits_are_compressed(
    case: tuple[Report, SlideSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = case[1].masks[0]
    of_bits = sum(len(masks.occupied(index)) for index in masks.indices) * 512 * 512 // 8
    monkeypatch.setattr(tiled, "_MOST_NATIVE_BYTES", of_bits)
    assert pydicom.dcmread(written(case, 0, "BINARY", tmp_path)).SegmentationType == "BINARY"
    monkeypatch.setattr(tiled, "_MOST_NATIVE_BYTES", of_bits - 1)
    for form in ("BINARY", "LABELMAP"):  # these overlap
        path = written(case, 0, form, tmp_path)
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        assert (dataset.SegmentationType, dataset.SegmentationFractionalType) == ("FRACTIONAL", "OCCUPANCY")
        assert (dataset.ContentLabel, dataset.SegmentsOverlap) == ("SEGMENTS", "YES")
        read = matrix(path, masks)
        for at, index in enumerate(masks.indices):
            assert np.array_equal(read[..., at], masks.mask(index) * 255)


def test_where_nothing_is_found_nothing_is_written(tmp_path: Path) -> None:
    report, source = worded(found=False)
    assert not any(found_in(masks) for masks in source.masks)
    assert {each.seg for each in report.segmentations[0].segments} == {None}
    kinds = [item.file for item in result_objects(report.slides, [source])]
    assert "segments-1.geojson" in kinds
    assert not [name for name in kinds if name.endswith((".seg.dcm", ".ann.dcm"))]
    with pytest.raises(PathserveError, match="at least one frame"):
        write_mask_seg(tmp_path / "x", report, source, source.masks[0], segmentation_type="BINARY")


def test_a_slide_that_is_not_placed_gets_a_frame_of_reference_of_its_own(
    case: tuple[Report, SlideSource], tmp_path: Path
) -> None:
    report, source = case
    image = deepcopy(source.image)
    del image.FrameOfReferenceUID
    unplaced = report, replace(source, levels=(image, *source.levels[1:]))
    for grid, half_px in ((0, 0.0), (1, 0.5)):
        path = written(unplaced, grid, "BINARY", tmp_path)
        dataset = pydicom.dcmread(path)
        first = dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSlideSequence[0]
        assert dataset.FrameOfReferenceUID != source.image.FrameOfReferenceUID
        assert float(dataset.TotalPixelMatrixOriginSequence[0].XOffsetInSlideCoordinateSystem) == pytest.approx(
            half_px * spacing_of(image)[1], abs=1e-9
        )
        column = (first.ColumnPositionInTotalImagePixelMatrix - 1) * spacing_of(dataset)[1]
        assert float(first.XOffsetInSlideCoordinateSystem) == pytest.approx(half_px * spacing_of(image)[1] + column)
        masks = source.masks[grid]
        assert np.array_equal(matrix(path, masks)[..., 0], masks.mask(masks.indices[0]))


def test_prompts_that_the_report_does_not_know(case: tuple[Report, SlideSource], tmp_path: Path) -> None:
    report, source = case
    with pytest.raises(PathserveError, match="without a result"):
        write_mask_seg(
            tmp_path / "x", replace(report, segmentations=()), source, source.masks[0], segmentation_type="BINARY"
        )


def test_memory_does_not_grow_with_the_frames(tmp_path: Path) -> None:
    tiling = Tiling(rows=8 * 50, columns=8 * 50, tile_rows=8, tile_columns=8)
    places = np.stack(np.divmod(np.arange(2500), 50), axis=1)
    frames = Frames(tiles_F2=places, segments_F=np.ones(len(places), np.int64))
    plane = Plane(origin_3=np.zeros(3), row_step_3=np.array([0, 1e-3, 0]), column_step_3=np.array([1e-3, 0, 0]))
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = pydicom.uid.SegmentationStorage
    dataset.SOPInstanceUID = "2.25.1"
    dataset.DimensionOrganizationSequence = [pydicom.Dataset()]
    dataset.DimensionOrganizationSequence[0].DimensionOrganizationUID = "2.25.2"
    pixels = (np.full((8, 8), number % 2, np.uint8) for number in range(len(places)))
    tracemalloc.start()
    write_sparse(tmp_path / "many.dcm", dataset, tiling, plane, frames, pixels, bits=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5e6  # as Python objects these groups take ten times as much
    assert (tmp_path / "many.dcm").stat().st_size > 2500 * 200


@pytest.mark.parametrize("value", [0.0, -25.0123456789012345, 1e-7 / 3, 123456.123456789, -1.23456789012e-12])
def test_decimal_strings_fit(value: float) -> None:
    text = decimal_string(value)
    assert len(text) <= 16
    assert float(text) == pytest.approx(value, rel=1e-8)
