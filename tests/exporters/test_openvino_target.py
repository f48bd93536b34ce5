"""The target `cpu`: OpenVINO in fp32, bf16 and static INT8; the INT8 bytes repeat, and nobody is told of them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from google.protobuf import text_format
from torch import Tensor, nn
from tritonclient.grpc import model_config_pb2

from exporters.errors import ExportError, first_line
from exporters.gates import g4_invariance, onnx_runtime
from exporters.kinds import KINDS
from exporters.onnx_graph import export
from exporters.openvino_target import TARGET, open_engine, quantise
from exporters.tiles import LABELLED
from tests.conftest import ROOT
from tests.exporters.data import TILE_PX, tile_graph, write_data
from training.errors import DataMissing
from training.graphs import Graph
from training.runs import Run

pytestmark = pytest.mark.training

ENCODER = ROOT / "model_repository" / "tile_encoder" / "1" / "model.onnx"
BF16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class Small(nn.Module):
    """Pixels to eight numbers by two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 8, 3, stride=2)

    def forward(self, image_BHWC: Tensor) -> Tensor:
        x_BCHW = (image_BHWC.to(torch.float32).permute(0, 3, 1, 2) - 127.0) / 128.0
        return torch.relu(self.second(torch.relu(self.first(x_BCHW)))).mean(dim=(2, 3))


@pytest.fixture(scope="module")
def graph() -> Graph:
    return tile_graph(Small().eval())


