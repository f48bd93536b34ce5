"""The measurement groups of one slide in the structured report (TID 1501, and TID 1410 for tiles and segments)."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from highdicom import sr as hd
from highdicom.spatial import ImageToReferenceTransformer
from pydicom import Dataset

from gateway.domain.codes import MILLIMETRE_SQUARED, NO_UNITS, PERCENT, Code
from gateway.domain.explanation import ExplainedObject, Explanation
from gateway.domain.report import (
    BoxPx,
    Evidence,
    EvidenceSource,
    Report,
    SegmentationResult,
    Segmented,
    SlideClass,
    SlideClassification,
    SlideReading,
    TissueClass,
    TissueResult,
    TopTile,
)
from gateway.domain.screened import ScreenedCell, ScreeningResult
from gateway.reports import sr_concepts as concept
from gateway.reports.derived import segment_role, tracking_of
from gateway.reports.spatial import place_of
from gateway.reports.sr_importance import importance_evaluations, importance_measurements, importance_parameters
from gateway.reports.sr_screening import cell_parts, screening_groups, slide_evaluations, slide_parameters
from gateway.reports.sr_segments import (
    evaluation,
    measurement,
    referenced_segment,
    segment_evaluations,
    segment_measurements,
    segment_parameters,
)


@dataclass(frozen=True, slots=True)
class SlideGroups:
    """The groups of slide `number` (from 1), read from `image`. `subject` is set where slides differ in specimen;
    `segmentations`: the headers of those that segments lie in, by file."""

    report: Report
    number: int
    slide: SlideReading
    image: Dataset
    subject: hd.SubjectContext | None
    segmentations: Mapping[str, Dataset]

    def all(self) -> Iterator[hd.MeasurementsAndQualitativeEvaluations]:
        """The slide as a whole; of tissue each class with its evidence, then what stayed uncertain; of a slide that was
        classified as a whole each class, the tiles that the answer rests on, and the objects that it may; of words each
        prompt; of a cervical slide its adequacy, its probabilities, its cells and those that the answer rests on."""
        tissue_result = self.report.tissue_of(self.slide.series)
        classes = self.report.classes_of(self.slide.series)
        words = self.report.segments_of(self.slide.series)
        screening = self.report.screening_of(self.slide.series)
        yield self._whole(tissue_result, classes, words, screening)
        if tissue_result is not None:
            for tissue in tissue_result.classes:
                yield self._class(tissue)
                for rank, evidence in enumerate(tissue.evidence, 1):
                    yield self._evidence(tissue, rank, evidence)
            yield self._uncertain(tissue_result)
        if classes is not None:
            for each in classes.classes:
                yield self._slide_class(each)
            for rank, tile in enumerate(classes.top_tiles, 1):
                yield self._top_tile(rank, tile)
            if classes.explanation is not None:
                for found in classes.explanation.objects:
                    yield self._object(classes.explanation, found)
        if words is not None:
            numbers = _numbers(words)
            for segmented in words.segments:
                yield self._segment(words, segmented, numbers[segmented.index])
        if screening is not None:
            for parts in screening_groups(screening):
                yield self._group(parts.role, parts.finding, parts.measurements, evaluations=parts.evaluations)
            for rank, cell in enumerate(screening.gallery, 1):
                yield self._screened_cell(screening, rank, cell)

    def _whole(
        self,
        result: TissueResult | None,
        classes: SlideClassification | None,
        words: SegmentationResult | None,
        screening: ScreeningResult | None,
    ) -> hd.MeasurementsAndQualitativeEvaluations:
        measurements = []
        evaluations = []
        parameters = [*self._models(), *(f"changed setting {key}={value}" for key, value in self.report.order.settings)]
        if self.slide.tissue_area_mm2 is not None:
            measurements.append(measurement(concept.TISSUE_FOUND, self.slide.tissue_area_mm2, MILLIMETRE_SQUARED))
        measurements += [
            measurement(concept.AREA, found.area_mm2, MILLIMETRE_SQUARED)
            for found in (result, words)
            if found is not None
        ]
        if classes is not None:
            answer = classes.answered
            measurements.append(measurement(concept.BAG_TILES, classes.bag, concept.TILES))
            evaluations.append(evaluation(concept.SLIDE_CLASS, answer.code if answer else concept.NO_ANSWER))
            evaluations.append(evaluation(concept.EVIDENCE_SOURCE, _SOURCES[classes.evidence]))
        if words is not None:
            parameters.append("area that was read by words: at the finest resolution that prompts were answered at")
        if screening is not None:
            measurements.append(measurement(concept.TILE_COUNT, self.slide.tiles_read, concept.TILES))
            evaluations += slide_evaluations(screening)
            parameters += slide_parameters(screening, self.slide)
        for answered in (result, classes, words, screening):
            if answered is not None:
                use = concept.OUTSIDE if answered.exploratory else concept.INSIDE
                evaluations.append(evaluation(concept.INTENDED_USE, use))
        for found in (result, classes):
            if found is None:
                continue
            measurements.append(measurement(concept.TILE_COUNT, found.tiles, concept.TILES))
            parameters.append(f"operating point {found.operating_point}: probability >= {found.min_probability:g}")
        measurements += self._quality()
        measurements.append(measurement(concept.FRAMES_MISSING, self.slide.frames_missing, concept.FRAMES))
        return self._group(
            "tissue",
            concept.TISSUE,
            measurements,
            evaluations=evaluations,
            parameters=[concept.plain(parameter) for parameter in parameters],
        )

    def _quality(self) -> Iterator[hd.Measurement]:
        """How well the slide can be seen, and how strongly it is stained."""
        seen, stain = self.slide.quality, self.slide.stain_figures
        if seen is not None:
            yield measurement(concept.FOCUS, seen.focus_median, NO_UNITS)
            yield measurement(concept.BLURRED, seen.blurred_share * 100, PERCENT)
            yield measurement(concept.SATURATION, seen.saturation, NO_UNITS)
            yield measurement(concept.BRIGHTNESS, seen.brightness, NO_UNITS)
            yield measurement(concept.PEN_AREA, seen.pen_area_mm2, MILLIMETRE_SQUARED)
        if stain is not None:
            yield measurement(concept.HAEMATOXYLIN_OD, stain.haematoxylin_od, NO_UNITS)
            yield measurement(concept.EOSIN_OD, stain.eosin_od, NO_UNITS)
            if stain.distance_deg is not None:
                yield measurement(concept.STAIN_DISTANCE, stain.distance_deg, concept.DEGREES)

    def _slide_class(self, found: SlideClass) -> hd.MeasurementsAndQualitativeEvaluations:
        return self._group(
            f"slide-class-{found.index}",
            found.code,
            [measurement(concept.CLASS_PROBABILITY, found.probability, NO_UNITS)],
            evaluations=[evaluation(concept.SUPPORTED, concept.YES if found.supported else concept.NO)],
        )

    def _top_tile(self, rank: int, tile: TopTile) -> hd.PlanarROIMeasurementsAndQualitativeEvaluations:
        return self._with_subject(
            hd.PlanarROIMeasurementsAndQualitativeEvaluations(
                tracking_identifier=self._tracking(f"top-tile-{rank}"),
                referenced_region=_region(self.image, *_corners(tile.box)),
                finding_type=concept.coded(concept.TOP_TILE),
                algorithm_id=self._algorithm(),
                measurements=[
                    measurement(concept.ATTENTION, tile.attention, NO_UNITS),
                    measurement(concept.ATTENTION_SHARE, tile.share * 100, PERCENT),
                ],
            )
        )

    def _screened_cell(
        self, result: ScreeningResult, rank: int, cell: ScreenedCell
    ) -> hd.PlanarROIMeasurementsAndQualitativeEvaluations:
        parts = cell_parts(result, rank, cell)
        return self._with_subject(
            hd.PlanarROIMeasurementsAndQualitativeEvaluations(
                tracking_identifier=self._tracking(parts.role),
                referenced_region=_region(self.image, *_edges_px(self.image, cell)),
                finding_type=concept.coded(parts.finding),
                algorithm_id=self._algorithm(),
                measurements=parts.measurements,
                qualitative_evaluations=parts.evaluations,
            )
        )

    def _object(self, explanation: Explanation, found: ExplainedObject) -> hd.MeasurementsAndQualitativeEvaluations:
        return self._group(
            f"object-{found.index + 1}",
            found.code,
            importance_measurements(found),
            category=found.category,
            evaluations=importance_evaluations(found),
            parameters=importance_parameters(found, explanation),
        )

    def _segment(
        self, result: SegmentationResult, segmented: Segmented, number: int
    ) -> hd.MeasurementsAndQualitativeEvaluations | hd.PlanarROIMeasurementsAndQualitativeEvaluations:
        """A prompt: with its segment where it was found (TID 1410), else as a finding of the slide (TID 1501)."""
        role, parameters = segment_role(segmented), segment_parameters(segmented)
        measurements, evaluations = segment_measurements(segmented), segment_evaluations(segmented)
        if segmented.seg is None or not segmented.present:
            return self._group(
                role,
                segmented.code,
                measurements,
                category=segmented.category,
                evaluations=evaluations,
                parameters=parameters,
            )
        return self._with_subject(
            hd.PlanarROIMeasurementsAndQualitativeEvaluations(
                tracking_identifier=self._tracking(role),
                referenced_segment=referenced_segment(self.segmentations[segmented.seg], number, self.image),
                finding_category=concept.coded(segmented.category),
                finding_type=concept.coded(segmented.code),
                finding_sites=self._sites(),
                algorithm_id=self._algorithm(parameters),
                measurements=measurements,
                qualitative_evaluations=evaluations,
            )
        )

    def _class(self, tissue: TissueClass) -> hd.MeasurementsAndQualitativeEvaluations:
        measurements = _extent(tissue.area_mm2, tissue.share, tissue.tiles)
        if tissue.mean_probability is not None:
            measurements.append(measurement(concept.MEAN_PROBABILITY, tissue.mean_probability, NO_UNITS))
        return self._group(f"class-{tissue.index}", tissue.code, measurements)

    def _uncertain(self, result: TissueResult) -> hd.MeasurementsAndQualitativeEvaluations:
        measurements = _extent(result.uncertain_area_mm2, result.uncertain_share, result.uncertain_tiles)
        return self._group("uncertain", concept.UNCERTAIN, measurements)

    def _evidence(
        self, tissue: TissueClass, rank: int, evidence: Evidence
    ) -> hd.PlanarROIMeasurementsAndQualitativeEvaluations:
        return self._with_subject(
            hd.PlanarROIMeasurementsAndQualitativeEvaluations(
                tracking_identifier=self._tracking(f"class-{tissue.index}/tile-{rank}"),
                referenced_region=_region(self.image, *_corners(evidence.box)),
                finding_type=concept.coded(tissue.code),
                algorithm_id=self._algorithm(),
                measurements=[measurement(concept.CERTAINTY, evidence.probability * 100, PERCENT)],
            )
        )

    def _group(
        self,
        role: str,
        finding: Code,
        measurements: list[hd.Measurement],
        *,
        category: Code | None = None,
        evaluations: list[hd.QualitativeEvaluation] | None = None,
        parameters: list[str] | None = None,
    ) -> hd.MeasurementsAndQualitativeEvaluations:
        return self._with_subject(
            hd.MeasurementsAndQualitativeEvaluations(
                tracking_identifier=self._tracking(role),
                finding_category=None if category is None else concept.coded(category),
                finding_type=concept.coded(finding),
                finding_sites=self._sites(),
                algorithm_id=self._algorithm(parameters),
                measurements=measurements,
                qualitative_evaluations=evaluations,
                source_images=[hd.SourceImageForMeasurementGroup.from_source_image(self.image)],
            )
        )

    def _with_subject(
        self, group: hd.MeasurementsAndQualitativeEvaluations
    ) -> hd.MeasurementsAndQualitativeEvaluations:
        """The group with its own specimen (TID 1006), where the document's slides do not share one."""
        if self.subject is not None:
            group[0].ContentSequence.extend(self.subject)
        return group

    def _sites(self) -> list[hd.FindingSite] | None:
        return [hd.FindingSite(concept.coded(self.slide.site))] if self.slide.site else None

    def _tracking(self, role: str) -> hd.TrackingIdentifier:
        identifier, uid = tracking_of(self.report, self.number, role)
        return hd.TrackingIdentifier(uid=uid, identifier=identifier)

    def _algorithm(self, parameters: list[str] | None = None) -> hd.AlgorithmIdentification:
        return hd.AlgorithmIdentification(
            name=concept.plain(self.report.protocol),
            version=concept.plain(self.report.software.version),
            manufacturer=concept.plain(self.report.software.manufacturer),
            parameters=parameters,
            family=concept.coded(concept.ARTIFICIAL_INTELLIGENCE),
        )

    def _models(self) -> Iterator[str]:
        for model in self.report.models:
            yield (
                f"model {model.name} version {model.version}, {model.target} {model.precision}, "
                f"engine sha256 {model.engine_sha256}, weights sha256 {model.weights_sha256}, "
                f"recipe {model.recipe} sha256 {model.recipe_sha256}, data manifest sha256 {model.manifest_sha256}"
            )


