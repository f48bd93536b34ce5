"""The coded concepts of the structured report, and the trims that DICOM's value representations ask for."""

import re

from highdicom.sr import CodedConcept

from gateway.domain.codes import PRIVATE_SCHEME, Code
from gateway.reports.wording import cut

IMAGE_ANALYSIS = Code("24587005", "SCT", "Image analysis")
TISSUE = Code("85756007", "SCT", "Tissue")
AREA = Code("42798000", "SCT", "Area")
CERTAINTY = Code("111012", "DCM", "Certainty of Finding")
COMMENT = Code("121106", "DCM", "Comment")
SERIES_UID = Code("112002", "DCM", "Series Instance UID")
ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")
REPORT = ("126000", "DCM")
"""Imaging Measurement Report (CID 7021); the meaning beside it carries the document's title."""
QUALITATIVE_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")

TILES = Code("{tiles}", "UCUM", "tiles")
FRAMES = Code("{frames}", "UCUM", "frames")
DEGREES = Code("deg", "UCUM", "degrees of plane angle")
OBJECTS = Code("{objects}", "UCUM", "objects")
OBJECTS_PER_AREA = Code("{objects}/mm2", "UCUM", "objects per square millimeter")
MEAN = Code("373098007", "SCT", "Mean")
MEDIAN = Code("373099004", "SCT", "Median")
PRESENT = Code("52101004", "SCT", "Present")
ABSENT = Code("272519000", "SCT", "Absent")
YES = Code("373066001", "SCT", "Yes")
NO = Code("373067005", "SCT", "No")

SHARE = Code("area-share", PRIVATE_SCHEME, "Share of the tissue area that was read")
MEAN_PROBABILITY = Code("mean-probability", PRIVATE_SCHEME, "Mean probability of the class over its tiles")
TILE_COUNT = Code("tile-count", PRIVATE_SCHEME, "Number of tiles")
ATTENTION = Code("attention", PRIVATE_SCHEME, "Weight of the tile, of the greatest on the slide")
ATTENTION_SHARE = Code("attention-share", PRIVATE_SCHEME, "Part of the tile in the weights of all")
CLASS_PROBABILITY = Code("probability", PRIVATE_SCHEME, "Probability of the class for the whole slide")
SLIDE_CLASS = Code("slide-class", PRIVATE_SCHEME, "Class of the slide as a whole")
NO_ANSWER = Code("no-answer", PRIVATE_SCHEME, "No answer: no class reached the operating point")
TOP_TILE = Code("top-tile", PRIVATE_SCHEME, "Tile that the answer rests on")
SUPPORTED = Code("supported", PRIVATE_SCHEME, "Class that the model was measured for")
BAG_TILES = Code("bag-tiles", PRIVATE_SCHEME, "Number of tiles that the slide's model saw")
EVIDENCE_SOURCE = Code("evidence-source", PRIVATE_SCHEME, "Where the weights of tiles come from")
FROM_ATTENTION = Code("from-attention", PRIVATE_SCHEME, "Attention of the model")
FROM_OCCLUSION = Code("from-occlusion", PRIVATE_SCHEME, "Loss of probability without the tiles")
PRESENCE = Code("presence", PRIVATE_SCHEME, "Whether the object that was asked for is there")
PRESENCE_PROBABILITY = Code("presence-score", PRIVATE_SCHEME, "Probability that the object is there")
MASK_PROBABILITY = Code("mask-probability", PRIVATE_SCHEME, "Mean probability over the segment or object")
OBJECT_COUNT = Code("object-count", PRIVATE_SCHEME, "Number of objects")
OBJECT_DENSITY = Code("object-density", PRIVATE_SCHEME, "Objects per area of tissue that was read")
OBJECT_AREA = Code("object-area", PRIVATE_SCHEME, "Area of an object")
OBJECT_AREA_P10 = Code("object-area-p10", PRIVATE_SCHEME, "Area of an object, 10th percentile")
OBJECT_AREA_P90 = Code("object-area-p90", PRIVATE_SCHEME, "Area of an object, 90th percentile")
IRREGULARITY = Code("irregularity", PRIVATE_SCHEME, "Irregularity: 1 - 4 pi area / perimeter squared")
APPROXIMATE = Code("approximate", PRIVATE_SCHEME, "Touching objects told apart by rule")
FOCUS = Code("focus", PRIVATE_SCHEME, "Focus of the tiles, median")
BLURRED = Code("blurred-share", PRIVATE_SCHEME, "Share of tiles out of focus")
SATURATION = Code("saturation", PRIVATE_SCHEME, "Mean saturation of stained pixels")
BRIGHTNESS = Code("brightness", PRIVATE_SCHEME, "Mean brightness of stained pixels")
PEN_AREA = Code("pen-area", PRIVATE_SCHEME, "Area of pen marks on the slide")
HAEMATOXYLIN_OD = Code("haematoxylin-od", PRIVATE_SCHEME, "Mean optical density of haematoxylin")
EOSIN_OD = Code("eosin-od", PRIVATE_SCHEME, "Mean optical density of eosin")
STAIN_DISTANCE = Code("stain-distance", PRIVATE_SCHEME, "Angle to the stain colours of the training")
TISSUE_FOUND = Code("tissue-found", PRIVATE_SCHEME, "Tissue area found on the slide")
FRAMES_MISSING = Code("frames-missing", PRIVATE_SCHEME, "Number of frames that were missing")
UNCERTAIN = Code("uncertain", PRIVATE_SCHEME, "Uncertain: no class reached the operating point")
INTENDED_USE = Code("intended-use", PRIVATE_SCHEME, "Intended use of the model")
INSIDE = Code("inside", PRIVATE_SCHEME, "Inside the intended use")
OUTSIDE = Code("outside", PRIVATE_SCHEME, "Outside the intended use: exploratory")
CELL = Code("4421005", "SCT", "Cell")
CELL_SCORE = Code("cell-score", PRIVATE_SCHEME, "Score of the cell for its class")
FINDING = Code("121071", "DCM", "Finding")
AMENDMENT = Code("amendment", PRIVATE_SCHEME, "Amendment of the report by a person")
AMENDMENT_REASON = Code("amendment-reason", PRIVATE_SCHEME, "Reason for the amendment")
AMENDED_ON = Code("amended-on", PRIVATE_SCHEME, "Time of the amendment")

# Unicode's classes Zs, and Zl and Zp: a name may hold U+3000 between its parts, French puts U+00A0 before a unit.
_SPACE = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_LINE_END = re.compile("[\u2028\u2029]")


def long_string(text: str) -> str:
    """Text that fits VR LO (PS3.5 6.2): one line, at most 64 characters, no backslash."""
    line = " ".join(plain(text).replace("\\", "/").split())
    return cut(line)


def plain(text: str) -> str:
    """Text that fits VR UT: line breaks and tabs stay, other control characters go. Spaces of any width are spaces."""
    spaced = _SPACE.sub(" ", _LINE_END.sub("\n", text))
    return "".join(character for character in spaced if character.isprintable() or character in "\n\t")


def coded(code: Code) -> CodedConcept:
    """The DICOM code sequence item of a domain code (PS3.3 8.8); only the meaning is ever cut."""
    return CodedConcept(value=code.code, scheme_designator=code.scheme, meaning=long_string(code.display) or code.code)
