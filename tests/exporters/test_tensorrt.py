"""The target `tensorrt` without a GPU: TensorRT-RTX parses and builds every kind of graph, or says why it cannot."""

import functools
import json
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import model_config_pb2

from exporters import gates, shapes, tensorrt, tensorrt_gate
from exporters.errors import ExportError, GateFailed
from exporters.imitate import cpu_arithmetic
from exporters.kinds import kind_of
from exporters.tensorrt import TARGET, in_precision
from exporters.tensorrt_config import TensorRtConfig, check_tensorrt_config
from exporters.tensorrt_gate import BUILDER, OFFLINE, g2_tensorrt
from gateway.inference.contract import parse_contract
from tests.exporters import networks
from tests.exporters.conftest import ROOT
from training.graphs import Graph
from training.runs import Run

pytestmark = pytest.mark.training

ABSENT = Path("/nonexistent/python")


@pytest.fixture(scope="module", autouse=True)
def offline() -> None:
    if not OFFLINE.is_file():
        pytest.fail("TensorRT-RTX is not installed: run make setup-tensorrt")


def config_of(graph: Graph, folder: str = "tiny") -> TensorRtConfig:
    return TensorRtConfig(
        name=folder,
        inputs=graph.inputs,
        outputs=graph.outputs,
        max_batch_size=graph.max_batch_size,
        profile=shapes.profile(graph),
    )


@pytest.mark.parametrize(
    ("kind", "precision"),
    [(kind, "fp16") for kind in networks.EVERY]
    + [(kind, precision) for kind in ("encoder", "bag", "step") for precision in ("fp32", "bf16")],
)
def test_every_kind_of_graph_is_parsed_and_built(kind: str, precision: str, tmp_path: Path) -> None:
    graph, fp32 = networks.made(kind), networks.exported(kind)
    typed, calibration = in_precision(graph, fp32, precision)
    assert calibration is None
    checked = gates.g0_export(typed, config_of(graph), kind_of(graph), precision)
    assert checked["opset"] == (22 if precision == "bf16" else 20)
    assert cpu_arithmetic(graph, fp32, typed, precision)
    built = g2_tensorrt(typed, shapes.profile(graph), tmp_path)
    assert built.plan is None
    assert built.figures["package"] == "tensorrt_rtx"
    assert built.figures["network_layers"] > 0
    assert built.figures["distributive_independence"]
    assert not built.figures["tf32"]
    assert built.figures["outputs"].keys() == {spec.name for spec in graph.outputs}
    assert "HALF" not in json.dumps(built.figures["outputs"])
    assert not list(tmp_path.glob("*.plan")) + list(tmp_path.glob("*.rtx_aot"))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_released_encoder_is_parsed_and_no_plan_is_made(
    encoder_run: Run, encoder_graph: Graph, encoder_engine: bytes, precision: str, tmp_path: Path
) -> None:
    artefact = TARGET.build(encoder_run, encoder_graph, encoder_engine, "tile_encoder-v2", precision, tmp_path)
    assert artefact.files.keys() == {"2/model.onnx"}
    assert artefact.engine == ("2/model.onnx",)
    assert artefact.state == "PARSED"
    assert "without a GPU, and nothing was run" in str(artefact.not_executed)
    verdicts = {gate["gate"]: gate["passed"] for gate in artefact.gates}
    assert verdicts == {"G0": True, "G2": True, "G4": None}
    assert artefact.tools == {"tensorrt_rtx": "1.7.1.116"}
    contract = parse_contract("tile_encoder-v2", artefact.config)
    assert (contract.artefact, contract.max_batch_size, contract.instances) == ("model.plan", 64, 1)
    if precision == "fp16":
        (figures,) = (gate["figures"]["cpu_arithmetic"] for gate in artefact.gates if gate["gate"] == "G2")
        assert figures["embedding"]["min_cosine"] > 0.9999
        assert figures["embedding"]["max_abs_relative"] > 1e-5, "fp16 was not really computed"


