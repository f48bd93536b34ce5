"""The full-scale recipe, built without memory for its weights."""

from pathlib import Path

import pytest

from training.gpfm import train
from training.runs import read_toml

pytestmark = pytest.mark.training

FULL = Path(__file__).resolve().parents[3] / "training" / "recipes" / "gpfm-vitl14-full.toml"


def test_the_full_recipe_has_the_published_sizes_and_says_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATHSERVE_WEIGHTS", str(tmp_path))
    assert train.main([str(FULL), "--dry-run"]) == 0
    said = capsys.readouterr().out
    mask_token = 1024
    assert f"student backbone: {303_227_904 + mask_token:,} parameters" in said
    assert "peak rate 0.000489898" in said
    head = 1024 * 256 + 256 + 256 * 1024 + 1024
    assert f"distill head uni: {head:,} parameters" in said
    for number, unit in enumerate(("blocks.0 … student.backbone.blocks.5", "blocks.6 … student.backbone.blocks.11")):
        assert f"fsdp unit {number}: student.backbone.{unit}, {6 * 12_598_272:,} parameters" in said
    assert "not sharded" not in said
    assert said.count("MISSING") == 4
    assert "owkin/phikon" in said


def test_a_plan_of_every_stage_is_told(gpfm_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("tissue", "text", "plain"):
        assert train.main([str(gpfm_folder / "recipes" / f"{name}.toml"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "stage expert-contrastive" in said
    assert "student backbone" in said


def test_a_plan_of_published_weights_is_told_without_a_warning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train.main([str(FULL.with_name("gpfm-distill-lite0-small.toml")), "--dry-run"]) == 0
    assert "student backbone: 3,371,008 parameters" in capsys.readouterr().out


def test_the_full_recipe_holds_the_published_settings() -> None:
    full = read_toml(FULL)
    experts = {entry["name"]: (entry["dim"], entry["cls"], entry.get("patch")) for entry in full["kd"]["experts"]}
    assert experts == {"uni": (1024, 1.0, 0.25), "phikon": (768, 0.5, 0.125), "conch": (512, 1.0, None)}
    assert full["augment"]["blur_p"] == [0.0, 0.9, 0.5]  # as applied, not as configured
    assert full["optim"]["epochs"] * full["optim"]["epoch_iterations"] == 500_000
