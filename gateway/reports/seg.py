"""Report -> DICOM Segmentation (PS3.3 A.51) or Label Map Segmentation (A.90): where on the slide each class was found.

`write_segments` writes any masks that cover a level, from tiles that need not be in memory; `write_seg` those of the
tissue classes. The masks of prompts, which leave most of a slide empty, are `masks_seg`'s.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.sr import CodedConcept
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import SegmentationStorage

from gateway.domain.codes import Code
from gateway.domain.report import Report, TissueResult
from gateway.operations.errors import PathserveError
from gateway.reports import sr_concepts as concept
from gateway.reports import wording
from gateway.reports.derived import Kind, ObjectName, algorithm_of, complete, tracking_of
from gateway.reports.pyramid import PyramidLevel, TileRaster, derived_image, map_level, reading_of
from gateway.reports.spatial import UNCERTAIN, SlideSource
from gateway.reports.tiled import Bits, Frame, write_tiled

LABEL_MAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"
_UNCERTAIN_COLOR = "#cdcdcd"
_MOST_SEGMENTS = 0xFFFF

SegmentationType = Literal["BINARY", "FRACTIONAL", "LABELMAP"]
Overlap = Literal["YES", "NO", "UNDEFINED"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One segment (PS3.3 C.8.20.2): what it shows, in words, codes (CID 7150 and 7151) and #RRGGBB. `tracking`: the
    identifier and UID by which other objects speak of the same thing, where they do."""

    label: str
    category: Code
    property_type: Code
    description: str
    color: str
    tracking: tuple[str, str] | None = None


def write_seg(
    path: Path, report: Report, source: SlideSource, *, segmentation_type: Literal["BINARY", "LABELMAP"]
) -> None:
    """Write where on a slide each tissue class was found: a segment a class, and one for what stayed uncertain.

    Over the whole extent of the level of `pyramid.map_level`. What was not read lies in no segment. Raises
    PathserveError where the slide has no tiles or no result, OSError.
    """
    result = report.tissue_of(reading_of(report, source).series)
    if result is None or source.tiles is None:
        raise PathserveError("A slide without a result has no segmentation. Report this.")
    level = map_level(report, source)
    indices = [*(tissue.index for tissue in result.classes), UNCERTAIN]
    numbers_N = np.zeros(len(source.tiles.classes_N), np.uint8 if len(indices) <= 255 else np.uint16)
    for number, index in enumerate(indices, 1):
        numbers_N[source.tiles.classes_N == index] = number
    raster = TileRaster.over(level, report, source)
    labels = segmentation_type == "LABELMAP"
    write_segments(
        path,
        report,
        level,
        ObjectName(report.analysis_id, Kind.SEG, source.series),
        list(_segments(report, source, result)),
        raster.frames(numbers_N) if labels else _masks(raster, numbers_N, len(indices)),
        segmentation_type=segmentation_type,
        overlap="NO",
    )


def write_segments(
    path: Path,
    report: Report,
    level: PyramidLevel,
    name: ObjectName,
    segments: Sequence[Segment],
    frames: Iterable[Frame],
    *,
    segmentation_type: SegmentationType,
    overlap: Overlap = "UNDEFINED",
) -> None:
    """Write masks over a level, tile by tile: `frames` yields those of `level.tiling` (see `write_tiled`).

    BINARY: 0 and 1, all tiles of the first segment, then the second's. FRACTIONAL: the same with probabilities as uint8
    0..255. LABELMAP: each tile once, with 0 or the number of a segment (from 1). BINARY is stored as bits, the others
    as JPEG-LS. Raises PathserveError, OSError.
    """
    labels = segmentation_type == "LABELMAP"
    dataset = segmentation(report, level, name, segments, segmentation_type=segmentation_type, overlap=overlap)
    if len(segments) == 1 and not labels:
        identification = Dataset()
        identification.ReferencedSegmentNumber = 1
        dataset.SharedFunctionalGroupsSequence[0].SegmentIdentificationSequence = [identification]
    write_tiled(
        path,
        dataset,
        level.tiling,
        frames,
        bits=bits_of(segmentation_type, len(segments)),
        channels=1 if labels else len(segments),
        jpeg_ls=segmentation_type != "BINARY",
    )


