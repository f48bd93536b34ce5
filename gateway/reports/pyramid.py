"""A level of a slide's pyramid as the ground of a segmentation or a map: its place on the slide, the tiles over it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from highdicom.sr import CodedConcept
from pydicom import Dataset
from pydicom.sr.codedict import codes

from gateway.domain.report import Report, SlideReading
from gateway.domain.slide import TileGrid
from gateway.domain.uids import derive_uid
from gateway.operations.errors import PathserveError
from gateway.reports import dicom_file
from gateway.reports.derived import ObjectName, copy_specimen, reference_to
from gateway.reports.sparse import Plane, decimal_string
from gateway.reports.spatial import Place, SlideSource, place_of, tile_under
from gateway.reports.tiled import Tiling

_LEAST_TILE_PX = 8
_NOMINAL_THICKNESS_MM = 0.001
_UPRIGHT = (1, 0, 0, 0, 1, 0)
_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")


@dataclass(frozen=True, slots=True, eq=False)
class PyramidLevel:
    """One level: the header of one of its instances, and the SOP instance UIDs of all (parts of a concatenation, focal
    planes)."""

    image: Dataset
    instances: tuple[str, ...]

    @property
    def tiling(self) -> Tiling:
        """How an image of the level's whole extent is cut into frames."""
        return Tiling.of(int(self.image.TotalPixelMatrixRows), int(self.image.TotalPixelMatrixColumns))


def level_of(source: SlideSource, index: int) -> PyramidLevel:
    """The level with that index in the source."""
    return PyramidLevel(source.levels[index], source.instances[index])


def map_level(report: Report, source: SlideSource) -> PyramidLevel:
    """The level that a map of tiles is drawn on: the coarsest that shows a tile 8 pixels wide, else the one read."""
    field_px = _grid_of(report, source).field_px
    across = int(source.image.TotalPixelMatrixColumns)
    wide_enough = [
        index
        for index, image in enumerate(source.levels)
        if field_px * int(image.TotalPixelMatrixColumns) >= _LEAST_TILE_PX * across
    ]
    coarsest = min(wide_enough, key=lambda index: _size(source.levels[index]), default=source.read)
    return level_of(source, coarsest)


