"""What reports of composed slides come to, by centre: what is withheld counts for neither side."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.domain.report import SlideReading
from gateway.domain.screened import ScreeningResult
from gateway.reports.json_report import to_json
from tests.reports import screened
from tests.reports.conftest import COMMITTED, reading_of, volume_headers
from training.errors import RunInvalid
from training.files import json_bytes
from training.smartccs import composed, page

pytestmark = pytest.mark.training


def told(kind: Callable[[SlideReading], ScreeningResult], served_C: Sequence[float] | None = None) -> bytes:
    """The report.json of a slide that was read so, with these probabilities if any are given."""
    image = volume_headers(COMMITTED)[0]
    result = kind(reading_of(image))
    result = result if served_C is None else replace(result, classes=screened.classes_of(served_C))
    report = json.loads(to_json(screened.screened(image, result)[0]))
    report["models"] = [{"name": name, "weights_sha256": digest} for name, digest in MODELS.items()]
    return json_bytes(report)


MODELS = {"smartccs_detect": "0" * 64, "smartccs_embed": "1" * 64, "smartccs_slide": "2" * 64}


def chances(p_nilm: float) -> list[float]:
    return [p_nilm, *[(1 - p_nilm) / 6] * 6]


SLIDES = [
    ("NILM", screened.negative, 0.9),
    ("NILM", screened.abnormal, 0.3),
    ("NILM", screened.no_cells, None),
    ("NILM", screened.negative, 0.8),
    ("HSIL", screened.abnormal, 0.1),
    ("HSIL", screened.exploratory, 0.2),
    ("LSIL", screened.unsatisfactory, 0.95),
    ("HSIL", screened.unnamed, 0.4),  # of an unsupported class: abnormal without a category
]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    rows = []
    for number, (label, kind, p_nilm) in enumerate(SLIDES):
        folder = tmp_path / "reports" / f"slide-{number:03}"
        folder.mkdir(parents=True)
        (folder / "report.json").write_bytes(told(kind, None if p_nilm is None else chances(p_nilm)))
        rows.append({"folder": folder.name, "class": label, "centre": "stain A", "cells": []})
    rows.append({"folder": "slide-009", "class": "NILM", "centre": "stain A"})  # not analysed yet
    (tmp_path / "truth.json").write_text(json.dumps({"slides": rows}))
    return tmp_path / "truth.json", tmp_path / "reports"


def test_reports_become_figures_of_a_centre(folders: tuple[Path, Path], tmp_path: Path) -> None:
    truth, reports = folders
    out = tmp_path / "results"
    out.mkdir()
    assert composed.main([str(truth), "--reports", str(reports), "--out", str(out)]) == 0
    found = json.loads((out / "composed-stain_A.json").read_text())["centres"]["stain A"]
    assert (found["slides"]["NILM"], found["slides"]["HSIL"]) == (4, 3)
    assert (found["withheld"], found["unsatisfactory"], found["without_cells"]) == (2, 1, 1)
    assert found["sensitivity"]["value"] == 0.75
    assert found["specificity"]["value"] == 0.5
    assert found["right_class"] == 4 / 8
    assert found["auc"]["value"] == pytest.approx((4 + 4 + 1 + 3) / 16)
    assert found["without_report"] == 1
    digests = json.loads((out / "composed-stain_A.json").read_text())["digests"]
    assert digests == dict(zip(("detector", "encoder", "head"), MODELS.values(), strict=True))
    text = page.page(out)
    assert "| stain A | 4 | 4 | 0.75 [" in text
    reasons = "; ".join(f"{reason} {count}" for reason, count in found["reasons"].items())
    assert found["reasons"]
    assert f"] | 2; {reasons} | 1 | 1 |" in text  # withheld and why, unsatisfactory, no report


def test_slides_without_any_report_and_degraded_ones_stand_for_themselves(folders: tuple[Path, Path]) -> None:
    truth, reports = folders
    said = json.loads(truth.read_text())
    said["slides"][0]["degraded"] = "blurred"
    said["slides"].append({"folder": "slide-010", "class": "HSIL", "centre": "both"})
    truth.write_text(json.dumps(said))
    read = composed.read(truth, reports)
    found = composed.by_centre(read.slides, read.without_report)
    assert {name: (sum(row["slides"].values()), row["without_report"]) for name, row in found.items()} == {
        "both": (0, 1),
        "stain A": (7, 1),
        "stain A, blurred": (1, 0),
    }
    assert found["both"]["auc"] is None


def test_reports_of_different_weights_or_of_none_are_refused(folders: tuple[Path, Path]) -> None:
    truth, reports = folders
    path = reports / "slide-003" / "report.json"
    report = json.loads(path.read_text())
    report["models"][0]["weights_sha256"] = "9" * 64
    path.write_text(json.dumps(report))
    with pytest.raises(RunInvalid, match="The reports of slide-000 and slide-003 are of different weights"):
        composed.read(truth, reports)
    report["models"] = report["models"][1:]
    path.write_text(json.dumps(report))
    with pytest.raises(RunInvalid, match="does not name the weights of smartccs_detect"):
        composed.read(truth, reports)


def test_one_side_alone_has_no_interval_and_what_is_no_report_is_refused(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, reports = folders
    slides = composed.read(truth, reports).slides
    assert composed.by_centre([each for each in slides if each.label == 0], {})["stain A"]["auc"] is None
    (reports / "slide-000" / "report.json").write_text(json.dumps({"screenings": []}))
    assert composed.main([str(truth), "--reports", str(reports), "--out", str(tmp_path)]) == 1
    assert "The report of slide-000 is not one of cervical-screening" in capsys.readouterr().err
    assert composed.main([str(truth), "--reports", str(tmp_path / "none"), "--out", str(tmp_path)]) == 1
    assert "Analyse them first" in capsys.readouterr().err
