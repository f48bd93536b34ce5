"""The machine as it is found, its clock, and its measured matmul peak. Nothing here changes a setting of the GPU."""

import itertools
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

import torch
from record import Rows

QUERY = (
    "name,driver_version,memory.total,power.limit,power.draw,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,"
    "temperature.gpu,pstate,mig.mode.current,ecc.mode.current"
)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def choose() -> torch.device:
    """The GPU where there is one. TF32 is switched off for everything that follows: fp32 means fp32."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def nvidia_smi() -> dict[str, str]:
    """Driver, clocks, power and temperature at this moment; empty where they cannot be read."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    command = [tool, f"--query-gpu={QUERY}", "--format=csv,noheader"]
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(QUERY.split(","), (value.strip() for value in out.splitlines()[0].split(",")), strict=False))


def describe(device: torch.device) -> dict[str, Any]:
    """Name, compute capability, driver, CUDA and torch versions, memory, clocks and power."""
    machine: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cpu": platform.machine(),
        "cpu_threads": torch.get_num_threads(),
        "gpu": None,
        "nvidia_smi": nvidia_smi(),
    }
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        machine |= {
            "gpu": found.name,
            "compute_capability": f"{found.major}.{found.minor}",
            "multiprocessors": found.multi_processor_count,
            "memory_gib": round(found.total_memory / 2**30, 1),
            "cudnn": torch.backends.cudnn.version(),
        }
    return machine


def median_ms(run: Callable[[], object], device: torch.device, seconds: float = 0.7, most: int = 200) -> dict[str, Any]:
    """Median and spread (10 % and 90 % points) of one call in ms, by CUDA events on a GPU, after a warm-up.

    As many calls as fit into `seconds`, at least 5 (3 where `seconds` is that of a self-test) and at most `most`.
    """
    started = time.perf_counter()
    warm = 3 if seconds > 0.1 else 1
    for _ in range(warm):
        run()
    _wait(device)
    once_s = max((time.perf_counter() - started) / warm, 1e-6)
    count = int(min(max(seconds / once_s, 2 + warm), most))
    if device.type == "cuda":
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        marks[0].record()
        for mark in marks[1:]:
            run()
            mark.record()
        _wait(device)
        times = [before.elapsed_time(after) for before, after in itertools.pairwise(marks)]
    else:
        times = []
        for _ in range(count):
            begun = time.perf_counter()
            run()
            times.append((time.perf_counter() - begun) * 1e3)
    times.sort()
    return {
        "ms": round(statistics.median(times), 4),
        "ms_p10": round(times[len(times) // 10], 4),
        "ms_p90": round(times[-1 - len(times) // 10], 4),
        "calls": count,
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure_matmul(rows: Rows, device: torch.device, *, tiny: bool) -> None:
    """Square products of random matrices, and the four products of a ViT-L block for what its shapes can reach."""
    wide = (256,) if tiny else (2048, 4096, 6144, 8192, 12288, 16384)
    tokens = 64 if tiny else 64 * 257
    dim = 64 if tiny else 1024
    shapes = {
        "bf16": [(n, n, n) for n in wide],
        "fp16": [(n, n, n) for n in wide],
        "fp32": [(n, n, n) for n in wide if n in (256, 4096, 8192)],
    }
    vit = [(tokens, dim, 3 * dim), (tokens, dim, dim), (tokens, dim, 4 * dim), (tokens, 4 * dim, dim)]
    for dtype, sizes in shapes.items():
        for m, k, n in (*sizes, *(vit if dtype != "fp32" else ())):
            a, b = (torch.randn(shape, device=device).to(DTYPES[dtype]) for shape in ((m, k), (k, n)))
            out = torch.empty(m, n, device=device, dtype=DTYPES[dtype])
            timing = median_ms(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device, 0.05 if tiny else 0.5)
            rate = 2 * m * k * n / timing["ms"] / 1e9
            rows.add("matmul", dtype=dtype, m=m, k=k, n=n, square=m == k == n, tflops=round(rate, 4), **timing)
    rows.add("tf32", **tf32_evidence(device, 256 if tiny else 2048))


def tf32_evidence(device: torch.device, n: int) -> dict[str, Any]:
    """Relative error of fp32 products and convolutions against float64: about 1e-6 in fp32, 3e-4 with TF32."""
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(n, n, device=device, generator=generator) for _ in range(2))
    x = torch.randn(4, 64, 32, 32, device=device, generator=generator)
    w = torch.randn(64, 64, 3, 3, device=device, generator=generator)
    exact_ab, exact_xw = a.double() @ b.double(), torch.nn.functional.conv2d(x.double(), w.double())
    errors = [
        float((found.double() - exact).norm() / exact.norm())
        for found, exact in ((a @ b, exact_ab), (torch.nn.functional.conv2d(x, w), exact_xw))
    ]
    return {"matmul_error": errors[0], "convolution_error": errors[1], "off": max(errors) < 2e-5}
