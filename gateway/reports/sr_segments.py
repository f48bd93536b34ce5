"""What the structured report says of one prompt on one slide: the parts of its measurement group (TID 1410, 1501)."""

from collections.abc import Iterator

from highdicom import sr as hd
from pydicom import Dataset

from gateway.domain.codes import MICROMETRE_SQUARED, MILLIMETRE_SQUARED, NO_UNITS, PERCENT, Code
from gateway.domain.explanation import ExplainedObject
from gateway.domain.report import ObjectFigures, Segmented
from gateway.reports import sr_concepts as concept


def measurement(name: Code, value: float, unit: Code, *, derivation: Code | None = None) -> hd.Measurement:
    """One numeric content item (TID 300)."""
    return hd.Measurement(
        name=concept.coded(name),
        value=value,
        unit=concept.coded(unit),
        derivation=None if derivation is None else concept.coded(derivation),
    )


def evaluation(name: Code, value: Code) -> hd.QualitativeEvaluation:
    """One coded content item."""
    return hd.QualitativeEvaluation(concept.coded(name), concept.coded(value))


def segment_measurements(segmented: Segmented) -> list[hd.Measurement]:
    """How much of it there is, how sure the model was, and what was counted."""
    found = [
        measurement(concept.AREA, segmented.area_mm2, MILLIMETRE_SQUARED),
        measurement(concept.SHARE, segmented.area_fraction * 100, PERCENT),
        measurement(concept.PRESENCE_PROBABILITY, segmented.presence, NO_UNITS),
    ]
    if segmented.mean_probability is not None:
        found.append(measurement(concept.MASK_PROBABILITY, segmented.mean_probability, NO_UNITS))
    return [*found, *(_counted(segmented.objects) if segmented.objects else ())]


def _counted(objects: ObjectFigures) -> Iterator[hd.Measurement]:
    yield measurement(concept.OBJECT_COUNT, objects.count, concept.OBJECTS)
    yield measurement(concept.OBJECT_DENSITY, objects.density_per_mm2, concept.OBJECTS_PER_AREA)
    for name, value, unit, derivation in (
        (concept.OBJECT_AREA, objects.mean_area_um2, MICROMETRE_SQUARED, concept.MEAN),
        (concept.OBJECT_AREA_P10, objects.area_p10_um2, MICROMETRE_SQUARED, None),
        (concept.OBJECT_AREA, objects.area_median_um2, MICROMETRE_SQUARED, concept.MEDIAN),
        (concept.OBJECT_AREA_P90, objects.area_p90_um2, MICROMETRE_SQUARED, None),
        (concept.IRREGULARITY, objects.irregularity, NO_UNITS, concept.MEAN),
    ):
        if value is not None:
            yield measurement(name, value, unit, derivation=derivation)


def segment_evaluations(segmented: Segmented) -> list[hd.QualitativeEvaluation]:
    """Whether it is there, whether the model was measured for it, whether its counts are approximate."""
    said = [
        evaluation(concept.PRESENCE, concept.PRESENT if segmented.present else concept.ABSENT),
        evaluation(concept.SUPPORTED, concept.YES if segmented.supported else concept.NO),
    ]
    if segmented.objects is not None:
        said.append(evaluation(concept.APPROXIMATE, concept.YES if segmented.objects.approximate else concept.NO))
    return said


def segment_parameters(segmented: Segmented) -> list[str]:
    """What the algorithm was asked, what it understood, and what it counts as an answer."""
    return prompt_parameters(
        segmented,
        f"mask pixel: {segmented.mpp:g} um; share and density: of the tissue that was read at this resolution",
        f"present: presence >= {segmented.min_presence:g}",
    )


def prompt_parameters(found: Segmented | ExplainedObject, *more: str) -> list[str]:
    """What was asked and understood, `more`, and how well the model did at it in validation."""
    said = [f"prompt: {found.prompt}", f"understood as: {found.triple}", *more]
    if found.val_dice is not None:
        said.append(f"Dice on validation data: {found.val_dice:.3f}")
    return [concept.plain(text) for text in said]


def referenced_segment(segmentation: Dataset, number: int, image: Dataset) -> hd.ReferencedSegmentationFrame:
    """The segment in the segmentation, all its frames: where a reference names a segment, it need name no frames, of
    which a whole slide has more than an attribute holds (PS3.3 10.3, PS3.5 7.1.2)."""
    return hd.ReferencedSegmentationFrame(
        sop_class_uid=segmentation.SOPClassUID,
        sop_instance_uid=segmentation.SOPInstanceUID,
        frame_number=None,
        segment_number=number,
        source_image=hd.SourceImageForSegmentation.from_source_image(image),
    )
