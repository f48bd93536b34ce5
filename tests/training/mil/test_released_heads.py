"""The runs behind the served slide heads: of the released encoder, and the figures that the docs show."""

from pathlib import Path

import pytest

from gateway.inference import ModelRepository
from training.mil.evaluate import HEAD
from training.mil.page import page
from training.runs import open_run, read_toml

pytestmark = pytest.mark.training

ROOT = Path(__file__).parents[3]
RELEASED = ROOT / "training" / "released"
MODELS = sorted(path.parent.name for path in RELEASED.glob("*/recipe.toml") if read_toml(path).get("system") == "mil")


@pytest.mark.parametrize("model", MODELS)
def test_released_heads_are_of_the_released_encoder(model: str) -> None:
    run, encoder = open_run(RELEASED / model), open_run(RELEASED / "tile_encoder")
    assert {entry["tier"] for entry in run.manifest["data"]} == {"A"}
    assert run.manifest["starts_from"]["encoder"]["weights_sha256"] == encoder.weights_sha256
    assert ModelRepository(ROOT / "model_repository").card(model).composed


@pytest.mark.parametrize("model", MODELS)
def test_labels_that_mean_nothing_teach_nothing(model: str) -> None:
    rows = open_run(RELEASED / model).metrics["rows"]
    shuffled, head = rows["control: shuffled labels"]["AUROC"], rows[HEAD]["AUROC"]
    assert shuffled["low"] <= 0.5 <= shuffled["high"]
    assert head["low"] > 0.5
    assert head["low"] < head["value"] < head["high"]


def test_the_page_is_made_of_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    folders = [Path("training/released") / model for model in MODELS]
    assert (ROOT / "docs/slide-heads.md").read_text(encoding="utf-8") == page(folders)
