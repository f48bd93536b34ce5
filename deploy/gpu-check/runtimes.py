"""Engines of other runtimes, where the machine has them: TensorRT, TensorRT-RTX, ONNX Runtime's CUDA provider.

Each is imported in the stage's own process only: a TensorRT runtime that finds no GPU can crash on use. Nothing here
works around a refusal: what the runtime says is the result.
"""

import importlib
import io
import warnings
from types import ModuleType
from typing import Any

import engines
import served
import tileset
import torch
from engines import Engine, speed
from record import last_line
from stages import Job
from torch import Tensor

TENSORRT, RTX = "tensorrt", "tensorrt_rtx"
_TORCH = {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "UINT8": torch.uint8}


class Refused(Exception):
    """A runtime's refusal. `parsed` says whether graph and builder had accepted the model before."""

    def __init__(self, message: str, *, parsed: bool) -> None:
        super().__init__(message)
        self.parsed = parsed


def run_tensorrt(job: Job, package: str) -> None:
    """Strongly typed engines of the served encoder, fp16 and fp32: parse, build, deserialize, judge, time."""
    runtime = importlib.import_module(package)
    job.rows.add("runtimes", package=package, version=runtime.__version__)
    model = served.open_served(job.root, job.device)
    found = tileset.load(job.tiles, most=16 if job.tiny else None)
    with torch.inference_mode():
        reference = served.Reference.compute(model, found, job.device)
        images = reference.images_NHWC[:256].to(job.device)
        for dtype in ("fp16", "fp32"):
            name = f"{package} {dtype}"
            if not job.rows.has_time(name, 15):
                continue
            try:
                graph = model.onnx(served.ENCODER).read_bytes() if dtype == "fp32" else half_onnx(model, images[:2])
                plan = build(runtime, graph, tileset.SIDE_PX)
                job.rows.add("built", artefact=name, bytes=len(plan))
                engine = load(runtime, plan, job.device)
            except Refused as refusal:
                state = "PARSED" if refusal.parsed else "not run"
                job.rows.add("artefacts", artefact=name, model=served.ENCODER, precision=dtype, state=state,
                             reason=last_line(str(refusal)))  # fmt: skip
                continue
            served.judge(job.rows, model, reference, engine, name, dtype, job.device)
            for batch in (1, 8, 32, served.BATCH):
                speed(job.rows, "served", engine, images, batch, engine=package, dtype=dtype)


def half_onnx(model: served.Served, example_BHWC: Tensor) -> bytes:
    """The served encoder as an ONNX graph whose convolutions are fp16: the precision is in the graph."""
    lowered = served.lower(model.encoder, torch.float16)
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings(action="ignore"), torch.no_grad():
            program = torch.onnx.export(
                lowered, (example_BHWC,), dynamo=True, opset_version=20, input_names=["image"],
                output_names=["embedding"], dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=served.BATCH)},),
                external_data=False, verbose=False,
            )  # fmt: skip
        program.save(buffer, external_data=False)
    except Exception as error:
        raise Refused(f"fp16 ONNX export: {type(error).__name__}: {last_line(str(error))}", parsed=False) from None
    return buffer.getvalue()


def build(runtime: ModuleType, graph: bytes, side_px: int) -> bytes:
    """A serialised engine for batches of 1 to 64. Raises Refused with the parser's or the builder's own words."""
    log = logger(runtime)
    builder = runtime.Builder(log)
    typed = getattr(runtime.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = runtime.OnnxParser(network, log)
    if not parser.parse(graph):
        raise Refused(f"parser: {parser.get_error(0).desc()}", parsed=False)
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    config.clear_flag(runtime.BuilderFlag.TF32)
    most = served.BATCH
    profile.set_shape("image", *((batch, side_px, side_px, 3) for batch in (1, most, most)))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise Refused(f"builder: {log.said()}", parsed=False)
    return bytes(plan)


def load(runtime: ModuleType, plan: bytes, device: torch.device) -> Engine:
    """The engine ready to run. Raises Refused where runtime or engine come back empty."""
    if device.type != "cuda":
        raise Refused("parsed and built; running it needs a GPU", parsed=True)
    log = logger(runtime)
    host = runtime.Runtime(log)
    engine = None if host is None else host.deserialize_cuda_engine(plan)
    context = None if engine is None else engine.create_execution_context()
    if context is None:
        raise Refused(f"runtime: {log.said()}", parsed=True)
    dtype = _TORCH[engine.get_tensor_dtype("embedding").name]

    def run(image_BHWC: Tensor) -> Tensor:
        context.set_input_shape("image", tuple(image_BHWC.shape))
        answer_BD = torch.empty(tuple(context.get_tensor_shape("embedding")), dtype=dtype, device=device)
        context.set_tensor_address("image", image_BHWC.data_ptr())
        context.set_tensor_address("embedding", answer_BD.data_ptr())
        if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise Refused(f"runtime: {log.said()}", parsed=True)
        return answer_BD

    run.keep = (host, engine)
    return run


def logger(runtime: ModuleType) -> Any:
    """A TensorRT logger that remembers its warnings and errors."""

    class Log(runtime.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (runtime.ILogger.Severity.ERROR, runtime.ILogger.Severity.INTERNAL_ERROR):
                self.lines.append(message)

        def said(self) -> str:
            return self.lines[-1] if self.lines else "no message"

    return Log()


def run_onnxruntime(job: Job) -> None:
    """The served fp32 ONNX file through ONNX Runtime's CUDA provider, TF32 off."""
    import onnxruntime

    rows, name = job.rows, "onnxruntime CUDA fp32"
    rows.add("runtimes", package="onnxruntime", version=onnxruntime.__version__)
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        rows.skip(name, "this onnxruntime has no CUDAExecutionProvider")
        return
    model = served.open_served(job.root, job.device)
    providers = [("CUDAExecutionProvider", {"use_tf32": "0"})]
    session = onnxruntime.InferenceSession(str(model.onnx(served.ENCODER)), providers=providers)
    if session.get_providers()[0] != "CUDAExecutionProvider":
        rows.skip(name, "the session fell back to the CPU")
        return

    def engine(image_BHWC: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["embedding"], {"image": image_BHWC.cpu().numpy()})[0])

    with torch.inference_mode():
        reference = served.Reference.compute(model, tileset.load(job.tiles), job.device)
        served.judge(rows, model, reference, engine, name, "fp32", job.device)
        images = engines.repeat_to(reference.images_NHWC[:256], 256).to(job.device)
        for batch in (1, 8, 32, served.BATCH):
            speed(rows, "served", engine, images, batch, engine=name, dtype="fp32")