@dataclass(frozen=True, slots=True, eq=False)
class TileRaster:
    """Which tile of the grid lies under each pixel of a level (the tile under the pixel's centre, as in the report's
    pictures), and so how a value of every tile is drawn."""

    tiling: Tiling
    rows_N: npt.NDArray[np.int32]
    columns_N: npt.NDArray[np.int32]
    shape: tuple[int, int]
    row_H: npt.NDArray[np.intp]
    column_W: npt.NDArray[np.intp]

    @classmethod
    def over(cls, level: PyramidLevel, report: Report, source: SlideSource) -> "TileRaster":
        """Raises PathserveError where the slide has no tiles."""
        grid, tiling = _grid_of(report, source), level.tiling
        placed = source.placed
        if placed is None:
            raise PathserveError("A slide without tiles has no map. Report this.")
        rows, columns = int(source.image.TotalPixelMatrixRows), int(source.image.TotalPixelMatrixColumns)
        return cls(
            tiling=tiling,
            rows_N=placed[0],
            columns_N=placed[1],
            shape=(grid.rows, grid.columns),
            row_H=tile_under(tiling.rows, rows, grid.field_px, grid.rows),
            column_W=tile_under(tiling.columns, columns, grid.field_px, grid.columns),
        )

    def frames(self, values_N: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
        """The level cut into frames, each pixel with its tile's value; 0 where no tile was read.

        `values_N` (N,): one value for each tile of the tile map.
        """
        # One row and column more than the grid has: index -1 finds nothing there.
        values_GG = np.zeros((self.shape[0] + 1, self.shape[1] + 1), values_N.dtype)
        values_GG[self.rows_N, self.columns_N] = values_N
        for rows, columns in self.tiling.windows():
            yield values_GG[np.ix_(self.row_H[rows], self.column_W[columns])]


def derived_image(
    sop_class_uid: str,
    modality: str,
    report: Report,
    level: PyramidLevel,
    name: ObjectName,
    derivation: CodedConcept,
    *,
    pixel_px: float = 1,
) -> Dataset:
    """An image that covers the whole of a level, up to its own modules and its pixels: where it lies and what it was
    derived from (PS3.3 C.7.4.1, C.7.6.16, C.7.6.17, C.8.12.14, C.12.2). Each of its pixels is a square of `pixel_px`
    pixels of the level."""
    image = level.image
    dataset = dicom_file.begin(sop_class_uid, modality)
    dataset.PatientOrientation = None
    dataset.BurnedInAnnotation = "NO"
    _set_history(dataset, image)
    _set_place(dataset, image, report, pixel_px)
    organization = Dataset()
    organization.DimensionOrganizationUID = derive_uid(report.analysis_id, f"{name.kind.extension}-tiles/{name.of}")
    dataset.DimensionOrganizationSequence = [organization]
    dataset.TotalPixelMatrixFocalPlanes = 1
    copy_specimen(dataset, image)
    dataset.SourceImageSequence = _references(level)
    series = Dataset()
    series.SeriesInstanceUID = image.SeriesInstanceUID
    series.ReferencedInstanceSequence = _references(level)
    dataset.ReferencedSeriesSequence = [series]
    shared = Dataset()
    shared.PixelMeasuresSequence = [_measures_of(image, pixel_px)]
    shared.DerivationImageSequence = [_derivation(level, derivation)]
    dataset.SharedFunctionalGroupsSequence = [shared]
    return dataset


def plane_of(dataset: Dataset) -> Plane:
    """Where a derived image lies, by its own header (PS3.3 C.7.6.2.1.1, C.8.12.4)."""
    origin = dataset.TotalPixelMatrixOriginSequence[0]
    spacing = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    return _plane(
        Place(
            x_mm=origin.XOffsetInSlideCoordinateSystem,
            y_mm=origin.YOffsetInSlideCoordinateSystem,
            z_mm=origin.ZOffsetInSlideCoordinateSystem,
            orientation=dataset.ImageOrientationSlide,
        ),
        spacing,
    )


def _plane(place: Place, spacing_mm: Sequence[float]) -> Plane:
    along_row_3, along_column_3 = np.array([float(value) for value in place.orientation]).reshape(2, 3)
    return Plane(
        origin_3=np.array([float(place.x_mm), float(place.y_mm), float(place.z_mm)]),
        row_step_3=along_column_3 * float(spacing_mm[0]),
        column_step_3=along_row_3 * float(spacing_mm[1]),
    )


def reading_of(report: Report, source: SlideSource) -> SlideReading:
    """What the report says of the slide. Raises PathserveError where that is nothing."""
    slide = report.slide_of(source.series)
    if slide is None:
        raise PathserveError("A slide that was read is not in the report. Run the analysis again.")
    return slide


def _grid_of(report: Report, source: SlideSource) -> TileGrid:
    grid = reading_of(report, source).grid
    if grid is None:
        raise PathserveError("The report does not say which grid a slide was read on. Run the analysis again.")
    return grid


def _size(image: Dataset) -> tuple[int, int]:
    return int(image.TotalPixelMatrixRows), int(image.TotalPixelMatrixColumns)


def _measures_of(image: Dataset, pixel_px: float) -> Dataset:
    """The Pixel Measures of a level (PS3.3 C.7.6.16.2.1), as received, or of larger pixels; a slide without spacing is
    never read. Where the thickness is unknown, a micrometre stands for it: readers refuse an image without one, or
    with 0."""
    received = image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures = Dataset()
    measures.SliceThickness = _NOMINAL_THICKNESS_MM
    for keyword in ("SliceThickness", "PixelSpacing"):
        if received.get(keyword):
            measures[keyword] = received[keyword]
    if pixel_px != 1:
        del measures.PixelSpacing  # it is the image's own element
        measures.PixelSpacing = [decimal_string(float(value) * pixel_px) for value in received.PixelSpacing]
    return measures


def _references(level: PyramidLevel) -> list[Dataset]:
    return [reference_to(level.image, uid) for uid in level.instances]


def _derivation(level: PyramidLevel, derivation: CodedConcept) -> Dataset:
    item = Dataset()
    item.DerivationCodeSequence = [derivation]
    item.SourceImageSequence = _references(level)
    for source in item.SourceImageSequence:
        source.PurposeOfReferenceCodeSequence = [
            CodedConcept.from_code(codes.DCM.SourceImageForImageProcessingOperation)
        ]
        source.SpatialLocationsPreserved = "YES"
    return item


def _set_history(dataset: Dataset, image: Dataset) -> None:
    """What was lost of the slide's pixels stays lost in what is derived from them (PS3.3 C.7.6.1.1.5)."""
    dataset.LossyImageCompression = "00"
    if image.get("LossyImageCompression") == "01":
        for keyword in _LOSSY:
            if keyword in image:
                dataset[keyword] = image[keyword]


def _set_place(dataset: Dataset, image: Dataset, report: Report, pixel_px: float) -> None:
    """The level's place on the slide. Where its header gives none that can be true, the image gets a frame of reference
    of its own, with the matrix's corner as its origin: pixels agree with the level's, and no place in mm is claimed.

    The origin is the centre of the first pixel: that of a larger pixel lies further in.
    """
    place = place_of(image)
    if place is None:
        place = Place(x_mm=0.0, y_mm=0.0, z_mm=0.0, orientation=_UPRIGHT)
        dataset.FrameOfReferenceUID = derive_uid(report.analysis_id, f"frame-of-reference/{image.SeriesInstanceUID}")
        dataset.PositionReferenceIndicator = None
    else:
        dataset.FrameOfReferenceUID = image.FrameOfReferenceUID
        dataset.PositionReferenceIndicator = image.get("PositionReferenceIndicator") or "SLIDE_CORNER"
    origin = Dataset()
    origin.XOffsetInSlideCoordinateSystem = place.x_mm
    origin.YOffsetInSlideCoordinateSystem = place.y_mm
    origin.ZOffsetInSlideCoordinateSystem = place.z_mm
    if pixel_px != 1:
        plane = _plane(place, image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing)
        centre_3 = plane.origin_3 + (plane.row_step_3 + plane.column_step_3) * ((pixel_px - 1) / 2)
        for axis, value in zip("XYZ", centre_3.tolist(), strict=True):
            setattr(origin, f"{axis}OffsetInSlideCoordinateSystem", decimal_string(value))
    dataset.TotalPixelMatrixOriginSequence = [origin]
    dataset.ImageOrientationSlide = list(place.orientation)