def test_the_released_head_is_parsed(head_run: Run, head_graph: Graph, head_engine: bytes, tmp_path: Path) -> None:
    artefact = TARGET.build(head_run, head_graph, head_engine, "tissue_head-v2", "fp16", tmp_path)
    assert artefact.state == "PARSED"


def test_a_head_is_not_quantised(head_run: Run, head_graph: Graph, head_engine: bytes, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="tissue_head takes no tiles"):
        TARGET.build(head_run, head_graph, head_engine, "tissue_head-v2", "int8", tmp_path)


def test_where_tensorrt_rtx_is_absent_nothing_is_claimed(
    head_run: Run, head_graph: Graph, head_engine: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt, "g2_tensorrt", functools.partial(g2_tensorrt, offline=ABSENT))
    artefact = TARGET.build(head_run, head_graph, head_engine, "tissue_head-v2", "fp16", tmp_path)
    assert artefact.state == "EXPORTED"
    assert "neither TensorRT nor TensorRT-RTX has seen its graph" in str(artefact.not_executed)
    (gate,) = (gate for gate in artefact.gates if gate["gate"] == "G2")
    assert gate["passed"] is None
    assert gate["reason"].endswith("and TensorRT-RTX is not installed: run make setup-tensorrt.")


def interpreter(path: Path, script: str) -> Path:
    """A stand-in for an interpreter: gets the builder's command line, and does something else."""
    path.write_text(script)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_a_plan_that_tensorrt_built_is_what_is_served(
    head_run: Run, head_graph: Graph, head_engine: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Stands in for TensorRT on a GPU: writes what the builder would write there.
    report = {
        "package": "tensorrt",
        "version": "11.4.0.106",
        "gpu": {"name": "Stand-in GPU", "compute_capability": "9.0", "cuda_driver": "13.0"},
    }
    script = f"""#!{sys.executable}
import sys
from pathlib import Path
given = dict(zip(sys.argv[3::2], sys.argv[4::2]))
Path(given["--engine"]).write_bytes(b"a plan")
Path(given["--timing-cache"]).write_bytes(b"a cache")
Path(given["--report"]).write_text({json.dumps(report)!r})
"""
    here = interpreter(tmp_path / "python", script)
    monkeypatch.setattr(tensorrt, "g2_tensorrt", functools.partial(g2_tensorrt, here=here, offline=ABSENT))
    work = tmp_path / "work"
    work.mkdir()
    artefact = TARGET.build(head_run, head_graph, head_engine, "tissue_head-v3", "fp16", work)
    assert artefact.state == "BUILT", "only gpu-check's figures approve it"
    assert artefact.files.keys() == {"3/model.onnx", "3/model.plan", "3/timing.cache"}
    assert artefact.engine == ("3/model.plan",)
    assert artefact.files["3/model.plan"] == b"a plan"
    assert "have not been compared" in str(artefact.not_executed)
    parsed = text_format.Parse(artefact.config, model_config_pb2.ModelConfig())
    assert parsed.parameters["tensorrt_version"].string_value == "11.4.0.106"
    assert parsed.parameters["compute_capability"].string_value == "9.0"


def test_a_builder_that_crashes_or_says_nothing_fails_the_gate(tmp_path: Path) -> None:
    onnx_file, profile = networks.exported("head"), shapes.profile(networks.made("head"))
    crashing = interpreter(tmp_path / "crashing", "#!/bin/sh\nkill -SEGV $$\n")
    with pytest.raises(GateFailed, match="G2: the builder of tensorrt crashed on the graph \\(SIGSEGV\\)"):
        g2_tensorrt(onnx_file, profile, tmp_path, here=crashing)
    silent = interpreter(tmp_path / "silent", "#!/bin/sh\necho no memory >&2\nexit 3\n")
    with pytest.raises(GateFailed, match="ended without a report \\(no memory\\)"):
        g2_tensorrt(onnx_file, profile, tmp_path, offline=silent)


def model(nodes: list[onnx.NodeProto], given: dict[str, list], made: dict[str, tuple], **more: object) -> bytes:
    """A checked ONNX file: fp32 inputs by shape, outputs by (type, shape), constants, and an opset."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in given.items()],
        [helper.make_tensor_value_info(name, kind, dims) for name, (kind, dims) in made.items()],
        [numpy_helper.from_array(array, name) for name, array in more.get("constants", {}).items()],
    )
    opset = helper.make_opsetid("", more.get("opset", 20))
    file = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    onnx.checker.check_model(file, full_check=True)
    return file.SerializeToString()


def suppression() -> tuple[bytes, dict]:
    nodes = [helper.make_node("NonMaxSuppression", ["boxes", "scores", "most", "iou"], ["chosen"])]
    constants = {"most": np.array([10]), "iou": np.array([0.5], np.float32)}
    file = model(
        nodes,
        {"boxes": ["batch", 100, 4], "scores": ["batch", 1, 100]},
        {"chosen": (TensorProto.INT64, ["rows", 3])},
        constants=constants,
    )
    return file, {"boxes": [(size, 100, 4) for size in (1, 2, 4)], "scores": [(size, 1, 100) for size in (1, 2, 4)]}


def attention_of_opset_23() -> tuple[bytes, dict]:
    shape = ["batch", 2, 16, 8]
    nodes = [helper.make_node("Attention", ["q", "k", "v"], ["y"])]
    file = model(nodes, dict.fromkeys("qkv", shape), {"y": (TensorProto.FLOAT, shape)}, opset=23)
    return file, {name: [(size, 2, 16, 8) for size in (1, 2, 4)] for name in "qkv"}


def many_best() -> tuple[bytes, dict]:
    nodes = [helper.make_node("TopK", ["x", "k"], ["y", "places"])]
    made = {"y": (TensorProto.FLOAT, ["batch", 5000]), "places": (TensorProto.INT64, ["batch", 5000])}
    file = model(nodes, {"x": ["batch", 6000]}, made, constants={"k": np.array([5000])})
    return file, {"x": [(size, 6000) for size in (1, 2, 4)]}


def free_size(*profile: tuple[int, ...]) -> tuple[bytes, dict]:
    file = model(
        [helper.make_node("Relu", ["x"], ["y"])],
        {"x": ["batch", "tiles"]},
        {"y": (TensorProto.FLOAT, ["batch", "tiles"])},
    )
    return file, {"x": profile} if profile else {}


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (suppression(), "parses the graph but cannot build it: .*has no runners that implement it"),
        (attention_of_opset_23(), "parses the graph but cannot build it: .*Attention operation was not supported"),
        (many_best(), "parses the graph but cannot build it: .*K exceeds the maximum value allowed \\(3840\\)"),
        (free_size(), "cannot build it: Dynamic input tensor x is missing dimensions in profile 0"),
        (free_size((4, 4), (2, 2), (1, 1)), "cannot build it: an optimisation profile does not fit the graph's inputs"),
        (free_size((4,), (5,), (6,)), "cannot build it: Dynamic-shaped input tensor x has 2 dimensions but profile 0"),
        ((networks.exported("encoder")[:2000], {}), "cannot parse the graph: .*Failed to parse the ONNX model"),
    ],
    ids=["NMS", "opset 23", "top 5000", "no profile", "profile upside down", "profile of another rank", "truncated"],
)
def test_what_tensorrt_cannot_build_fails_with_a_sentence(case: tuple[bytes, dict], words: str, tmp_path: Path) -> None:
    file, profile = case
    with pytest.raises(GateFailed, match=f"G2: tensorrt_rtx .*{words}") as failure:
        g2_tensorrt(file, profile, tmp_path)
    assert "/" not in failure.value.detail, "paths are of no use to the reader"
    assert failure.value.figures["refused_at"] in ("parse", "build")


def test_arithmetic_that_fp16_breaks_fails_before_any_gpu_is_asked() -> None:
    graph, fp32 = networks.made("head"), onnx.load_from_string(networks.exported("head"))
    for weight in fp32.graph.initializer:
        array = numpy_helper.to_array(weight).astype(np.float32)
        weight.CopyFrom(numpy_helper.from_array(array * np.float32(60000 / np.abs(array).max()), weight.name))
    file = fp32.SerializeToString()
    with pytest.raises(GateFailed, match="logits holds NaN or infinite values in fp16"):
        cpu_arithmetic(graph, file, in_precision(graph, file, "fp16")[0], "fp16")
    shifted = onnx.load_from_string(networks.exported("head"))
    bias = next(weight for weight in shifted.graph.initializer if weight.dims == [3])
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32([1, 0, 0]), bias.name))
    other = in_precision(graph, shifted.SerializeToString(), "fp16")[0]
    with pytest.raises(GateFailed, match="G2: logits in fp16 has a worst cosine of 0"):
        cpu_arithmetic(graph, networks.exported("head"), other, "fp16")


def test_the_config_warms_up_both_ends_of_the_profile() -> None:
    ends = {"encoder": [(1, [32, 32, 3]), (8, [32, 32, 3])], "bag": [(1, [1, 1, 16]), (1, [1, networks.TILES.max, 16])]}
    for kind, due in ends.items():
        graph = networks.made(kind)
        config = config_of(graph)
        check_tensorrt_config(config)
        parsed = text_format.Parse(config.text(), model_config_pb2.ModelConfig())
        assert parsed.platform == "tensorrt_plan"
        (group,) = parsed.instance_group
        assert (group.kind, list(group.profile)) == (group.KIND_GPU, ["0"])
        name = graph.inputs[0].name
        found = [(each.batch_size, list(each.inputs[name].dims)) for each in parsed.model_warmup]
        assert found == due
        assert parsed.HasField("dynamic_batching") == (graph.batch is not None)
        parse_contract("tiny", config.text())


def test_a_config_that_promises_more_than_its_profile_is_refused() -> None:
    graph = networks.made("encoder")
    shorter = {"image": tuple((size, 32, 32, 3) for size in (1, 2, 4))}
    promise = "promises batches of 8, but the optimisation profile of image ends at 4"
    for profile, words in ((shorter, promise), ({}, "lacks the input image")):
        config = TensorRtConfig(
            name="tiny", inputs=graph.inputs, outputs=graph.outputs, max_batch_size=8, profile=profile
        )
        with pytest.raises(ExportError, match=words):
            check_tensorrt_config(config)


def test_an_engine_of_tensorrt_rtx_is_never_called_a_plan(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(networks.exported("head"))
    (tmp_path / "profiles.json").write_text(json.dumps([shapes.profile(networks.made("head"))]))

    def build(engine: str) -> subprocess.CompletedProcess[str]:
        files = ["--onnx", "model.onnx", "--profiles", "profiles.json", "--report", "report.json"]
        return subprocess.run(
            [OFFLINE, "-P", BUILDER, "--package", "tensorrt_rtx", *files, "--engine", engine],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    refused = build("model.plan")
    assert refused.returncode == 2
    assert "an engine of tensorrt_rtx is named *.rtx_aot" in refused.stderr
    assert not (tmp_path / "model.plan").exists()
    assert build("model.rtx_aot").returncode == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["engine_bytes"] == (tmp_path / "model.rtx_aot").stat().st_size


def test_the_builder_says_what_is_missing(tmp_path: Path) -> None:
    file, profile = networks.exported("head"), shapes.profile(networks.made("head"))
    built = g2_tensorrt(file, profile, tmp_path, offline=Path(sys.executable))
    assert built.figures == {}
    assert "TensorRT-RTX cannot be imported (No module named 'tensorrt_rtx')" in str(built.reason)
    assert tensorrt_gate.BUILDER == ROOT / "exporters" / "tensorrt_builder.py"
