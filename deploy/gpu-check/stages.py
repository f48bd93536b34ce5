"""The stages: what is built, run, compared and timed, each within its own share of the clock."""

import copy
import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import compare
import engines
import machine
import served
import tileset
import torch
import vit
from engines import Engine, speed
from record import Rows
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

BATCHES = (1, 8, 32, 64, 128, 256)
TUNED = "max-autotune-no-cudagraphs"


@dataclass(frozen=True, slots=True)
class Job:
    """What every stage is told. `tiny` is the self-test: small shapes, nothing compiled."""

    rows: Rows
    device: torch.device
    root: Path
    tiles: Path | None
    tiny: bool

    @property
    def batches(self) -> tuple[int, ...]:
        return (1,) if self.tiny else BATCHES

    @property
    def seconds(self) -> float:
        return 0.02 if self.tiny else 0.7

    @property
    def compiles(self) -> bool:
        return self.device.type == "cuda" and not self.tiny


def run_machine(job: Job) -> None:
    job.rows.add("machine", **machine.describe(job.device))
    machine.measure_matmul(job.rows, job.device, tiny=job.tiny)
    job.rows.add("machine_after", **machine.nvidia_smi())


def run_served(job: Job) -> None:
    """The served encoder as torch engines: fp32 against ONNX Runtime, fp16 and bf16 against fp32; images per second."""
    rows, device = job.rows, job.device
    try:
        model = served.open_served(job.root, device)
    except served.Unusable as error:
        rows.skip("served model", str(error))
        return
    found = tileset.load(job.tiles, most=4 if job.tiny else None)
    rows.add("tiles", **found.describe())
    batch = 2 if job.tiny else served.BATCH
    with torch.inference_mode():
        reference = served.Reference.compute(model, found, device)
        chain = served.onnx_parity(model, reference, 1 if job.tiny else 20)
        if chain is None:
            rows.skip("fp32 against ONNX Runtime", "ONNX Runtime or the served ONNX files are missing")
        else:
            doubts = compare.parity_failures(chain, "fp32") + compare.agreement_failures(chain, "fp32")
            reference = dataclasses.replace(reference, doubts=tuple(doubts))
            rows.add("onnx_parity", failures=doubts, **chain)
        images = reference.images_NHWC[:256].to(device)

        def judged(engine: Engine, name: str, dtype: str, *, fixed: bool = False) -> None:
            served.judge(rows, model, reference, engine, name, dtype, device, batch=batch, fixed_batch=fixed)

        judged(model.encoder, "torch fp32, eager", "fp32")
        for size in job.batches:
            speed(rows, "served", model.encoder, images, size, seconds=job.seconds, engine="eager", dtype="fp32")
        # A CPU has no fast fp16 convolution: the self-test takes bf16 alone.
        dtypes = ("fp16", "bf16") if device.type == "cuda" else ("bf16",)
        for dtype in dtypes:
            lowered = served.lower(model.encoder, machine.DTYPES[dtype])
            judged(lowered, f"torch {dtype}, eager", dtype)
            for size in job.batches:
                speed(rows, "served", lowered, images, size, seconds=job.seconds, engine="eager", dtype=dtype)
            if dtype == dtypes[0]:
                control(job, model, reference, served.wrong_normalisation(lowered), batch, dtype)
        if not job.compiles:
            rows.skip("served model compiled", "self-test or no GPU")
            return
        for dtype in dtypes:
            if rows.has_time(f"served {dtype} compiled", 35):
                with rows.attempt(f"served {dtype} compiled"):
                    served_compiled(job, model, reference, dtype, judged)


def served_compiled(
    job: Job, model: served.Served, reference: served.Reference, dtype: str, judged: Callable[..., None]
) -> None:
    """The encoder compiled for exact batch sizes: judged at 64, timed at 64 and 256, as a graph, from host memory."""
    rows, device, batch = job.rows, job.device, served.BATCH
    images = reference.images_NHWC[:256].to(device)
    compiled = engines.compile_whole(served.lower(model.encoder, machine.DTYPES[dtype]))
    judged(compiled, f"torch {dtype}, compiled, batch {batch} fixed", dtype, fixed=True)
    most = BATCHES[-1]
    for size in (batch, most):
        speed(rows, "served", compiled, images, size, engine="compiled", dtype=dtype)
    captured = engines.graph(compiled, engines.repeat_to(images, batch))
    speed(rows, "served", captured, images, batch, engine="compiled, graph", dtype=dtype)
    host_BHWC = engines.repeat_to(reference.images_NHWC[:most], most).pin_memory()
    speed(rows, "served", lambda _: compiled(host_BHWC.to(device, non_blocking=True)), images, most,
          engine="compiled, images from pinned host memory", dtype=dtype)  # fmt: skip


