"""What a machine with a GPU makes of our engines: speed against its measured peak, parity, batch invariance.

    python deploy/gpu-check/gpu_check.py --out gpu-check.json [--tiles .gpu/tiles.npz] [--seconds 480]
    python deploy/gpu-check/gpu_check.py --self-test --out DIR/self-test.json
    python deploy/gpu-check/gpu_check.py --page docs/results/gpu-check.json > docs/results/gpu.md

Needs torch and numpy; onnxruntime, onnxscript, tensorrt and tensorrt_rtx are used where they are installed. The first
form ends within `--seconds` of its own clock and rewrites its JSON after every stage. Exit status 1 where a stage
failed; one that was cut by the clock is no failure. It changes no setting of the GPU.
"""

import argparse
import functools
import hashlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import page
from record import Clock, Record, Rows

HERE = Path(__file__).resolve().parent
SCHEMA = "pathserve-gpu-check-1"
STAGES = {  # name: its longest share in seconds; in the order of what is worth most
    "machine": 70,
    "served": 130,
    "vit_l": 120,
    "package": 90,
    "tensorrt": 90,
    "tensorrt_rtx": 60,
    "onnxruntime": 40,
    "vit_s": 80,
    "vit_l_tuned": 110,
    "vit_packages": 160,
}
OPTIONAL = ("tensorrt", "tensorrt_rtx", "onnxruntime")
GPU_ONLY = ("package", "onnxruntime", "vit_s", "vit_l_tuned", "vit_packages")
ARTEFACTS = {
    "served": "served encoder, torch fp32, fp16, bf16",
    "package": "served encoder, AOTInductor package",
    "tensorrt": "served encoder, TensorRT plan",
    "tensorrt_rtx": "served encoder, TensorRT-RTX engine",
    "onnxruntime": "served encoder, ONNX Runtime CUDA",
}
_CLOSING_S = 6.0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="gpu_check.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "build")) / "gpu-check.json")
    parser.add_argument("--root", type=Path, default=HERE.parents[1], help="the checkout")
    parser.add_argument("--tiles", type=Path, help="tiles made by pack.py; default: .gpu/tiles.npz of the checkout")
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--self-test", action="store_true", help="tiny shapes, no GPU needed: does every stage run?")
    parser.add_argument("--page", type=Path, help="print the page of a finished JSON file (or that it was not run)")
    parser.add_argument("--only", help="names of stages with commas between, for a second run")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--lines", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--end", type=float, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    chosen.tiles = chosen.tiles or chosen.root / ".gpu" / "tiles.npz"
    if chosen.page:
        sys.stdout.write(page.render(page.read(chosen.page)))
        return 0
    if chosen.stage:
        stage_main(chosen)
        return 0
    record = check(chosen)
    sys.stdout.write(page.render(record))
    return int(any(stage["state"] == "failed" for stage in record["stages"]))


def check(chosen: argparse.Namespace) -> dict[str, Any]:
    """Run every stage in a process of its own, and save after each."""
    clock = Clock.of(chosen.seconds)
    scripts = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(HERE.glob("*.py")))).hexdigest()
    head = {"schema": SCHEMA, "self_test": chosen.self_test, "budget_s": chosen.seconds, "scripts_sha256": scripts}
    record = Record(chosen.out, head)
    command = [sys.executable, str(HERE / "gpu_check.py"), "--root", str(chosen.root), "--tiles", str(chosen.tiles)]
    command += ["--self-test"] if chosen.self_test else []
    with tempfile.TemporaryDirectory() as folder:
        for name, share_s in STAGES.items():
            if chosen.only and name not in chosen.only.split(","):
                record.skip_stage(name, "not asked for")
                continue
            if chosen.self_test and name in GPU_ONLY:
                record.skip_stage(name, "self-test")
                continue
            if name in OPTIONAL and importlib.util.find_spec(name) is None:
                record.skip_stage(name, f"the package {name} is not installed")
                continue
            print(f"{name} …", file=sys.stderr, flush=True)
            record.run(name, command, Clock(clock.end_s - _CLOSING_S).sooner(share_s), Path(folder))
    finish(record.value)
    record.value["used_s"] = round(chosen.seconds - clock.left_s(), 1)
    record.save()
    return record.value


def finish(record: dict[str, Any]) -> None:
    """Shares of the measured peak, and a state for every artefact that no stage has spoken of."""
    peaks: dict[str, float] = {}
    for row in record.get("matmul", []):
        if row["square"] and record["machine"][0]["gpu"]:
            peaks[row["dtype"]] = max(peaks.get(row["dtype"], 0.0), row["tflops"])
    record["matmul_peak_tflops"] = peaks
    for row in record.get("vit", []):
        if peaks.get(row["dtype"]):
            row["peak_share"] = round(row["tflops"] / peaks[row["dtype"]], 4)
    spoken = {row["stage"] for row in record.setdefault("artefacts", [])}
    for name, artefact in ARTEFACTS.items():
        if name not in spoken:
            stage = next(stage for stage in record["stages"] if stage["name"] == name)
            said = [row["reason"] for row in record.get("skipped", []) if row["stage"] == name]
            reason = stage["reason"] or (said[0] if said else "the stage said nothing of it")
            record["artefacts"].append({"stage": name, "artefact": artefact, "state": "not run", "reason": reason})


def stage_main(chosen: argparse.Namespace) -> None:
    """One stage, in this process."""
    import machine
    import runtimes
    import stages
    import vit

    rows = Rows(chosen.lines, Clock(chosen.end))
    tiny = chosen.self_test
    job = stages.Job(rows, machine.choose(), chosen.root, chosen.tiles if chosen.tiles.is_file() else None, tiny)
    large, small = (vit.VIT_TINY, vit.VIT_TINY) if tiny else (vit.VIT_L14, vit.VIT_S16)
    work: dict[str, Callable[[], None]] = {
        "machine": lambda: stages.run_machine(job),
        "served": lambda: stages.run_served(job),
        "vit_l": lambda: stages.run_vit(job, large),
        "package": lambda: stages.run_package(job),
        "tensorrt": functools.partial(runtimes.run_tensorrt, job, runtimes.TENSORRT),
        "tensorrt_rtx": functools.partial(runtimes.run_tensorrt, job, runtimes.RTX),
        "onnxruntime": lambda: runtimes.run_onnxruntime(job),
        "vit_s": lambda: stages.run_vit(job, small),
        "vit_l_tuned": lambda: stages.run_tuned(job, large),
        "vit_packages": lambda: stages.run_vit_packages(job),
    }
    work[chosen.stage]()


if __name__ == "__main__":
    sys.exit(main())