_SOURCES = {
    EvidenceSource.ATTENTION: concept.FROM_ATTENTION,
    EvidenceSource.OCCLUSION: concept.FROM_OCCLUSION,
}


def _numbers(words: SegmentationResult) -> dict[int, int]:
    """The number of each prompt's segment in the segmentation that it lies in (from 1), by `Segmented.index`."""
    numbers: dict[int, int] = {}
    in_file: Counter[str | None] = Counter()
    for segmented in words.segments:
        in_file[segmented.seg] += 1
        numbers[segmented.index] = in_file[segmented.seg]
    return numbers


def _extent(area_mm2: float, share: float, tiles: int) -> list[hd.Measurement]:
    return [
        measurement(concept.AREA, area_mm2, MILLIMETRE_SQUARED),
        measurement(concept.SHARE, share * 100, PERCENT),
        measurement(concept.TILE_COUNT, tiles, concept.TILES),
    ]


def _corners(box: BoxPx) -> tuple[int, int, int, int]:
    return box.x_px, box.y_px, box.x_px + box.width_px, box.y_px + box.height_px


def _edges_px(image: Dataset, cell: ScreenedCell) -> tuple[float, float, float, float]:
    """A cell's box in pixels of the level, within it: left, top, right, bottom."""
    row_mm, column_mm = image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    edges_2 = []
    for middle_um, size_um, pixel_mm, most in (
        (cell.x_um, cell.width_um, column_mm, image.TotalPixelMatrixColumns),
        (cell.y_um, cell.height_um, row_mm, image.TotalPixelMatrixRows),
    ):
        ends = ((middle_um + side * size_um / 2) / (float(pixel_mm) * 1000) for side in (-1, 1))
        edges_2.append([min(max(end, 0.0), float(most)) for end in ends])
    (left, right), (top, bottom) = edges_2
    return left, top, right, bottom


def _region(image: Dataset, left: float, top: float, right: float, bottom: float) -> hd.ImageRegion3D | hd.ImageRegion:
    """A box as a closed polygon: in mm of the slide's frame of reference, or, where the header gives no usable
    origin or orientation, in pixels of the total pixel matrix (PS3.3 C.18.6, C.18.9)."""
    corners_N2 = np.array([[left, top], [right, top], [right, bottom], [left, bottom], [left, top]], dtype=np.float64)
    to_mm = _to_mm(image)
    if to_mm is None:
        return hd.ImageRegion("POLYLINE", corners_N2, hd.SourceImageForRegion.from_source_image(image))
    return hd.ImageRegion3D("POLYGON", to_mm(corners_N2), image.FrameOfReferenceUID)


def _to_mm(image: Dataset) -> ImageToReferenceTransformer | None:
    """From (column, row) of the total pixel matrix, (0, 0) being the first pixel's outer corner, to mm (x, y, z)."""
    place = place_of(image)
    if place is None:
        return None
    return ImageToReferenceTransformer(
        image_position=[float(value) for value in (place.x_mm, place.y_mm, place.z_mm)],
        image_orientation=[float(value) for value in place.orientation],
        pixel_spacing=[
            float(value) for value in image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
        ],
    )
