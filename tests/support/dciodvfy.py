"""dciodvfy's verdict on a file, without what it is known to say wrongly."""

import shutil
import subprocess
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import (
    UID,
    MicroscopyBulkSimpleAnnotationsStorage,
    ParametricMapStorage,
    SegmentationStorage,
)

needs_dciodvfy = pytest.mark.skipif(not shutil.which("dciodvfy"), reason="needs dicom3tools")

# In TILED_FULL the place of a frame follows from its number, so there are no per-frame groups (PS3.3 C.7.6.17.3, and
# C.8.20.3.1 for the segment); the tool, older than this rule, asks for them.
_IMPLIED_BY_TILED_FULL = frozenset(
    f"Error - Missing attribute Type 1 Required Element=<{element}> Module=<{module}>"
    for element, module in (
        ("PerFrameFunctionalGroupsSequence", "MultiFrameFunctionalGroupsForSegmentation"),
        ("PerFrameFunctionalGroupsSequence", "MultiFrameFunctionalGroupsForParametricMap"),
        ("PlaneOrientationSequence", "PlaneOrientationMacro"),
        ("PlanePositionSequence", "PlanePositionMacro"),
        ("PlanePositionSlideSequence", "PlanePositionSlideMacro"),
        ("SegmentIdentificationSequence", "SegmentationMacro"),
    )
)
_LABEL_MAP = UID("1.2.840.10008.5.1.4.1.1.66.7")

KNOWN_FALSE: dict[UID, frozenset[str]] = {
    SegmentationStorage: _IMPLIED_BY_TILED_FULL,
    ParametricMapStorage: _IMPLIED_BY_TILED_FULL,
    # The tool does not know this class: it checks no module, and number 0, the background's (PS3.3 C.8.20.2), is new.
    _LABEL_MAP: frozenset(
        {
            "Error - Information Object Not found",
            "Error - SegmentNumber not monotonically increasing from one by one - "
            "have SegmentSequence item number 1 (from one) with SegmentNumber of 0",
        }
    ),
    # The attribute is absent from a 2D object, as it must be (PS3.3 C.37.1.2).
    MicroscopyBulkSimpleAnnotationsStorage: frozenset(
        {"Error - Only valid for AnnotationCoordinateType of 3D - attribute <CommonZCoordinateValue> = <>"}
    ),
}
"""Exact messages by SOP class: what the standard allows and the tool (2022-06-18) does not know yet."""


def validate(path: Path) -> list[str]:
    """The tool's errors about a DICOM file, less those known to be false. Warnings are none."""
    run = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False, errors="replace")
    said = run.stderr.splitlines()
    assert said, f"dciodvfy said nothing about {path.name}"
    known = KNOWN_FALSE.get(pydicom.dcmread(path, stop_before_pixels=True).SOPClassUID, frozenset())
    wrong = ("Error", "Abort", "Usage")
    return [line for line in said if (line.startswith(wrong) or " - Error - " in line) and line not in known]
