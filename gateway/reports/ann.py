"""Report -> Microscopy Bulk Simple Annotations (PS3.3 A.87): the regions of each class on one slide.

`write_groups` writes points and polygons by the million: coordinates go from arrays, which may lie on disk, into the
file as they are, without a Python object for each and without a copy of all.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import numpy.typing as npt
from highdicom import AlgorithmIdentificationSequence
from highdicom.ann import Measurements
from highdicom.color import CIELabColor
from pydicom import Dataset, dcmwrite
from pydicom.charset import convert_encodings
from pydicom.filebase import DicomFileLike
from pydicom.filewriter import write_dataset
from pydicom.tag import Tag
from pydicom.uid import MicroscopyBulkSimpleAnnotationsStorage

from gateway.domain.codes import MILLIMETRE_SQUARED, NO_UNITS, PRIVATE_SCHEME, Code
from gateway.domain.report import Report, TissueClass
from gateway.domain.uids import derive_uid
from gateway.operations.errors import PathserveError
from gateway.reports import dicom_file, wording
from gateway.reports import sr_concepts as concept
from gateway.reports.derived import Kind, ObjectName, algorithm_of, complete, copy_specimen, reference_to
from gateway.reports.regions import Region, regions_of
from gateway.reports.spatial import SlideSource
from gateway.reports.tiled import BUFFER_BYTES

OUTLINE_AREA = Code("outline-area", PRIVATE_SCHEME, "Area inside the outline")
REGION_NUMBER = Code("region-number", PRIVATE_SCHEME, "Number of the region that this is (a part of)")

_GROUPS = Tag("AnnotationGroupSequence")
_SINGLE, _DOUBLE = Tag("PointCoordinatesData"), Tag("DoublePointCoordinatesData")
_UNDEFINED = 0xFFFFFFFF
_UTF8 = convert_encodings("ISO_IR 192")
_POINTS_AT_ONCE = 1 << 16
_POINTS_OF = {"POINT": 1, "RECTANGLE": 4}

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """Annotations of one kind (PS3.3 C.37.1.2).

    `points_P2` (P, 2): column and row in pixels of the image's total pixel matrix, (0, 0) being the first pixel's outer
    corner. `first_N`: the index of each annotation's first point (N,); an open POLYGON ends where the next begins, a
    POINT has one point, a RECTANGLE its four corners in turn. `measurements`: name, unit, one value each (N,); NaN
    where there is none. `color`: #RRGGBB.
    """

    uid: str
    label: str
    description: str
    graphic: Literal["POINT", "RECTANGLE", "POLYGON"]
    points_P2: Floats
    first_N: npt.NDArray[np.integer]
    category: Code
    property_type: Code
    color: str
    measurements: Sequence[tuple[Code, Code, Floats]] = ()


def write_annotations(path: Path, report: Report, source: SlideSource) -> None:
    """Write the regions of every class that was found on a slide, a group a class.

    ANN has no polygons with holes (PS3.3 C.37.1.2.1): a region with holes is cut into parts without, which share its
    number. Raises PathserveError where there is no region (`has_regions`): the object has at least one group of at
    least one annotation. Raises OSError.
    """
    result = report.tissue_of(source.series)
    classes = {tissue.index: tissue for tissue in result.classes} if result else {}
    groups = [
        _group(report, source, classes[index], tuple(regions))
        for index, regions in groupby(regions_of(report, source, simple=True), key=lambda region: region.index)
    ]
    write_groups(path, report, source.image, ObjectName(report.analysis_id, Kind.ANN, source.series), groups)


def write_groups(
    path: Path, report: Report, image: Dataset, name: ObjectName, groups: Sequence[Group], *, content: str = "REGIONS"
) -> None:
    """Write one object of at least one group; `content` is its label (VR CS).

    `image` is the header of the level whose pixels the coordinates count: they need no place of the slide in mm. Of a
    concatenation it is one part, since all parts have the same total pixel matrix and 2D coordinates refer to one image
    (PS3.3 C.37.1.1). Raises PathserveError where an array does not fit its group, OSError.
    """
    if not groups:
        raise PathserveError("An annotation object has at least one group. Report this.")
    dataset = dicom_file.begin(MicroscopyBulkSimpleAnnotationsStorage, "ANN")
    dataset.ContentLabel = content
    dataset.ContentDescription = concept.long_string(wording.document_title(report))
    dataset.ContentCreatorName = None
    dataset.AnnotationCoordinateType = "2D"
    dataset.PixelOriginInterpretation = "VOLUME"
    if image.get("FrameOfReferenceUID"):
        dataset.FrameOfReferenceUID = image.FrameOfReferenceUID
        dataset.PositionReferenceIndicator = image.get("PositionReferenceIndicator") or "SLIDE_CORNER"
    copy_specimen(dataset, image)
    if "SpecimenDescriptionSequence" not in image:
        dataset.Laterality = None  # type 2C: of a slide without a specimen no one knows (PS3.3 C.7.3.1)
    dataset.ReferencedImageSequence = [reference_to(image)]
    series = Dataset()
    series.SeriesInstanceUID = image.SeriesInstanceUID
    series.ReferencedInstanceSequence = [reference_to(image)]
    dataset.ReferencedSeriesSequence = [series]
    algorithm = algorithm_of(report)
    items = [_item(number, group, algorithm) for number, group in enumerate(groups, 1)]
    dataset.AnnotationGroupSequence = items
    complete(dataset, report, image, name)
    with path.open("wb", buffering=BUFFER_BYTES) as stream:
        before, after = dataset[:_GROUPS], dataset[_GROUPS + 1 :]
        before.file_meta = dataset.file_meta
        dcmwrite(stream, before, enforce_file_format=True)
        stream.write(struct.pack("<HH2s2xL", _GROUPS.group, _GROUPS.element, b"SQ", _UNDEFINED))
        for item, group in zip(items, groups, strict=True):
            _write_item(stream, item, group.points_P2)
        stream.write(struct.pack("<HHL", 0xFFFE, 0xE0DD, 0))
        _write_elements(stream, after)


def _write_item(stream: BinaryIO, item: Dataset, points_P2: Floats) -> None:
    """Write an item of the Annotation Group Sequence with its coordinates (PS3.5 7.5): single precision where it loses
    nothing (whole pixels up to 16.7 million), else double."""
    single = points_P2.dtype == np.float32 or bool((points_P2.astype("<f4") == points_P2).all())
    element, vr, kind = (_SINGLE, b"OF", "<f4") if single else (_DOUBLE, b"OD", "<f8")
    length = points_P2.size * np.dtype(kind).itemsize
    stream.write(struct.pack("<HHL", 0xFFFE, 0xE000, _UNDEFINED))
    _write_elements(stream, item[:_SINGLE])
    stream.write(struct.pack("<HH2s2xL", element.group, element.element, vr, length))
    for start in range(0, len(points_P2), _POINTS_AT_ONCE):
        stream.write(points_P2[start : start + _POINTS_AT_ONCE].astype(kind).tobytes())
    _write_elements(stream, item[_SINGLE:])
    stream.write(struct.pack("<HHL", 0xFFFE, 0xE00D, 0))


def _write_elements(stream: BinaryIO, dataset: Dataset) -> None:
    """Write some elements of an object of ours, explicit VR little endian."""
    encoder = DicomFileLike(stream)
    encoder.is_little_endian, encoder.is_implicit_VR = True, False
    write_dataset(encoder, dataset, _UTF8)


def _group(report: Report, source: SlideSource, tissue: TissueClass, regions: Sequence[Region]) -> Group:
    outlines = [region.rings[0] for region in regions]
    lengths = np.array([len(outline) for outline in outlines])
    result = report.tissue_of(source.series)
    exploratory = result is not None and result.exploratory

    def measured(field: str) -> Floats:
        return np.array([getattr(region, field) for region in regions], dtype=np.float32)

    return Group(
        uid=derive_uid(report.analysis_id, f"ann/{source.series}/class-{tissue.index}"),
        label=tissue.code.display,
        description=" ".join((wording.RESEARCH_USE, *((wording.EXPLORATORY,) if exploratory else ()))),
        graphic="POLYGON",
        points_P2=np.concatenate(outlines).astype(np.float64),
        first_N=np.cumsum(lengths) - lengths,
        category=concept.TISSUE,
        property_type=tissue.code,
        color=tissue.color,
        measurements=(
            (concept.MEAN_PROBABILITY, NO_UNITS, measured("mean_probability")),
            (concept.AREA, MILLIMETRE_SQUARED, measured("tissue_area_mm2")),
            (OUTLINE_AREA, MILLIMETRE_SQUARED, measured("area_mm2")),
            (REGION_NUMBER, NO_UNITS, measured("number")),
        ),
    )


def _item(number: int, group: Group, algorithm: AlgorithmIdentificationSequence) -> Dataset:
    """One item of the Annotation Group Sequence."""
    _check(group)
    item = Dataset()
    item.AnnotationGroupNumber = number
    item.AnnotationGroupUID = group.uid
    item.AnnotationGroupLabel = concept.long_string(group.label)
    item.AnnotationGroupDescription = concept.plain(group.description)
    item.AnnotationGroupGenerationType = "AUTOMATIC"
    item.AnnotationGroupAlgorithmIdentificationSequence = algorithm
    item.AnnotationPropertyCategoryCodeSequence = [concept.coded(group.category)]
    item.AnnotationPropertyTypeCodeSequence = [concept.coded(group.property_type)]
    item.NumberOfAnnotations = len(group.first_N)
    item.RecommendedDisplayCIELabValue = list(CIELabColor.from_string(group.color).value)
    item.AnnotationAppliesToAllOpticalPaths = "YES"
    item.GraphicType = group.graphic
    if group.graphic == "POLYGON":
        # Counted in values, two a point, and from 1.
        item.LongPrimitivePointIndexList = (group.first_N * 2 + 1).astype("<u4").tobytes()
    if group.measurements:
        item.MeasurementsSequence = [
            Measurements(concept.coded(name), values, concept.coded(unit)) for name, unit, values in group.measurements
        ]
    return item


def _check(group: Group) -> None:
    count = len(group.first_N)
    lengths = np.diff(group.first_N, append=len(group.points_P2))
    exact = _POINTS_OF.get(group.graphic)
    fits = group.points_P2.shape[1:] == (2,) and (lengths >= 3 if exact is None else lengths == exact).all()
    if not count or group.first_N[0] != 0 or not fits or not np.isfinite(group.points_P2).all():
        raise PathserveError("An annotation group holds points that make no annotations. Report this.")
    if any(len(values) != count for _, _, values in group.measurements):
        raise PathserveError("An annotation group measures more or fewer annotations than it has. Report this.")
