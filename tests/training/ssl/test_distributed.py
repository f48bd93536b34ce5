"""Two real processes do what one does, whichever way they share the work, and one goes on where two stopped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training.ssl.small import small_recipe
from tests.training.ssl.two_processes import trained
from training.ssl.distributed import World, shards
from training.ssl.method import SelfDistillation

pytestmark = pytest.mark.training

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two processes left."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = Path(__file__).with_name("two_processes.py")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(script), str(folder)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_equal_one_with_the_whole_batch(two: Path, tmp_path: Path, strategy: str) -> None:
    _, alone = trained(tmp_path, World(), strategy, 2)
    together = torch.load(two / f"{strategy}.pt", weights_only=True)
    assert set(together) == set(alone)
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-5, msg=name)
    for mine, theirs in zip(_losses(tmp_path / strategy), _losses(two / strategy), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_one_process_goes_on_where_two_stopped(two: Path, tmp_path: Path, strategy: str) -> None:
    trained(tmp_path, World(), strategy, 4)
    loop, _ = trained(two, World(), strategy, 2)
    assert loop.done == 4
    assert _losses(two / strategy)[2:] == [pytest.approx(row, abs=1e-5) for row in _losses(tmp_path / strategy)[2:]]


def test_every_weight_is_in_one_shard(tmp_path: Path) -> None:
    method = SelfDistillation(small_recipe(tmp_path)[0])
    units = shards(method, chunks=2)
    assert [len(unit) for unit in units] == [1, 1, 1, 1] * 2
    held = {id(value) for unit in units for module in unit for value in module.parameters()}
    assert held == {id(value) for value in method.parameters()}


def _losses(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["losses"] for line in lines if line["event"] == "step"]
