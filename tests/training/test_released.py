"""The runs behind the served models: whole, of licensed data only, and the figures that the docs show."""

from pathlib import Path

import pytest

from training.runs import open_run
from training.tissue.evaluate import page

pytestmark = pytest.mark.training

ROOT = Path(__file__).parents[2]
RELEASED = ROOT / "training" / "released"
SCRATCH = ROOT / "docs" / "results" / "tissue-encoder-scratch"
MODELS = sorted(path.parent.name for path in RELEASED.glob("*/recipe.toml"))


def test_the_served_models_are_released() -> None:
    assert {
        "tile_encoder",
        "tissue_head",
        "slide_abmil",
        "pathseg",
        "smartccs_detect",
        "smartccs_embed",
        "smartccs_slide",
    } <= set(MODELS)


@pytest.mark.parametrize("model", MODELS)
def test_released_runs_are_whole(model: str) -> None:
    run = open_run(RELEASED / model)
    assert (RELEASED / model / "recipe.toml").read_bytes() == (ROOT / f"training/recipes/{run.name}.toml").read_bytes()
    assert run.manifest["git_changed_files"] == 0
    assert run.recipe["publish"]["model"] == model


@pytest.mark.parametrize("model", MODELS)
def test_only_licensed_data_went_in(model: str) -> None:
    manifest = open_run(RELEASED / model).manifest
    assert {entry["tier"] for entry in manifest["data"]} <= {"A"}
    assert {entry["licence"] for entry in manifest["pretraining"]} <= {"Apache-2.0"}
    assert manifest["data"] or manifest["pretraining"]


def test_the_head_is_of_the_released_encoder() -> None:
    encoder, head = (open_run(RELEASED / model) for model in ("tile_encoder", "tissue_head"))
    assert head.manifest["starts_from"]["encoder"]["weights_sha256"] == encoder.weights_sha256


def test_the_head_beats_colour_and_the_controls_show_nothing_wrong() -> None:
    metrics = open_run(RELEASED / "tissue_head").metrics
    shuffled = metrics["rows"]["control: shuffled labels"]["balanced accuracy"]
    assert shuffled["low"] <= 1 / 7 <= shuffled["high"]
    assert metrics["differences"]["colour statistics"]["low"] > 0
    assert metrics["differences"]["control: random encoder"]["low"] > 0
    assert metrics["grouping"] == "patient-unknown"


def test_the_results_page_is_made_of_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    folders = [Path("training/released/tissue_head"), Path("training/released/tile_encoder"), SCRATCH.relative_to(ROOT)]
    assert (ROOT / "docs/results/tissue.md").read_text(encoding="utf-8") == page(folders)