def control(
    job: Job, model: served.Served, reference: served.Reference, engine: Engine, batch: int, dtype: str
) -> None:
    """A wrong engine goes through the same comparison, and must fail it."""
    wrong = served.run_all(engine, reference.images_NHWC[:batch], batch, job.device)
    parity = compare.parity(wrong, reference.embedding_ND[:batch])
    failures = compare.parity_failures(parity, dtype)
    job.rows.add(
        "controls", control=f"served {dtype} with wrong normalisation", refused=bool(failures), failures=failures
    )


def golden_images(job: Job, geometry: vit.Geometry, count: int) -> Tensor:
    found = tileset.load(job.tiles, geometry.side_px, most=None if job.tiles and not job.tiny else count)
    step = max(len(found.images_NHWC) // count, 1)
    return torch.from_numpy(found.images_NHWC[::step][:count].copy()).to(job.device)


def run_vit(job: Job, geometry: vit.Geometry) -> None:
    """Speed, parity and batch invariance of one ViT geometry in bf16 and fp16, eager and with its blocks compiled."""
    rows, device, name = job.rows, job.device, geometry.name
    golden = golden_images(job, geometry, 8 if job.tiny else 64)
    model = vit.build(geometry).to(device)
    rows.add("geometry", model=name, gflop_per_image=geometry.flops / 1e9, tokens=geometry.tokens,
             parameters=sum(value.numel() for value in model.parameters()))  # fmt: skip
    with torch.inference_mode():
        reference = model(golden)
        exact = copy.deepcopy(model).double()
        truth = torch.cat([exact(golden[k : k + 2]) for k in (0, 2)])
        report_parity(rows, name, "fp32 against float64", "fp32", reference[:4], truth)
        del exact
        for dtype in ("bf16", "fp16"):
            lowered = vit.to_precision(vit.fold_layer_scale(copy.deepcopy(model)), machine.DTYPES[dtype])

            def timed(engine: Engine, label: str, batch: int, dtype: str = dtype) -> float:
                return speed(rows, "vit", engine, golden, batch, flops=geometry.flops, seconds=job.seconds,
                             model=name, engine=label, dtype=dtype)  # fmt: skip

            report_parity(rows, name, f"{dtype} eager", dtype, lowered(golden), reference)
            sizes = job.batches if dtype == "bf16" else job.batches[-3:]
            for batch in sizes:
                timed(lowered, "eager", batch)
            report_invariance(rows, name, f"{dtype} eager", dtype, lowered, golden)
            if job.compiles and rows.has_time(f"{name} {dtype} compiled", 40):
                compiled = engines.compile_blocks(copy.deepcopy(lowered))
                for batch in sizes[::-1]:
                    if rows.has_time(f"{name} {dtype} compiled, batch {batch}", 15):
                        with rows.attempt(f"{name} {dtype} compiled, batch {batch}"):
                            timed(compiled, "blocks compiled", batch)
                with rows.attempt(f"{name} {dtype} compiled, parity"):
                    report_parity(rows, name, f"{dtype} blocks compiled", dtype, compiled(golden), reference)
                    report_invariance(rows, name, f"{dtype} blocks compiled", dtype, compiled, golden)
                for batch in (1, 8, 32):
                    if batch in sizes and rows.has_time(f"{name} {dtype} graph, batch {batch}", 10):
                        with rows.attempt(f"{name} {dtype} graph, batch {batch}"):
                            captured = engines.graph(compiled, engines.repeat_to(golden, batch))
                            timed(captured, "blocks compiled, graph", batch)
        wrong = copy.deepcopy(model)
        wrong.blocks[-1].fc2.weight.zero_()
        failures = compare.parity_failures(compare.parity(wrong(golden), reference), "fp16")
        rows.add("controls", control=f"{name} without its last MLP", refused=bool(failures), failures=failures)


def report_parity(rows: Rows, model: str, engine: str, dtype: str, found: Tensor, reference: Tensor) -> None:
    figures = compare.parity(found, reference)
    rows.add("parity", model=model, engine=engine, failures=compare.parity_failures(figures, dtype), **figures)


def report_invariance(rows: Rows, model: str, engine: str, dtype: str, call: Engine, images_BHWC: Tensor) -> None:
    figures = compare.invariance(call, images_BHWC)
    rows.add("invariance", model=model, engine=engine, failures=compare.invariance_failures(figures, dtype), **figures)


def run_tuned(job: Job, geometry: vit.Geometry) -> None:
    """What more can be had at large batches: the faster attention, tuned products, the whole network as one graph."""
    rows, name = job.rows, geometry.name
    if not job.compiles:
        rows.skip(f"{name} tuned", "self-test or no GPU")
        return
    golden = golden_images(job, geometry, 64)
    model = vit.build(geometry).to(job.device)
    with torch.inference_mode():
        reference = model(golden)
        with rows.attempt("cuDNN's attention"):
            choose_attention(rows, geometry, job.device)
        lowered = vit.to_precision(vit.fold_layer_scale(model), torch.bfloat16)
        ways = (
            ("blocks compiled, tuned", lambda: engines.compile_blocks(copy.deepcopy(lowered), TUNED), 45),
            ("whole compiled", lambda: engines.compile_whole(lowered), 40),
        )
        for label, make, needs_s in ways:
            engine = make()
            for batch in BATCHES[-3:]:
                what = f"{name} {label}, batch {batch}"
                if rows.has_time(what, needs_s if batch == BATCHES[-3] else needs_s / 2):
                    with rows.attempt(what):
                        speed(rows, "vit", engine, golden, batch, flops=geometry.flops, model=name, engine=label,
                              dtype="bf16")  # fmt: skip
                        if batch == BATCHES[-3]:
                            report_parity(rows, name, f"bf16 {label}", "bf16", engine(golden), reference)


def choose_attention(rows: Rows, geometry: vit.Geometry, device: torch.device) -> None:
    """Time flash and cuDNN attention at the geometry's shape; where cuDNN's is the faster, use it in this process."""
    shape = (64, geometry.heads, geometry.tokens, geometry.dim // geometry.heads)
    q, k, v = (torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(3))
    ms = {}
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        with sdpa_kernel(backend):
            timing = machine.median_ms(lambda: F.scaled_dot_product_attention(q, k, v), device, 0.3)
        ms[backend] = timing["ms"]
        rows.add("attention", backend=backend.name, batch=64, **timing)
    if ms[SDPBackend.CUDNN_ATTENTION] < ms[SDPBackend.FLASH_ATTENTION]:
        torch.backends.cuda.enable_cudnn_sdp(True)
        for others in ("flash", "mem_efficient", "math"):
            getattr(torch.backends.cuda, f"enable_{others}_sdp")(False)


def run_package(job: Job) -> None:
    """An AOTInductor package of the served encoder in fp16 with a dynamic batch: judged as a file to be served."""
    rows, device = job.rows, job.device
    if not job.compiles:
        rows.skip("AOTInductor package of the served encoder", "self-test or no GPU")
        return
    model = served.open_served(job.root, device)
    found = tileset.load(job.tiles)
    images = torch.from_numpy(found.images_NHWC[:256]).to(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encoder.pt2"
        engine = engines.package(
            served.lower(model.encoder, machine.DTYPES["fp16"]), images[:8].contiguous(), 256, path
        )
        rows.add("packages", model=served.ENCODER, mb=round(path.stat().st_size / 1e6, 1))
        with torch.inference_mode():
            reference = served.Reference.compute(model, found, device)
            served.judge(rows, model, reference, engine, "torch fp16, AOTInductor package", "fp16", device)
            for batch in job.batches:
                speed(rows, "served", engine, images, batch, engine="AOTInductor", dtype="fp16")


def run_vit_packages(job: Job) -> None:
    """AOTInductor packages of ViT-S/16 and ViT-L/14 in bf16 with a dynamic batch."""
    if not job.compiles:
        job.rows.skip("AOTInductor packages of the ViTs", "self-test or no GPU")
        return
    with tempfile.TemporaryDirectory() as folder:
        for geometry, needs_s in ((vit.VIT_S16, 40), (vit.VIT_L14, 80)):
            what = f"AOTInductor package of {geometry.name}"
            if job.rows.has_time(what, needs_s):
                with job.rows.attempt(what):
                    package_vit(job, geometry, Path(folder) / "vit.pt2")


def package_vit(job: Job, geometry: vit.Geometry, path: Path) -> None:
    rows = job.rows
    golden = golden_images(job, geometry, 64)
    model = vit.build(geometry).to(job.device)
    with torch.inference_mode():
        reference = model(golden)
    lowered = vit.to_precision(vit.fold_layer_scale(model), torch.bfloat16)
    engine = engines.package(lowered, golden[:8].contiguous(), 256, path)
    rows.add("packages", model=geometry.name, mb=round(path.stat().st_size / 1e6, 1))
    with torch.inference_mode():
        report_parity(rows, geometry.name, "bf16 AOTInductor", "bf16", engine(golden), reference)
        for batch in job.batches:
            speed(rows, "vit", engine, golden, batch, flops=geometry.flops, model=geometry.name,
                  engine="AOTInductor", dtype="bf16")  # fmt: skip
