"""The target `cpu`: OpenVINO on processors, in fp32, bf16, or with static INT8.

fp32 and bf16 run the fp32 ONNX itself under a precision that is always said. INT8 is an IR of its own: NNCF's static
post-training quantisation, weights per channel, activation ranges fixed on tiles that no engine is judged on. Ranges
taken from the batch at hand (dynamic quantisation) are never built: an image's result would depend on its neighbours.
"""

import contextlib
import io
import os
import threading
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import openvino
from openvino._offline_transformations import apply_moc_transformations

from exporters.config import OpenVinoConfig, check_config
from exporters.errors import ExportError, GateFailed
from exporters.gates import g4_invariance
from exporters.kinds import kind_of
from exporters.targets import Engine, Target, TargetArtefact
from exporters.tiles import calibration_tiles
from exporters.versions import name_and_number
from gateway.inference import ModelRepository
from training.graphs import Arrays, Graph
from training.runs import Run

HINTS: dict[str, Literal["f32", "bf16"]] = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""What floats are computed in. Beside INT8 few are left: bf16 would gain 2 % and need newer processors."""
CALIBRATION_TILES, CALIBRATION_SEED = 300, 2026
CALLERS = 2


def open_engine(model: Path, hint: str, callers: int = CALLERS) -> Engine:
    """An ONNX file or IR as its backend serves it: one thread a request, `callers` requests at a time.

    Raises ExportError where OpenVINO cannot load it, or where this processor does not compute in `hint`.
    """
    settings = {
        "INFERENCE_PRECISION_HINT": hint,
        "EXECUTION_MODE_HINT": "ACCURACY",
        "INFERENCE_NUM_THREADS": callers,
        "NUM_STREAMS": callers,
        "ENABLE_CPU_PINNING": False,
    }
    try:
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(model), "CPU", settings)
    except RuntimeError as error:
        raise ExportError(f"OpenVINO cannot load {model.name}: {_sentence(error)}") from None
    if compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() != hint:
        raise ExportError(f"This processor does not compute in {hint}. Build that precision on one that does.")
    held = threading.local()

    def answer(inputs: Arrays) -> Arrays:
        if not hasattr(held, "request"):
            held.request = compiled.create_infer_request()  # one a thread: a request is not to be shared
        try:
            found = held.request.infer(inputs)
        except RuntimeError as error:
            raise GateFailed(f"G4: OpenVINO cannot run the graph ({_sentence(error)}).") from None
        return {output.any_name: found[output] for output in compiled.outputs}

    return answer


def quantise(onnx: bytes, graph: Graph, work: Path, **options: Any) -> tuple[dict[str, bytes], dict[str, Any]]:
    """(model.xml and model.bin, what it was calibrated on), written to `work` too. `options` are nncf.quantize's own.

    The same graph, tiles and options give the same bytes.

    Raises ExportError for a graph that does not take tiles, DataMissing where there are no tiles to calibrate on.
    """
    if {spec.name for spec in graph.inputs} != {"image"}:
        raise ExportError(f"{graph.model} does not take tiles, so its ranges cannot be calibrated: it stays in fp32.")
    tiles = calibration_tiles(graph.card["tile_px"], CALIBRATION_TILES, CALIBRATION_SEED)
    images = [image_HWC[None] for batch in tiles.batches() for image_HWC in batch.images_BHWC]
    os.environ["NNCF_CI"] = "1"  # read at import: nothing is reported to NNCF's makers
    try:
        import nncf

        nncf.set_log_level(40)
        with contextlib.redirect_stdout(io.StringIO()):  # progress bars
            quantised = nncf.quantize(fused(onnx), nncf.Dataset(images), subset_size=len(images), **options)
        _name(quantised)
        openvino.save_model(quantised, work / "model.xml", compress_to_fp16=False)
    except Exception as error:  # NNCF raises classes of its own, OpenVINO's and numpy's
        raise ExportError(f"{graph.model} cannot be quantised by NNCF: {_sentence(error)}") from None
    files = {name: (work / name).read_bytes() for name in ("model.xml", "model.bin")}
    return files, {"sha256": tiles.digest, "count": len(tiles), "seed": CALIBRATION_SEED, "sources": tiles.sources}


def fused(onnx: bytes) -> openvino.Model:
    """The graph with its norms inside its convolutions: one range less a layer, and biases that NNCF can correct."""
    model = openvino.Core().read_model(onnx)
    apply_moc_transformations(model, cf=True, smart_reshape=False)
    _name(model)
    return model


def _name(model: openvino.Model) -> None:
    """Names that OpenVINO makes up count on through a process; these are the same in every one."""
    for place, node in enumerate(model.get_ordered_ops()):
        if node.get_type_name() not in ("Parameter", "Result"):
            node.set_friendly_name(f"{node.get_type_name()}.{place}")


def _build(run: Run, graph: Graph, onnx: bytes, folder: str, precision: str, work: Path) -> TargetArtefact:
    calibration = None
    if precision == "int8":
        files, calibration = quantise(onnx, graph, work)
    else:
        files = {"model.onnx": onnx}
        (work / "model.onnx").write_bytes(onnx)
    file: Literal["model.onnx", "model.xml"] = "model.xml" if precision == "int8" else "model.onnx"
    config = OpenVinoConfig(
        name=folder,
        inputs=graph.inputs,
        outputs=graph.outputs,
        batch=graph.batch,
        file=file,
        precision=HINTS[precision],
    )
    check_config(config)
    invariance = g4_invariance(open_engine(work / file, HINTS[precision]), graph, kind_of(graph))
    version = name_and_number(folder)[1]
    tools = ["openvino", "nncf"] if precision == "int8" else ["openvino"]
    return TargetArtefact(
        files={f"{version}/{name}": data for name, data in files.items()},
        engine=tuple(f"{version}/{name}" for name in files),
        config=config.text(),
        state="BUILT",
        gates=({"gate": "G4", "passed": True, "figures": invariance},),
        calibration=calibration,
        tools={name: metadata.version(name) for name in tools},
    )


def _open(folder: Path) -> Engine:
    models = ModelRepository(folder.parent)
    contract, card = models.contract(folder.name), models.document(folder.name)
    return open_engine(folder / name_and_number(folder.name)[1] / contract.artefact, HINTS[card["precision"]])


def _sentence(error: Exception) -> str:
    """OpenVINO's own sentence: the last line below the places in its source that the error came through."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1][:200]


TARGET = Target("cpu", ("fp32", "bf16", "int8"), _build, _open)
