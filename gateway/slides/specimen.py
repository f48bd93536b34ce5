"""What is written of a specimen into a slide's header: codes, and how it was stained."""

from collections.abc import Sequence

from pydicom import Dataset

from gateway.domain.codes import Code


def staining(container: str, substances: Sequence[Code]) -> Dataset:
    """A staining step (PS3.16 TID 8001, 8003)."""
    step = Dataset()
    step.SpecimenPreparationStepContentItemSequence = [
        _content(Code("121041", "DCM", "Specimen Identifier"), container),
        _content(Code("111701", "DCM", "Processing type"), Code("127790008", "SCT", "Staining")),
        *(_content(Code("424361007", "SCT", "Using substance"), substance) for substance in substances),
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
