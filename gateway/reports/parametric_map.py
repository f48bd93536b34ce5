"""Report -> DICOM Parametric Map (PS3.3 A.75): how sure the model was of each place of a slide, or its weight,
or of the surest cell there."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from highdicom.pm import RealWorldValueMapping
from highdicom.sr import CodedConcept
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ParametricMapStorage

from gateway.domain.report import Report
from gateway.operations.errors import PathserveError
from gateway.reports import sr_concepts as concept
from gateway.reports import wording
from gateway.reports.derived import Kind, ObjectName, complete
from gateway.reports.pyramid import TileRaster, derived_image, map_level, reading_of
from gateway.reports.spatial import SlideSource
from gateway.reports.tiled import write_tiled

_FULL_SCALE = 65535
NOT_READ = 0
"""The stored value of places that were not read; what was read has at least 1."""


@dataclass(frozen=True, slots=True)
class _Quantity:
    """What a map's values are: label of the content, and the words and codes of the mapping to real values."""

    content_label: str
    lut_label: str
    explanation: str
    definition: CodedConcept


_PROBABILITY = _Quantity(
    "PROBABILITY",
    "Probability",
    "Probability of the most likely class; 0: not read",
    CodedConcept.from_code(codes.DCM.Probability),
)
_ATTENTION = _Quantity(
    "ATTENTION",
    "Attention",
    "Weight in the answer, of the greatest; 0: not read",
    concept.coded(concept.ATTENTION),
)
_CELL_SCORE = _Quantity(
    "CELL_SCORE",
    "Cell score",
    "Greatest score of a cell there; 0: not read",
    concept.coded(concept.CELL_SCORE),
)


def write_parametric_map(path: Path, report: Report, source: SlideSource) -> None:
    """Write the heat map of a slide, tile by tile, as uint16: the probability of the most likely class, the weight of
    the tile in the answer, or the greatest score of a cell in it.

    Over the level and extent of `pyramid.map_level`, as the segmentation, which says what class it is: TILED_FULL has
    no dimension for classes (PS3.3 C.7.6.17.3), so a map holds one value a place. Raises PathserveError where the slide
    has no tiles or no result, OSError.
    """
    quantity, values_N = _values(report, source)
    stored_N = np.clip(np.rint(values_N.astype(np.float64) * _FULL_SCALE), 1, _FULL_SCALE).astype(np.uint16)
    level = map_level(report, source)
    name = ObjectName(report.analysis_id, Kind.PM, source.series)
    derivation = CodedConcept.from_code(codes.DCM.UnspecifiedMethodOfCalculation)
    dataset = derived_image(ParametricMapStorage, "OT", report, level, name, derivation)
    dataset.ImageType = ["DERIVED", "PRIMARY", "VOLUME", "QUANTITY"]
    dataset.ContentLabel = quantity.content_label
    dataset.ContentDescription = concept.long_string(wording.document_title(report))
    dataset.ContentCreatorName = None
    dataset.ContentQualification = "RESEARCH"
    dataset.AcquisitionContextSequence = []
    dataset.RecognizableVisualFeatures = "NO"
    dataset.PixelPresentation = "MONOCHROME"
    dataset.PresentationLUTShape = "IDENTITY"
    dataset.PixelPaddingValue = NOT_READ
    _describe_values(dataset.SharedFunctionalGroupsSequence[0], dataset, quantity)
    complete(dataset, report, level.image, name)
    write_tiled(path, dataset, level.tiling, TileRaster.over(level, report, source).frames(stored_N), bits=16)


def _values(report: Report, source: SlideSource) -> tuple[_Quantity, npt.NDArray[np.float32]]:
    """What the map shows, and its value (0..1) at each tile that is placed (N,)."""
    series = reading_of(report, source).series
    result = report.tissue_of(series)
    if result is not None and source.tiles is not None:
        shown = [tissue.index for tissue in result.classes]
        return _PROBABILITY, source.tiles.probabilities_NC[:, shown].max(axis=1)
    if report.classes_of(series) is not None and source.attention is not None:
        return _ATTENTION, source.attention.attention_N
    if report.screening_of(series) is not None and source.cells is not None:
        return _CELL_SCORE, source.cells.highest_M
    raise PathserveError("A slide without a result has no heat map. Report this.")


def _describe_values(shared: Dataset, dataset: Dataset, quantity: _Quantity) -> None:
    """What stored values mean and how they are shown (PS3.3 C.8.32.3, C.7.6.16.2.9 to 11)."""
    frame_type = Dataset()
    frame_type.FrameType = dataset.ImageType
    shared.ParametricMapFrameTypeSequence = [frame_type]
    shared.RealWorldValueMappingSequence = [
        RealWorldValueMapping(
            lut_label=quantity.lut_label,
            lut_explanation=quantity.explanation,
            unit=codes.UCUM.NoUnits,
            value_range=(0, _FULL_SCALE),
            slope=1 / _FULL_SCALE,
            intercept=0,
            quantity_definition=quantity.definition,
        )
    ]
    identity = Dataset()
    identity.RescaleIntercept, identity.RescaleSlope, identity.RescaleType = 0, 1, "US"
    shared.PixelValueTransformationSequence = [identity]
    window = Dataset()
    window.WindowCenter, window.WindowWidth = 32768, 65536  # all values, by the linear function (PS3.3 C.11.2.1.2.1)
    shared.FrameVOILUTSequence = [window]
