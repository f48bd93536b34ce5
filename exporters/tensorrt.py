"""The target `tensorrt`: a strongly typed graph in fp32, fp16, bf16, int8 or fp8, and its plan where one can be built.

A plan is built only by TensorRT on the GPU that will serve it. Elsewhere the folder holds the graph (`model.onnx`) in
the place of `model.plan`, and the artefact's state says how far it was proven: PARSED where TensorRT-RTX parsed and
built it, else EXPORTED. Neither that engine nor the plan is run here: only deploy/gpu-check's figures approve one.
"""

from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from exporters import gates, shapes
from exporters.errors import ExportError
from exporters.imitate import cpu_arithmetic
from exporters.kinds import kind_of
from exporters.lower import LOW, lower
from exporters.quantize import quantize
from exporters.targets import Engine, Target, TargetArtefact
from exporters.tensorrt_config import TensorRtConfig, check_tensorrt_config
from exporters.tensorrt_gate import Built, g2_tensorrt
from exporters.tiles import calibration_tiles
from exporters.versions import name_and_number
from training.files import sha256_bytes
from training.graphs import Graph
from training.runs import Run

CALIBRATION_TILES, CALIBRATION_SEED = 256, 0
_CALIBRATION_BATCH = 4
"""While it calibrates, ONNX Runtime holds every activation of a batch at once."""
QUANTISED = ("int8", "fp8")


def _build(run: Run, graph: Graph, onnx: bytes, folder: str, precision: str, work: Path) -> TargetArtefact:
    typed, calibration = in_precision(graph, onnx, precision)
    profile = shapes.profile(graph)
    config = TensorRtConfig(
        name=folder,
        inputs=graph.inputs,
        outputs=graph.outputs,
        max_batch_size=graph.max_batch_size,
        profile=profile,
    )
    check_tensorrt_config(config)
    checked = gates.g0_export(typed, config, kind_of(graph), precision)
    arithmetic = cpu_arithmetic(graph, onnx, typed, precision)
    built = g2_tensorrt(typed, profile, work)
    version = name_and_number(folder)[1]
    files, engine, state = {f"{version}/model.onnx": typed}, f"{version}/model.onnx", "EXPORTED"
    if built.plan is not None and built.timing_cache is not None:
        engine, state = f"{version}/model.plan", "BUILT"
        files |= {engine: built.plan, f"{version}/timing.cache": built.timing_cache}
        config = _of_plan(config, built)
    elif built.figures:
        state = "PARSED"
    figures = built.figures | {"graph_sha256": sha256_bytes(typed), "cpu_arithmetic": arithmetic}
    parsed = {"passed": True} if built.figures else {"passed": None, "reason": built.reason}
    return TargetArtefact(
        files=files,
        engine=(engine,),
        config=config.text(),
        state=state,
        not_executed=_not_executed(state, built),
        gates=(
            {"gate": "G0", "passed": True, "figures": checked},
            {"gate": "G2", **parsed, "figures": figures},
            {"gate": "G4", "passed": None, "reason": "The engine was not run; the fp32 graph's figures stand here."},
        ),
        calibration=calibration,
        tools=_tools(precision, built),
    )


def in_precision(graph: Graph, onnx: bytes, precision: str) -> tuple[bytes, dict[str, Any] | None]:
    """The fp32 graph in another precision, and what it was calibrated on.

    Raises ExportError where the graph does not bear it, DataMissing where there are no tiles to calibrate on.
    """
    if precision in LOW:
        return lower(onnx, precision), None
    if precision not in QUANTISED:
        return onnx, None
    if {spec.name for spec in graph.inputs} != {"image"}:
        raise ExportError(f"{graph.model} takes no tiles, so its ranges cannot be calibrated. Build it in fp16.")
    tiles = calibration_tiles(graph.card["tile_px"], CALIBRATION_TILES, CALIBRATION_SEED)
    parts = (
        {"image": batch.images_BHWC[start : start + _CALIBRATION_BATCH]}
        for batch in tiles.batches()
        for start in range(0, len(batch.images_BHWC), _CALIBRATION_BATCH)
    )
    calibration = {"sha256": tiles.digest, "count": len(tiles), "seed": CALIBRATION_SEED, "sources": tiles.sources}
    return quantize(onnx, precision, parts), calibration


def _of_plan(config: TensorRtConfig, built: Built) -> TensorRtConfig:
    """The config with what a server must have to take this plan."""
    gpu = built.figures["gpu"]
    facts = {"tensorrt_version": built.figures["version"], "compute_capability": gpu["compute_capability"]}
    return replace(config, built=facts)


def _not_executed(state: str, built: Built) -> str:
    if state == "BUILT":
        gpu = built.figures["gpu"]
        return (
            f"The plan was built and loaded on one {gpu['name']} (compute capability {gpu['compute_capability']}); its "
            "answers have not been compared with the fp32 engine's."
        )
    if state == "PARSED":
        return (
            f"There is no TensorRT plan of this version yet: TensorRT-RTX {built.figures['version']} parsed and built "
            f"its graph for {built.figures['built_for']} without a GPU, and nothing was run."
        )
    return "There is no TensorRT plan of this version yet: neither TensorRT nor TensorRT-RTX has seen its graph."


def _tools(precision: str, built: Built) -> dict[str, str]:
    used = {"onnxruntime": metadata.version("onnxruntime")} if precision in QUANTISED else {}
    return used | ({built.figures["package"]: built.figures["version"]} if built.figures else {})


def _open(folder: Path) -> Engine | None:
    """A plan runs through Triton on its GPU, where deploy/gpu-check judges it; never in this process."""
    return None


TARGET = Target("tensorrt", ("fp16", "fp32", "bf16", "int8", "fp8"), _build, _open)
