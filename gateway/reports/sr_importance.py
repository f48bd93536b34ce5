"""What the structured report says of an object that a slide's answer may rest on: its measurement group (TID 1501)."""

from highdicom import sr as hd

from gateway.domain.codes import NO_UNITS, PERCENT, PRIVATE_SCHEME, Code
from gateway.domain.explanation import ExplainedObject, Explanation
from gateway.reports import sr_concepts as concept
from gateway.reports.sr_segments import evaluation, measurement, prompt_parameters

IMPORTANCE = Code("importance", PRIVATE_SCHEME, "Loss with the object blurred, of the loss before")
CONTROL = Code("imp-control", PRIVATE_SCHEME, "Loss with random areas blurred, of the loss before")
CONTROL_LOW = Code("imp-control-low", PRIVATE_SCHEME, "The same, below which at most 2.5 % of repeats lie")
CONTROL_HIGH = Code("imp-control-high", PRIVATE_SCHEME, "The same, above which at most 2.5 % of repeats lie")
EXCEEDS = Code("imp-exceeds", PRIVATE_SCHEME, "Importance above that of random areas")
FOUND = Code("explained-found", PRIVATE_SCHEME, "Whether the object was found on the explained tiles")
GREATEST_PROBABILITY = Code("explained-score", PRIVATE_SCHEME, "Greatest probability on the explained tiles")
AREA_SHARE = Code("explained-area", PRIVATE_SCHEME, "Part of the object in the area of explained tiles")
WEIGHT_SHARE = Code("explained-weight", PRIVATE_SCHEME, "Part of the object in the weights of explained tiles")


def importance_measurements(found: ExplainedObject) -> list[hd.Measurement]:
    """Its part in area and weights; its importance and that of random areas, where it was found."""
    measured = [
        measurement(GREATEST_PROBABILITY, found.presence, NO_UNITS),
        measurement(AREA_SHARE, found.area_share * 100, PERCENT),
        measurement(WEIGHT_SHARE, found.weight_share * 100, PERCENT),
    ]
    if found.importance is not None:
        control = found.importance.control
        measured += [
            measurement(IMPORTANCE, found.importance.ratio, NO_UNITS),
            measurement(CONTROL, control.mean, NO_UNITS, derivation=concept.MEAN),
            measurement(CONTROL_LOW, control.low, NO_UNITS),
            measurement(CONTROL_HIGH, control.high, NO_UNITS),
        ]
    return measured


def importance_evaluations(found: ExplainedObject) -> list[hd.QualitativeEvaluation]:
    """Whether it was found, whether the model of masks was measured for it, whether it matters more than by chance.

    Nothing is said of the slide: elsewhere on it the object may well be.
    """
    said = [
        evaluation(FOUND, concept.YES if found.importance else concept.NO),
        evaluation(concept.SUPPORTED, concept.YES if found.supported else concept.NO),
    ]
    if found.importance is not None:
        said.append(evaluation(EXCEEDS, concept.YES if found.importance.exceeds else concept.NO))
    return said


def importance_parameters(found: ExplainedObject, explanation: Explanation) -> list[str]:
    """What was asked and understood, and how it was measured."""
    return prompt_parameters(
        found,
        f"tiles: {explanation.tiles}, repeats: {explanation.repeats}, blur: {explanation.blur_um:g} um",
        f"loss before: {explanation.loss:g}",
    )