def segmentation(
    report: Report,
    level: PyramidLevel,
    name: ObjectName,
    segments: Sequence[Segment],
    *,
    segmentation_type: SegmentationType,
    overlap: Overlap,
    pixel_px: float = 1,
) -> Dataset:
    """A segmentation over a level up to its frames (PS3.3 C.8.20.2); `pixel_px` as in `derived_image`.

    Raises PathserveError where there are no segments, or too many.
    """
    if not 0 < len(segments) <= _MOST_SEGMENTS:
        raise PathserveError(f"A segmentation has 1 to {_MOST_SEGMENTS} segments, not {len(segments)}. Report this.")
    labels = segmentation_type == "LABELMAP"
    derivation = CodedConcept.from_code(codes.cid7203.SegmentationImageDerivation)
    sop_class = LABEL_MAP_STORAGE if labels else SegmentationStorage
    dataset = derived_image(sop_class, "SEG", report, level, name, derivation, pixel_px=pixel_px)
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.ContentLabel = "SEGMENTS"
    dataset.ContentDescription = concept.long_string(wording.document_title(report))
    dataset.ContentCreatorName = None
    dataset.SegmentationType = segmentation_type
    dataset.SegmentsOverlap = "NO" if labels else overlap
    dataset.PresentationLUTShape = "IDENTITY"
    if segmentation_type == "FRACTIONAL":
        dataset.SegmentationFractionalType = "PROBABILITY"
        dataset.MaximumFractionalValue = 255
    algorithm = algorithm_of(report)
    dataset.SegmentSequence = [_item(number, segment, algorithm) for number, segment in enumerate(segments, 1)]
    if labels:
        dataset.SegmentSequence.insert(0, _background(algorithm))
        dataset.PixelPaddingValue = 0
    complete(dataset, report, level.image, name)
    return dataset


def bits_of(segmentation_type: SegmentationType, segments: int) -> Bits:
    """The bits that each form takes for a pixel."""
    if segmentation_type == "BINARY":
        return 1
    return 8 if segmentation_type == "FRACTIONAL" or segments <= 255 else 16


def _masks(raster: TileRaster, numbers_N: npt.NDArray[Any], segments: int) -> Iterator[Frame]:
    for number in range(1, segments + 1):
        yield from raster.frames(numbers_N == number)


def _segments(report: Report, source: SlideSource, result: TissueResult) -> Iterator[Segment]:
    slide = next(number for number, reading in enumerate(report.slides, 1) if reading.series == source.series)

    def extent(tiles: int, area_mm2: float, share: float) -> str:
        return f"{tiles} tiles, {wording.area(area_mm2)} mm², {wording.percent(share)} % of the tissue that was read."

    for tissue in result.classes:
        found = extent(tissue.tiles, tissue.area_mm2, tissue.share) if tissue.tiles else "Looked for, not found."
        yield Segment(
            label=tissue.code.display,
            category=concept.TISSUE,
            property_type=tissue.code,
            description=found,
            color=tissue.color,
            tracking=tracking_of(report, slide, f"class-{tissue.index}"),
        )
    uncertain = extent(result.uncertain_tiles, result.uncertain_area_mm2, result.uncertain_share)
    yield Segment(
        label=wording.UNCERTAIN,
        category=concept.TISSUE,
        property_type=concept.UNCERTAIN,
        description="Read, but no class reached the operating point "
        f"(probability >= {result.min_probability:g}): " + (uncertain if result.uncertain_tiles else "nothing."),
        color=_UNCERTAIN_COLOR,
        tracking=tracking_of(report, slide, "uncertain"),
    )


def _item(number: int, segment: Segment, algorithm: AlgorithmIdentificationSequence) -> Dataset:
    """One item of the Segment Sequence."""
    item = Dataset()
    item.SegmentNumber = number
    item.SegmentLabel = concept.long_string(segment.label)
    item.SegmentDescription = concept.plain(segment.description)
    item.SegmentedPropertyCategoryCodeSequence = [concept.coded(segment.category)]
    item.SegmentedPropertyTypeCodeSequence = [concept.coded(segment.property_type)]
    item.SegmentAlgorithmType = "AUTOMATIC"
    item.SegmentAlgorithmName = algorithm[0].AlgorithmName
    item.SegmentationAlgorithmIdentificationSequence = algorithm
    item.RecommendedDisplayCIELabValue = list(CIELabColor.from_string(segment.color).value)
    if segment.tracking is not None:
        item.TrackingID, item.TrackingUID = segment.tracking
    return item


def _background(algorithm: AlgorithmIdentificationSequence) -> Dataset:
    """Number 0 of a label map: what belongs to no segment (PS3.3 C.8.20.2.3.3)."""
    background = Code(codes.DCM.Background.value, "DCM", codes.DCM.Background.meaning)
    return _item(
        0,
        Segment(
            label=background.display,
            category=background,
            property_type=background,
            description="In no segment, or not read.",
            color="#000000",
        ),
        algorithm,
    )
