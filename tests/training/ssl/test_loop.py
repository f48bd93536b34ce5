"""The loop: what a step does, what is logged, and a run that is killed and goes on as if it had not been."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training.ssl.small import SmallCorpus, small_recipe
from training.errors import DataMissing, RunInvalid, WeightsInvalid
from training.runs import RunWriter
from training.ssl.distributed import World
from training.ssl.loop import Loop
from training.ssl.method import SelfDistillation
from training.ssl.views import Steps

pytestmark = pytest.mark.training

ROOT = Path(__file__).parents[3]


def begin(folder: Path, *changes: str, corpus: SmallCorpus | None = None) -> Loop:
    """The loop of the small recipe, in a run folder that may have begun."""
    recipe, text = small_recipe(folder.parent, *changes)
    run = RunWriter(folder, text, resume=True)
    return Loop(SelfDistillation(recipe), recipe, corpus or SmallCorpus(), run, World())


def events(folder: Path, event: str) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["event"] == event]


def losses(folder: Path) -> dict[int, dict[str, float]]:
    return {line["iteration"]: line["losses"] for line in events(folder, "step")}


def weights(loop: Loop) -> dict[str, torch.Tensor]:
    return loop.teacher().state_dict()


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    torch.set_num_threads(1)  # as the process that is killed: sums of more threads have other last bits
    whole = begin(tmp_path / "whole", "network.drop_path=0.3")
    whole.train(6)
    child = subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(tmp_path / "killed")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert child.wait(120) == -signal.SIGKILL
    assert max(losses(tmp_path / "killed")) == 4
    resumed = begin(tmp_path / "killed", "network.drop_path=0.3")
    assert resumed.done == 4
    resumed.train(6)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed).items())


_KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from tests.training.ssl import test_loop
torch.set_num_threads(1)
loop = test_loop.begin(Path(sys.argv[1]), "network.drop_path=0.3")
log = loop._log
def killed_at_five(event, **values):
    log(event, **values)
    if values.get("iteration") == 4 and event == "teacher":
        os.kill(os.getpid(), signal.SIGKILL)
loop._log = killed_at_five
loop.train(6)
"""


def test_a_step_is_logged_with_all_that_belongs_to_it(tmp_path: Path) -> None:
    begin(tmp_path / "run").train(2)
    first, second = events(tmp_path / "run", "step")
    assert set(first["losses"]) == {
        "dino_global", "dino_local", "koleo", "ibot", "loss", "koleo_display", "ibot_display",
    }  # fmt: skip
    parts = [first["losses"][name] for name in ("dino_global", "dino_local", "koleo", "ibot")]
    assert first["losses"]["loss"] == pytest.approx(sum(parts), rel=1e-6)
    assert first["losses"]["koleo_display"] == first["losses"]["koleo"] / 2
    assert first["settings"]["last_layer_frozen"]
    assert not second["settings"]["last_layer_frozen"]
    assert set(first["norms"]) == {"backbone", "head"}
    assert set(events(tmp_path / "run", "teacher")[0]["signs"]) == {
        "entropy", "used_entropy", "most_entropy", "sharpness", "information", "uniform", "deviation", "effective_rank",
    }  # fmt: skip


def test_only_the_last_checkpoints_stay(tmp_path: Path) -> None:
    begin(tmp_path / "run", "checkpoints.keep=2").train(6)
    assert sorted(path.name for path in (tmp_path / "run" / "work" / "checkpoints").iterdir()) == [
        "00000004",
        "00000006",
    ]


