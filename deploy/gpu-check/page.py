"""The result as Markdown: what the script prints, and the page docs/results/gpu.md."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

GOAL = 0.60
GOAL_MODEL = "ViT-L/14"

_INTRODUCTION = """# Engines on a GPU

Made by `deploy/gpu-check/gpu_check.py`, not by hand:

    python deploy/gpu-check/gpu_check.py --page docs/results/gpu-check.json > docs/results/gpu.md
"""


def read(path: Path) -> dict[str, Any] | None:
    """A finished record, or None where there is none."""
    return json.loads(path.read_bytes()) if path.is_file() else None


def render(record: dict[str, Any] | None) -> str:
    """The page of a record; without one it says that nothing has been run."""
    if record is None:
        return (
            f"{_INTRODUCTION}\nState: **not run**. No engine of this repository has been built or run on a GPU, and no "
            "figure of a GPU is claimed. The TensorRT path is at most `PARSED` (parser and builder without a GPU).\n"
        )
    parts = [
        _INTRODUCTION,
        *_machine(record),
        *_artefacts(record),
        *_served(record),
        *_vit(record),
        *_arithmetic(record),
    ]
    return "\n".join([*parts, *_left_out(record)]) + "\n"


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    """A Markdown table with an empty line before it; nothing where there are no rows."""
    lines = ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    names = list(head)
    return ["", "| " + " | ".join(names) + " |", "|---" * len(names) + "|", *lines] if lines else []


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 1e-2 else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return str(value).replace("|", "/")


def _cosine(figures: dict[str, Any]) -> str | None:
    return f"{figures['min_cosine']:.6f}" if figures.get("min_cosine") is not None else None


def _machine(record: dict[str, Any]) -> list[str]:
    machine = (record.get("machine") or [{}])[0]
    smi = machine.get("nvidia_smi", {})
    peaks = ", ".join(f"{dtype} {rate:,.1f}" for dtype, rate in record.get("matmul_peak_tflops", {}).items())
    tf32 = (record.get("tf32") or [{}])[0]
    after = (record.get("machine_after") or [{}])[0]
    lines = []
    if record.get("self_test"):
        lines += ["**Self-test with tiny shapes: these figures say nothing of a GPU.**", ""]
    lines += [
        f"{machine.get('gpu') or 'No GPU'}, compute capability {machine.get('compute_capability', '–')}, driver "
        f"{smi.get('driver_version', '–')}, CUDA {machine.get('cuda')}, torch {machine.get('torch')}, Python "
        f"{machine.get('python')}. {record.get('used_s', 0):.0f} s of {record['budget_s']:.0f} s used. Clocks and "
        "power as found; no setting was changed.",
        "",
        f"Measured matmul peak in TFLOP/s (largest of the medians over square sizes, random values): {peaks or '–'}. "
        f"TF32 is off: {_cell(tf32.get('off'))} (relative error of an fp32 product {_cell(tf32.get('matmul_error'))}, "
        f"of a convolution {_cell(tf32.get('convolution_error'))}). Right after it: SM clock "
        f"{after.get('clocks.sm', '–')}, power {after.get('power.draw', '–')} of {after.get('power.limit', '–')}.",
    ]
    return lines


def _artefacts(record: dict[str, Any]) -> list[str]:
    rows = []
    for row in record.get("artefacts", []):
        gates = row.get("gates", {})
        g3, g4, golden = gates.get("G3", {}), gates.get("G4", {}), gates.get("golden") or {}
        gaps = [g4[key] for key in ("twice", "neighbours", "place", "size")] if g4 else []
        invariance = max(gaps) if gaps and None not in gaps else None
        rows.append((row["artefact"], f"`{row['state']}`", g3.get("tiles"), _cosine(g3), g3.get("flips"),
                     g3.get("crossings_outside"), invariance, golden.get("max_abs"), row["reason"]))  # fmt: skip
    lines = ["", "## Engines of the served tile encoder", ""]
    lines += [
        "`APPROVED` needs G3 and G4 on at least 5,000 tiles: worst cosine to the fp32 engine 0.9995, label flips at "
        "most 0.1 %, none where both engines answer, none across the operating point outside ±0.02, no bit changed by "
        "repeating or by other images in the batch. `BUILT` has run here and missed something; `PARSED` was parsed and "
        "built, not run; `not run` has its reason.",
    ]
    head = ("engine", "state", "tiles", "worst cosine", "label flips", "crossings outside", "batch dependence",
            "golden max abs", "reason")  # fmt: skip
    lines += table(head, rows)
    for row in record.get("onnx_parity", []):
        lines += [
            "",
            f"The fp32 reference against the served ONNX file in ONNX Runtime {row['onnxruntime']} on {row['samples']} "
            f"tiles: largest difference {_cell(row['max_abs'])}, worst cosine {row['min_cosine']:.7f}, "
            f"{row['flips']} label flips.",
        ]
    return lines


def _served(record: dict[str, Any]) -> list[str]:
    rows = [
        (row["engine"], row["dtype"], row["batch"], row["images_per_s"], row["ms"]) for row in record.get("served", [])
    ]
    return table(("engine", "precision", "batch", "images/s", "ms"), rows)


def _vit(record: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    found = record.get("vit", [])
    for geometry in {row["model"]: row for row in record.get("geometry", [])}.values():
        name = geometry["model"]
        lines += ["", f"## {name}", ""]
        lines += [
            f"{geometry['parameters']:,} parameters with random weights, 224 px tiles as UINT8 images, "
            f"{geometry['gflop_per_image']:.2f} GFLOP per image in matrix products (two per multiply-add), LayerScale "
            "folded into the linear layers of the bf16 and fp16 engines.",
        ]
        rows = [row for row in found if row["model"] == name]
        best = max(rows, key=lambda row: row.get("peak_share", 0.0), default=None)
        if best and "peak_share" in best:
            goal = (
                f" (goal {GOAL:.0%}: {'met' if best['peak_share'] >= GOAL else 'not met'})"
                if name == GOAL_MODEL
                else ""
            )
            lines += [
                "",
                f"Best: {best['images_per_s']:,.0f} images/s at batch {best['batch']} ({best['engine']}, "
                f"{best['dtype']}), {best['peak_share']:.1%} of the measured matmul peak{goal}.",
            ]
        lines += table(
            ("engine", "precision", "batch", "images/s", "TFLOP/s", "of the peak", "ms"),
            ((row["engine"], row["dtype"], row["batch"], row["images_per_s"], row["tflops"],
              f"{row['peak_share']:.1%}" if "peak_share" in row else None, row["ms"]) for row in rows),
        )  # fmt: skip
    return lines


def _arithmetic(record: dict[str, Any]) -> list[str]:
    lines = ["", "## Arithmetic"]
    lines += table(
        ("model", "engine", "samples", "max abs", "relative", "worst cosine", "outside the threshold"),
        ((row["model"], row["engine"], row["samples"], row["max_abs"], row["max_abs_relative"], _cosine(row),
          "; ".join(row["failures"]) or "no") for row in record.get("parity", [])),
    )  # fmt: skip
    lines += table(
        ("model", "engine", "twice", "neighbours", "place", "size", "outside the threshold"),
        ((row["model"], row["engine"], row["twice"], row["neighbours"], row["place"], row["size"],
          "; ".join(row["failures"]) or "no") for row in record.get("invariance", [])),
    )  # fmt: skip
    lines += table(
        ("negative control", "refused"),
        ((f"control: {row['control']}", row["refused"]) for row in record.get("controls", [])),
    )
    lines += table(
        ("matmul", "m", "k", "n", "TFLOP/s"),
        ((row["dtype"], row["m"], row["k"], row["n"], row["tflops"]) for row in record.get("matmul", [])),
    )
    return lines


def _left_out(record: dict[str, Any]) -> list[str]:
    lines = ["", "## Stages, and what was left out"]
    stages = ((row["name"], row["state"], row["seconds"], row["reason"]) for row in record["stages"])
    lines += table(("stage", "state", "seconds", "reason"), stages)
    lines += table(("left out", "reason"), ((row["what"], row["reason"]) for row in record.get("skipped", [])))
    return lines
