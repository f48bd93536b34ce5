"""Report -> DICOM Parametric Map (PS3.3 A.75): how sure the model was of each place of a slide."""

from pathlib import Path

import numpy as np
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


def write_parametric_map(path: Path, report: Report, source: SlideSource) -> None:
    """Write the heat map of a slide: the probability of the most likely class, tile by tile, as uint16.

    Over the same level and extent as the segmentation, which says what class it is: TILED_FULL has no dimension for
    classes (PS3.3 C.7.6.17.3), so a map holds one probability a place. Raises PathserveError where the slide has no
    tiles or no result, OSError.
    """
    result = report.tissue_of(reading_of(report, source).series)
    if result is None or source.tiles is None:
        raise PathserveError("A slide without a result has no heat map. Report this.")
    best_N = source.tiles.probabilities_NC[:, [tissue.index for tissue in result.classes]].max(axis=1)
    stored_N = np.clip(np.rint(best_N.astype(np.float64) * _FULL_SCALE), 1, _FULL_SCALE).astype(np.uint16)
    level = map_level(report, source)
    name = ObjectName(report.analysis_id, Kind.PM, source.series)
    derivation = CodedConcept.from_code(codes.DCM.UnspecifiedMethodOfCalculation)
    dataset = derived_image(ParametricMapStorage, "OT", report, level, name, derivation)
    dataset.ImageType = ["DERIVED", "PRIMARY", "VOLUME", "QUANTITY"]
    dataset.ContentLabel = "PROBABILITY"
    dataset.ContentDescription = concept.long_string(wording.document_title(report))
    dataset.ContentCreatorName = None
    dataset.ContentQualification = "RESEARCH"
    dataset.AcquisitionContextSequence = []
    dataset.RecognizableVisualFeatures = "NO"
    dataset.PixelPresentation = "MONOCHROME"
    dataset.PresentationLUTShape = "IDENTITY"
    dataset.PixelPaddingValue = NOT_READ
    _describe_values(dataset.SharedFunctionalGroupsSequence[0], dataset)
    complete(dataset, report, level.image, name)
    write_tiled(path, dataset, level.tiling, TileRaster.over(level, report, source).frames(stored_N), bits=16)


def _describe_values(shared: Dataset, dataset: Dataset) -> None:
    """What stored values mean and how they are shown (PS3.3 C.8.32.3, C.7.6.16.2.9 to 11)."""
    frame_type = Dataset()
    frame_type.FrameType = dataset.ImageType
    shared.ParametricMapFrameTypeSequence = [frame_type]
    shared.RealWorldValueMappingSequence = [
        RealWorldValueMapping(
            lut_label="Probability",
            lut_explanation="Probability of the most likely class; 0: not read",
            unit=codes.UCUM.NoUnits,
            value_range=(0, _FULL_SCALE),
            slope=1 / _FULL_SCALE,
            intercept=0,
            quantity_definition=CodedConcept.from_code(codes.DCM.Probability),
        )
    ]
    identity = Dataset()
    identity.RescaleIntercept, identity.RescaleSlope, identity.RescaleType = 0, 1, "US"
    shared.PixelValueTransformationSequence = [identity]
    window = Dataset()
    window.WindowCenter, window.WindowWidth = 32768, 65536  # all values, by the linear function (PS3.3 C.11.2.1.2.1)
    shared.FrameVOILUTSequence = [window]
