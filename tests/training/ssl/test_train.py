"""From a recipe to a whole run folder, stopped on the way or not, and from another run's weights."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training.ssl.small import SmallCorpus, small_recipe
from training.errors import RecipeInvalid, RunInvalid, WeightsInvalid
from training.nn.checkpoints import read_weights
from training.runs import Run, open_run
from training.ssl import train
from training.ssl.method import SelfDistillation
from training.ssl.recipe import SelfDistillationRecipe, read_recipe

pytestmark = pytest.mark.training

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("finished")
    run = train.run(
        *small_recipe(folder), folder / "run", corpus=SmallCorpus(), evaluate=lambda net: {"width": net.width}
    )
    assert run is not None
    return run


def test_a_run_says_what_it_is_and_what_it_has_seen(finished: Run) -> None:
    assert {path.name for path in finished.path.iterdir()} == {
        "recipe.toml", "weights.safetensors", "metrics.json", "manifest.json", "log.jsonl",
    }  # fmt: skip
    assert finished.manifest["seen"]["groups"]["small"][0] == "g0"
    assert len(finished.manifest["data"]) == 12
    assert finished.metrics["width"] == 16
    training = finished.metrics["training"]
    assert training["iterations"] == 6
    assert set(training["losses"]["loss"]) == {"first", "last"}
    assert training["teacher"]["effective_rank"] > 1
    weights = read_weights(finished.weights_path)
    assert weights["pos_embed"].shape == (1, 17, 16)
    assert "mask_token" in weights


def test_a_run_in_two_sittings_gives_the_same_weights(finished: Run, tmp_path: Path) -> None:
    recipe, text = small_recipe(tmp_path)
    assert train.run(recipe, text, tmp_path / "run", corpus=SmallCorpus(), stop_after=3) is None
    with pytest.raises(RunInvalid, match="--resume"):
        train.run(recipe, text, tmp_path / "run", corpus=SmallCorpus())
    run = train.run(recipe, text, tmp_path / "run", corpus=SmallCorpus(), resume=True)
    assert run is not None
    assert run.weights_sha256 == finished.weights_sha256
    assert run.metrics["training"] == finished.metrics["training"]


def test_two_processes_never_train_in_one_folder(tmp_path: Path) -> None:
    recipe, text = small_recipe(tmp_path)
    assert train.run(recipe, text, tmp_path / "run", corpus=SmallCorpus(), stop_after=1) is None
    script = "import sys; from pathlib import Path; from training.ssl.checkpoint import occupy\n"
    script += "lock = occupy(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script, str(tmp_path / "run" / "work")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunInvalid, match="run is in use by another process"):
            train.run(recipe, text, tmp_path / "run", corpus=SmallCorpus(), resume=True, stop_after=1)
        other.kill()
    assert train.run(recipe, text, tmp_path / "run", corpus=SmallCorpus(), resume=True, stop_after=1) is None


def test_a_recipe_starts_from_the_run_that_it_names(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "ssl-small-test").symlink_to(finished.path)
    monkeypatch.setenv("PATHSERVE_RUNS", str(tmp_path / "runs"))
    recipe, text = small_recipe(tmp_path, "name=second", "start=ssl-small-test", "iterations=1")
    run = train.run(recipe, text, tmp_path / "second", corpus=SmallCorpus())
    assert run is not None
    assert run.manifest["starts_from"]["student"]["weights_sha256"] == finished.weights_sha256
    first, second = read_weights(finished.weights_path), read_weights(run.weights_path)
    assert all(torch.allclose(first[name], second[name], atol=2e-3) for name in first)


def test_a_start_is_taken_whole_but_for_the_mask_token(finished: Run, tmp_path: Path) -> None:
    weights = read_weights(finished.weights_path)
    del weights["mask_token"]
    method = SelfDistillation(small_recipe(tmp_path)[0])
    train.load_start(method, weights)
    for part in (method.student, method.teacher):
        assert torch.equal(part["backbone"].blocks[1].mlp.fc2.weight, weights["blocks.1.mlp.fc2.weight"])
    del weights["blocks.0.ls1.gamma"]
    with pytest.raises(WeightsInvalid, match=r"lack blocks\.0\.ls1\.gamma"):
        train.load_start(method, weights)
    with pytest.raises(WeightsInvalid, match="lack cls_token"):  # nested as a released file nests it
        train.load_start(method, {f"teacher.backbone.{name}": value for name, value in weights.items()})


def test_wrong_command_lines_end_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_recipe(tmp_path)
    assert train.main([str(tmp_path / "none.toml")]) == 1
    assert capsys.readouterr().err == "The recipe none.toml cannot be read. Name an existing recipe file.\n"
    assert train.main([str(tmp_path / "small.toml"), "--set", "optim.base_lr=fast"]) == 1
    assert "optim.base_lr is not valid" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("iterations=21", "more than the plan"),
        ("crops.local_px=20", "multiples of network.patch_px"),
        ("network.width=15", "width a multiple of heads"),
        ("dino.temperature=1", "dino.temperature is not valid"),
        ("launch={strategy='fsdp', precision='fp16'}", "use bf16 with fsdp"),
        ("name.first=1", "no section"),
        ("iterations", "not of the form"),
    ],
)
def test_recipes_that_cannot_be_meant_are_refused(tmp_path: Path, change: str, sentence: str) -> None:
    with pytest.raises(RecipeInvalid, match=sentence):
        small_recipe(tmp_path, change)


def test_changed_settings_are_in_the_recipe_that_the_run_keeps(tmp_path: Path) -> None:
    recipe, text = small_recipe(
        tmp_path, "optim.clip=1.5", "name=other", "crops.global_scale=[0.5, 1]", "data.workers=1"
    )
    assert (recipe.optim.clip, recipe.name, recipe.crops.global_scale) == (1.5, "other", (0.5, 1.0))
    (tmp_path / "kept.toml").write_bytes(text)
    assert read_recipe(SelfDistillationRecipe, tmp_path / "kept.toml")[0] == recipe
    unchanged = small_recipe(tmp_path)[1]
    assert unchanged == (tmp_path / "small.toml").read_bytes()


def test_a_finished_run_is_open_to_others(finished: Run) -> None:
    assert open_run(finished.path).name == "ssl-small-test"
