"""Whole vision transformers with random weights through every gate, and their speed through Triton.

    .venv-training/bin/python -m tests.exporters.vits b s

Too long for the suite, whose encoders have one block: a ViT-B is asked for some 180 images by PyTorch and as many by
ONNX Runtime. Prints for each size the CPU seconds of the build, its gates, and images/s served and direct.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import torch

from exporters.build import build
from tests.benchmarks import bench_triton
from tests.training.pathbench.encoders.conftest import write_registry
from training.nn.checkpoints import read_weights
from training.pathbench.encoders import cards
from training.pathbench.encoders.served import as_run

SIZES = {"s": (384, 6), "b": (768, 12)}
"""Width and heads of twelve blocks at 224 px, patch 16."""
CARD = """
title = "ViT-{size}"
licence = "none"
gated = false
commercial_ok = true
derivatives_ok = true
pretraining = []
dim = {width}
parameters = "random"
embedding = "class token"
field_um = 112
side_px = 224
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
weights = {{ source = "fresh" }}
transforms.native = {{ fit = "squash", interpolation = "bicubic" }}

[architecture]
kind = "vit"
image_px = 224
patch_px = 16
width = {width}
depth = 12
heads = {heads}
mlp = {mlp}
"""


def measure(size: str, work: Path) -> None:
    """Build one size into a repository of its own, and time it there."""
    width, heads = SIZES[size]
    write_registry(work, vit=CARD.format(size=size, width=width, heads=heads, mlp=4 * width))
    cards.FOLDER = work
    os.environ |= {"PATHSERVE_RUNS": str(work / "runs"), "PATHSERVE_MODEL_REPOSITORY": str(work / "repository")}
    run, start = as_run("vit"), time.process_time()
    (folder,) = build(run.path, work / "repository", random_weights=True)
    parameters = sum(tensor.numel() for tensor in read_weights(run.weights_path).values())
    gates = json.loads((work / "repository" / folder / "gate.json").read_bytes())["gates"]
    passed = " ".join(gate["gate"] for gate in gates if gate["passed"])
    print(f"ViT-{size}: {parameters:,} parameters, built in {time.process_time() - start:.0f} CPU s, passed {passed}")
    for row in bench_triton.measure(work):
        print(f"  {row.name}: {row.value:.1f} {row.unit}, {row.floor}, ratio {row.ratio:.3f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    bench_triton.BATCHES, bench_triton.ROUNDS = 2, 3
    for name in sys.argv[1:] or ["s"]:
        with tempfile.TemporaryDirectory() as temporary:
            measure(name, Path(temporary))
