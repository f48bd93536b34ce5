"""What a precision can hope for is measured without a GPU, and never taken for an approval."""

import json
import re
import sys
from pathlib import Path

import pytest

from exporters import tensorrt_outlook
from exporters.tensorrt_gate import OFFLINE
from tests.exporters.conftest import RELEASED, REPOSITORY, ROOT
from training.files import sha256_file

pytestmark = pytest.mark.training


def test_without_data_the_golden_inputs_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert OFFLINE.is_file(), "run make setup-tensorrt"
    monkeypatch.setenv("PATHSERVE_DATA", str(tmp_path))
    out = tmp_path / "outlook.json"
    asked = ["outlook", str(RELEASED / "tile_encoder"), "--repository", str(REPOSITORY), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [*asked, "--precision", "fp16"])
    assert tensorrt_outlook.main() == 0
    rows = json.loads(out.read_bytes())["precisions"]
    assert rows.keys() == {"fp16"}
    assert rows["fp16"]["G2"]["network_layers"] > 100
    verdict = rows["fp16"]["G3 imitated on a CPU"]
    assert verdict["passed"]
    assert verdict["figures"]["reduced"]
    assert verdict["figures"]["tiles"] == 0
    assert 0.9995 < verdict["figures"]["outputs"]["embedding"]["min_cosine"] < 0.99999999


def test_a_run_that_cannot_be_read_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["outlook", str(tmp_path / "none"), "--repository", str(REPOSITORY), "--out", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", asked)
    assert tensorrt_outlook.main() == 1
    assert "none" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_the_committed_figures_stand_in_the_documentation() -> None:
    document = json.loads((ROOT / "docs" / "results" / "tensorrt.json").read_bytes())
    assert document["onnx_sha256"] == sha256_file(REPOSITORY / "tile_encoder" / "1" / "model.onnx")
    page = (ROOT / "docs" / "tensorrt.md").read_text(encoding="utf-8")
    for precision, row in document["precisions"].items():
        built, figures = row["G2"], row["G3 imitated on a CPU"]["figures"]
        (point,) = figures["labels"]["tissue_head"]["points"].values()
        assert point["tiles"] == 1000
        (line,) = [line for line in page.splitlines() if re.match(rf"\| {precision} \| \d+ \|", line)]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        size, cosine = f"{built['engine_bytes'] / 1e6:.1f}", f"{figures['outputs']['embedding']['min_cosine']:.4f}"
        said = [str(built["network_layers"]), f"{built['build_s']:.1f}", size, cosine.replace("1.0000", "1")]
        assert cells[2:6] == said, precision
        assert int(cells[6].split()[0]) == point["flips"]
        assert int(cells[7].split(",")[0]) == point["crossings"]
