"""The objects about a slide with Papanicolaou's stain: clean, readable by others, and given back by a PACS.

The answers are invented, the slide's headers are real: cells of cerebrospinal fluid, so all of it is exploratory.
"""

import subprocess
from dataclasses import replace
from pathlib import Path

import highdicom
import pytest

from gateway.reports import result_objects, write_all
from tests.reports.conftest import reading_of, single
from tests.reports.drawn import real_levels
from tests.reports.screened import cells_of, exploratory, report_with, source_with
from tests.support.dciodvfy import validate
from tests.support.orthanc import given_back_by_pacs

FILES = ("cells-1.pm.dcm", "cells-1.ann.dcm", "report.sr.dcm", "report.pdf.dcm", "report.ko.dcm")
COUNTS = (3000, 1500, 200, 250, 20, 30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    levels = real_levels("csf_breast_pap")
    slide = reading_of(levels[0])
    result = replace(exploratory(slide), detected=COUNTS)
    source = replace(source_with(levels[0], cells_of(slide, COUNTS)), levels=tuple(levels), instances=single(levels))
    report = report_with([slide], [result])
    report = replace(report, objects=result_objects(report.slides, [source]))
    folder = tmp_path_factory.mktemp("objects")
    write_all(folder, report, [source], {}, segmentation_type="BINARY")
    return folder


@pytest.mark.validators
@pytest.mark.parametrize("file", FILES)
def test_validator_finds_no_error(folder: Path, file: str) -> None:
    assert validate(folder / file) == []
    program = "dsrdump" if file.endswith((".sr.dcm", ".ko.dcm")) else "dcmdump"
    done = subprocess.run([program, str(folder / file)], capture_output=True, check=False)
    assert (done.returncode, b"E: " in done.stderr) == (0, False), done.stderr


def test_highdicom_finds_the_cells(folder: Path) -> None:
    groups = highdicom.ann.annread(folder / "cells-1.ann.dcm").get_annotation_groups()
    assert [group.number_of_annotations for group in groups] == list(COUNTS)
    assert {group.graphic_type.value for group in groups} == {"RECTANGLE"}
    report = highdicom.sr.srread(folder / "report.sr.dcm")
    assert len(report.content.get_planar_roi_measurement_groups()) == 3
    roles = [group.tracking_identifier.rsplit("/", 1)[1] for group in report.content.get_image_measurement_groups()]
    assert roles == ["tissue", "adequacy", "probabilities", "probabilities-unadapted", "cells"]
    heat = highdicom.imread(folder / "cells-1.pm.dcm")
    assert heat.ContentLabel == "CELL_SCORE"


@pytest.mark.pacs
def test_pacs_gives_each_back_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    for path, given_back in given_back_by_pacs([folder / file for file in FILES], tmp_path / "orthanc"):
        assert given_back == path.read_bytes()
