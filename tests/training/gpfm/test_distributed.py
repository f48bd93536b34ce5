"""The full-scale recipe itself, made small from the command line, in two processes with shared-out weights."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from training.runs import Run, open_run

pytestmark = pytest.mark.training

ROOT = Path(__file__).resolve().parents[3]
CHANGES = (
    "iterations=2",
    "network.image_px=28",
    "network.width=16",
    "network.depth=4",
    "network.heads=2",
    "network.mlp=32",
    "crops.global_px=28",
    "crops.local_px=14",
    "crops.local_count=2",
    "dino.prototypes=16",
    "dino.hidden=16",
    "dino.bottleneck=8",
    "kd.head.bottleneck=8",
    'kd.experts=[{name="tissue", run="tissue", dim=12, grid=1, cls=1.0, patch=0.25}]',
    'data.sets=["crc9"]',
    "data.batch=4",
    "data.workers=0",
    "log_every=1",
)


def test_the_full_recipe_runs_small_in_two_processes(
    gpfm_folder: Path, experts: dict[str, Run], tmp_path: Path
) -> None:
    text = (ROOT / "training" / "recipes" / "gpfm-vitl14-full.toml").read_text(encoding="utf-8")
    recipe = tmp_path / "full.toml"
    recipe.write_text("\n".join(line for line in text.splitlines() if not line.startswith("start_file")))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "training.gpfm.train", str(recipe), "--out", str(tmp_path / "run")]
    for change in CHANGES:
        command += ["--set", change]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    run = open_run(tmp_path / "run")
    assert run.metrics["training"]["iterations"] == 2
    assert {"cls_tissue", "patch_tissue", "ibot"} <= run.metrics["training"]["losses"].keys()
    assert run.metrics["agreement"] is None  # the heads lie in two processes
    assert run.manifest["starts_from"]["expert_tissue"]["weights_sha256"] == experts["tissue"].weights_sha256
