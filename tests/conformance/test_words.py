"""The objects about what was found by words: clean, readable by others, and given back by a PACS."""

import subprocess
from pathlib import Path

import highdicom
import pydicom
import pytest
from pydicom.uid import SegmentationStorage

from gateway.reports import tiled
from gateway.reports.encode import write_all
from gateway.reports.masks_seg import write_mask_seg
from tests.reports.worded import worded
from tests.support.dciodvfy import KNOWN_FALSE, validate
from tests.support.orthanc import given_back_by_pacs

FILES = (
    "segments-1-1.seg.dcm",
    "segments-1-2.seg.dcm",
    "probabilities-1-1.seg.dcm",
    "segments-1.ann.dcm",
    "report.sr.dcm",
    "report.ko.dcm",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    report, source = worded()
    folder = tmp_path_factory.mktemp("objects")
    write_all(folder, report, [source], {}, segmentation_type="BINARY")
    return folder


@pytest.mark.validators
@pytest.mark.parametrize("file", FILES)
def test_validator_finds_no_error(folder: Path, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KNOWN_FALSE, SegmentationStorage, frozenset())  # these have groups for each frame
    assert validate(folder / file) == []
    program = "dsrdump" if file.startswith("report") else "dcmdump"
    done = subprocess.run([program, str(folder / file)], capture_output=True, check=False)
    assert (done.returncode, b"E: " in done.stderr) == (0, False), done.stderr


@pytest.mark.validators
def test_validator_finds_no_error_in_a_label_map(tmp_path: Path) -> None:
    report, source = worded(overlap=False)
    write_all(tmp_path, report, [source], {}, segmentation_type="LABELMAP")
    for grid in (1, 2):
        path = tmp_path / f"segments-1-{grid}.seg.dcm"
        assert pydicom.dcmread(path, stop_before_pixels=True).SegmentationType == "LABELMAP"
        assert validate(path) == []
    # The tool does not know that a label map is a segmentation, too (PS3.3 table 10-3).
    assert set(validate(tmp_path / "report.sr.dcm")) == {
        "Error - Shall not be present for Referenced SOP Class that is not segmentation - "
        "attribute <ReferencedSegmentNumber>"
    }


@pytest.mark.validators
def test_validator_finds_no_error_in_masks_too_large_for_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled, "_MOST_NATIVE_BYTES", 0)
    monkeypatch.setitem(KNOWN_FALSE, SegmentationStorage, frozenset())
    report, source = worded()
    path = tmp_path / "segments-1-1.seg.dcm"
    write_mask_seg(path, report, source, source.masks[0], segmentation_type="BINARY")
    assert validate(path) == []


def test_highdicom_finds_the_segments_of_the_report(folder: Path) -> None:
    report = highdicom.sr.srread(folder / "report.sr.dcm")
    groups = report.content.get_planar_roi_measurement_groups()
    assert len(groups) == 3  # what was not found has nothing to be drawn
    for group in groups:
        assert group.reference_type == highdicom.sr.CodedConcept("121214", "DCM", "Referenced Segmentation Frame")
        assert group.finding_category is not None
        assert len(group.finding_sites) == 1
    annotations = highdicom.ann.annread(folder / "segments-1.ann.dcm")
    assert [group.label for group in annotations.get_annotation_groups()] == [
        "nuclei-level nucleus in colon pathology",
        "nuclei-level lymphocyte in colon pathology",
        "tissue-level gland in colon pathology",
    ]


@pytest.mark.pacs
def test_pacs_gives_each_back_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    for path, given_back in given_back_by_pacs([folder / file for file in FILES], tmp_path / "orthanc"):
        assert given_back == path.read_bytes()