def test_teachers_are_exported_on_the_way(tmp_path: Path) -> None:
    begin(tmp_path / "run", "checkpoints.export_every=2").train(4)
    assert [path.name for path in sorted((tmp_path / "run/teachers").iterdir())] == [
        "00000002.safetensors", "00000004.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("network.width=32", "method.student.backbone.cls_token: shape (1, 1, 16) in place of (1, 1, 32)"),
        ("network.depth=3", "lacks method.student.backbone.blocks.2.norm1.weight"),
        ("network.depth=1", "holds method.student.backbone.blocks.1.norm1.weight"),
        ("dino.prototypes=12", "method.student.head.last_layer.weight_g: shape (24, 1) in place of (12, 1)"),
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused_by_its_first_difference(
    tmp_path: Path, change: str, key: str
) -> None:
    begin(tmp_path / "run").train(2)
    recipe, _ = small_recipe(tmp_path, change)
    writer = RunWriter(tmp_path / "run", (tmp_path / "run/recipe.toml").read_bytes(), resume=True)
    with pytest.raises(WeightsInvalid) as caught:
        Loop(SelfDistillation(recipe), recipe, SmallCorpus(), writer, World())
    assert key in caught.value.detail


def test_a_harmed_checkpoint_is_named_and_the_one_before_still_serves(tmp_path: Path) -> None:
    begin(tmp_path / "run").train(4)
    newest = tmp_path / "run" / "work" / "checkpoints" / "00000004"
    (part,) = newest.glob("*.distcp")
    part.write_bytes(part.read_bytes()[:1000])
    with pytest.raises(WeightsInvalid, match="checkpoint 00000004 cannot be read"):
        begin(tmp_path / "run")
    part.unlink()
    (newest / ".metadata").unlink()
    newest.rmdir()
    assert begin(tmp_path / "run").done == 2


def test_a_full_disk_ends_in_a_sentence_and_the_checkpoint_before_serves(tmp_path: Path) -> None:
    loop = begin(tmp_path / "run", "checkpoints.every=1")
    loop.train(1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        with pytest.raises(RunInvalid, match="checkpoint 00000002 cannot be written"):
            loop.train(2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert begin(tmp_path / "run", "checkpoints.every=1").done == 1


@pytest.mark.parametrize("what", ["loss dino_global", "gradient of backbone"])
def test_what_is_not_finite_stops_the_run_before_it_harms_anything(tmp_path: Path, what: str) -> None:
    loop = begin(tmp_path / "run", "checkpoints.every=1")
    loop.train(2)
    expected = weights(loop)
    token = loop._method.student["backbone"].cls_token
    if what.startswith("loss"):
        with torch.no_grad():
            token.fill_(torch.nan)
    else:
        token.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(RunInvalid, match=f"The {what} is no longer finite at iteration 2"):
        loop.train(4)
    assert events(tmp_path / "run", "not finite")[0]["iteration"] == 2
    resumed = begin(tmp_path / "run", "checkpoints.every=1")
    assert resumed.done == 2
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed).items())


def test_an_unreadable_tile_is_named_skipped_and_counted(tmp_path: Path) -> None:
    recipe, _ = small_recipe(tmp_path)
    sixth = int(Steps(SmallCorpus(1100), recipe, 4)[1].index_B[1])
    begin(tmp_path / "run", corpus=SmallCorpus(1100, unreadable=(sixth,))).train(3)
    (line,) = events(tmp_path / "run", "unreadable tiles")
    assert line == {**line, "iteration": 1, "names": [f"small/tile-{sixth}.png"], "count": 1}
    assert max(losses(tmp_path / "run")) == 2


def test_too_many_unreadable_tiles_end_the_run(tmp_path: Path) -> None:
    loop = begin(tmp_path / "run", corpus=SmallCorpus(12, unreadable=(3,)))
    with pytest.raises(DataMissing, match=r"1 of 12 tiles cannot be read, small/tile-3\.png among them"):
        loop.train(6)


def test_processes_that_cannot_share_the_batch_are_refused(tmp_path: Path) -> None:
    loop = begin(tmp_path / "run")
    loop._world = World(rank=2, size=3)
    with pytest.raises(RunInvalid, match="a batch of 4 cannot be shared by 3 processes"):
        loop.train(1)


def test_bf16_stays_near_full_precision(tmp_path: Path) -> None:
    begin(tmp_path / "full").train(3)
    begin(tmp_path / "half", "launch.precision=bf16").train(3)
    full, half = losses(tmp_path / "full"), losses(tmp_path / "half")
    for iteration, row in full.items():
        assert half[iteration] == pytest.approx(row, rel=0.03)
        assert half[iteration] != row


def test_fp16_keeps_its_loss_scale_over_an_interruption(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    begin(whole, "launch.precision=fp16").train(4)
    begin(stopped, "launch.precision=fp16").train(2)
    resumed = begin(stopped, "launch.precision=fp16")
    resumed.train(4)
    assert losses(stopped) == losses(whole)
    assert resumed._scaler.get_scale() > 0
