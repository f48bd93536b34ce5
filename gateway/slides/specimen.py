"""What is written of a specimen into a slide's header: codes, and how it was stained."""

from collections.abc import Sequence

from pydicom import Dataset

from gateway.domain.codes import Code

_COLLECTION = Code("17636008", "SCT", "specimen collection")


def staining(container: str, substances: Sequence[Code]) -> Dataset:
    """A staining step (PS3.16 TID 8001, 8003)."""
    step = Dataset()
    step.SpecimenPreparationStepContentItemSequence = [
        _content(Code("121041", "DCM", "Specimen Identifier"), container),
        _content(Code("111701", "DCM", "Processing type"), Code("127790008", "SCT", "Staining")),
        *(_content(Code("424361007", "SCT", "Using substance"), substance) for substance in substances),
    ]
    return step


def collection(specimen: str, procedure: Code) -> Dataset:
    """A step of collection (PS3.16 TID 8001, CID 8109)."""
    step = Dataset()
    step.SpecimenPreparationStepContentItemSequence = [
        _content(Code("121041", "DCM", "Specimen Identifier"), specimen),
        _content(Code("111701", "DCM", "Processing type"), _COLLECTION),
        _content(_COLLECTION, procedure),
    ]
    return step


def sampling(specimen: str, method: Code, parent: str, parent_type: Code) -> Dataset:
    """A step of sampling from another specimen, of what kind that is (PS3.16 TID 8002, CID 8110, CID 8103)."""
    step = Dataset()
    step.SpecimenPreparationStepContentItemSequence = [
        _content(Code("121041", "DCM", "Specimen Identifier"), specimen),
        _content(Code("111701", "DCM", "Processing type"), Code("433465004", "SCT", "Sampling of tissue specimen")),
        _content(Code("111704", "DCM", "Sampling Method"), method),
        _content(Code("111705", "DCM", "Parent Specimen Identifier"), parent),
        _content(Code("111707", "DCM", "Parent specimen type"), parent_type),
    ]
    return step


def _content(name: Code, value: Code | str) -> Dataset:
    item = Dataset()
    item.ValueType = "TEXT" if isinstance(value, str) else "CODE"
    item.ConceptNameCodeSequence = [coded(name)]
    if isinstance(value, str):
        item.TextValue = value
    else:
        item.ConceptCodeSequence = [coded(value)]
    return item


def coded(code: Code) -> Dataset:
    """An item of a code sequence (PS3.3 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.code, code.scheme, code.display
    return item
