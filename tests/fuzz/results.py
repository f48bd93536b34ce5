"""The derived objects of the committed slide, to be damaged."""

import tempfile
from pathlib import Path

from gateway.reports.encode import write_all
from tests.conformance.invented import invented


def write_results(folder: Path, slide: Path) -> None:
    """Every DICOM object that the product writes about a slide."""
    with tempfile.TemporaryDirectory() as work:
        made = invented(sorted(slide.glob("*.dcm")), Path(work))
    write_all(folder, made.report, [made.source], made.pictures, segmentation_type="BINARY")
    for other in [path for path in folder.iterdir() if path.suffix != ".dcm"]:
        other.unlink()