@pytest.fixture(scope="module")
def onnx_file(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "small.onnx"
    path.write_bytes(export(graph, {"pathserve.model": "small"}))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four sets of which 100 tiles each are held back for calibration."""
    sets = {LABELLED: 7, "he_oral": 13, "he_breakhis": 13, "seg_consep": 13}
    return write_data(tmp_path_factory.mktemp("data"), sets, 8 * TILE_PX)


@pytest.fixture(autouse=True)
def small_data(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATHSERVE_DATA", str(data))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fp32_and_bf16_are_the_onnx_under_a_precision_that_is_said(
    encoder_run: Run, encoder_graph: Graph, encoder_engine: bytes, tmp_path: Path, precision: str
) -> None:
    if precision == "bf16" and not BF16:
        with pytest.raises(ExportError, match="does not compute in bf16"):
            TARGET.build(encoder_run, encoder_graph, encoder_engine, "tile_encoder-v2", precision, tmp_path)
        return
    built = TARGET.build(encoder_run, encoder_graph, encoder_engine, "tile_encoder-v2", precision, tmp_path)
    assert built.files == {"2/model.onnx": encoder_engine}
    assert built.engine == ("2/model.onnx",)
    assert (built.state, built.not_executed, built.calibration) == ("BUILT", None, None)
    assert set(built.tools) == {"openvino"}
    (gate,) = built.gates
    assert (gate["gate"], gate["passed"], gate["figures"]["neighbours"]) == ("G4", True, 0.0)
    config = text_format.Parse(built.config, model_config_pb2.ModelConfig())
    assert (config.name, config.backend, config.default_model_filename) == ("tile_encoder-v2", "openvino", "model.onnx")
    hint = config.parameters["INFERENCE_PRECISION_HINT"].string_value
    assert hint == {"fp32": "f32", "bf16": "bf16"}[precision]


def test_fp32_gives_the_answers_of_onnx_runtime(encoder_graph: Graph, encoder_engine: bytes) -> None:
    inputs = encoder_graph.samples({"batch": 5})
    due, found = onnx_runtime(encoder_engine)(inputs), open_engine(ENCODER, "f32")(inputs)
    assert np.abs(found["embedding"] - due["embedding"]).max() < 1e-4 * np.abs(due["embedding"]).max()


def test_int8_is_an_ir_of_static_ranges(encoder_run: Run, graph: Graph, onnx_file: Path, tmp_path: Path) -> None:
    onnx = onnx_file.read_bytes()
    built = TARGET.build(encoder_run, graph, onnx, "small", "int8", tmp_path)
    assert set(built.files) == {"1/model.xml", "1/model.bin"}
    assert built.calibration is not None
    assert (built.calibration["count"], len(built.calibration["sha256"])) == (300, 64)
    assert LABELLED not in {name for name, count in built.calibration["sources"].items() if count}
    assert set(built.tools) == {"openvino", "nncf"}
    assert b'type="FakeQuantize"' in built.files["1/model.xml"]
    # Written as the build writes it, and opened as G3 opens it.
    for path, data in built.files.items():
        (tmp_path / "small" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "small" / path).write_bytes(data)
    engine = open_engine(tmp_path / "small" / "1" / "model.xml", "f32")
    inputs = graph.samples({"batch": 16})
    found, due = engine(inputs)["embedding"], onnx_runtime(onnx)(inputs)["embedding"]
    assert 0 < np.abs(found - due).max() < 0.1 * np.abs(due).max()
    assert g4_invariance(engine, graph, KINDS["encoder"])["neighbours"] == 0.0


def test_what_nncf_refuses_is_said_in_a_sentence(graph: Graph, onnx_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^small cannot be quantised by NNCF: .+$"):
        quantise(onnx_file.read_bytes(), graph, tmp_path, preset="no preset")
    with pytest.raises(ExportError, match=r"^small cannot be quantised by NNCF: .+$"):
        quantise(onnx_file.read_bytes()[:100], graph, tmp_path)


def test_an_error_that_says_nothing_is_named() -> None:
    assert first_line(AssertionError()) == "AssertionError"
    assert first_line(ValueError("a\nb")) == "a"


_ELSEWHERE = """
import json, socket, sys, time
from pathlib import Path
calls = []
def refuse(*arguments):
    calls.append(str(arguments[-1]))
    raise OSError("no network")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
from torch import nn
from exporters.openvino_target import quantise
from tests.exporters.data import tile_graph
assert "pytest" not in sys.modules  # NNCF keeps silent where it is
quantise(Path(sys.argv[1]).read_bytes(), tile_graph(nn.Identity()), Path(sys.argv[2]))
import nncf.telemetry
time.sleep(1)  # a report would be sent by a thread
print(json.dumps([type(nncf.telemetry.telemetry).__name__, calls]))
"""


def test_int8_bytes_repeat_in_another_process_and_nothing_is_sent(
    graph: Graph, onnx_file: Path, tmp_path: Path
) -> None:
    for place in range(2):  # the second time, OpenVINO's own counters stand elsewhere
        here, _ = quantise(onnx_file.read_bytes(), graph, tmp_path)
        (tmp_path / f"{place}.xml").write_bytes(here["model.xml"])
    assert (tmp_path / "0.xml").read_bytes() == (tmp_path / "1.xml").read_bytes()
    (tmp_path / "elsewhere").mkdir()
    command = [sys.executable, "-c", _ELSEWHERE, str(onnx_file), str(tmp_path / "elsewhere")]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    reporter, calls = json.loads(output.splitlines()[-1])
    assert not calls
    assert reporter != "NNCFTelemetry"
    for name, data in here.items():
        assert (tmp_path / "elsewhere" / name).read_bytes() == data


def test_without_tiles_nothing_is_calibrated(
    graph: Graph, onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATHSERVE_DATA", str(tmp_path))
    with pytest.raises(DataMissing, match="Set PATHSERVE_DATA"):
        quantise(onnx_file.read_bytes(), graph, tmp_path)


def test_a_model_that_takes_no_tiles_stays_in_fp32(head_graph: Graph, head_engine: bytes, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="tissue_head does not take tiles"):
        quantise(head_engine, head_graph, tmp_path)


@pytest.mark.parametrize("spoiled", ["model.xml", "model.bin"])
def test_a_truncated_engine_is_refused(graph: Graph, onnx_file: Path, tmp_path: Path, spoiled: str) -> None:
    openvino.save_model(openvino.Core().read_model(onnx_file), tmp_path / "model.xml", compress_to_fp16=False)
    open_engine(tmp_path / "model.xml", "f32")
    content = (tmp_path / spoiled).read_bytes()
    (tmp_path / spoiled).write_bytes(content[: len(content) // 2])
    with pytest.raises(ExportError, match=r"OpenVINO cannot load model\.xml: "):
        open_engine(tmp_path / "model.xml", "f32")
