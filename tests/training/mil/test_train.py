"""A slide head from its recipe to a whole run folder, and on from where it was stopped; what the run serves."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from exporters.card import build_card, digests_of
from tests.training.small_data import TILE_PX
from training.data import crc9
from training.data.seen import Seen
from training.errors import RecipeInvalid
from training.files import json_bytes, sha256_bytes
from training.graphs import declare
from training.mil import evaluate, page, train
from training.mil.evaluate import HEAD, Answers, figure
from training.runs import RELEASED, Run, runs_folder

pytestmark = pytest.mark.training

RECIPES = Path(__file__).parents[3] / "training" / "recipes"
SMALL = {
    "train": 6,
    "validation": 6,
    "test": 8,
    "planted": 4,
    "most_training_tiles": 12,
    "most_tiles": 40,
    "epochs": 2,
    "splits": 2,
    "control_splits": 1,
    "inner_folds": 3,
}


def small(text: str) -> str:
    """A recipe of seconds."""
    lines = []
    for line in text.splitlines():
        key = line.partition(" = ")[0]
        lines.append(f"{key} = {SMALL[key]}" if key in SMALL else line)
    return "\n".join(lines).replace('head = "', 'bootstrap = 20\nhead = "', 1)


@pytest.fixture
def recipe(small_data: Path, tmp_path: Path) -> Path:
    """A head on the released encoder, both for the small tiles, which the encoder has seen."""
    encoder = shutil.copytree(RELEASED / "tile_encoder", runs_folder() / "tissue-encoder-small")
    changed = (encoder / "recipe.toml").read_text(encoding="utf-8").replace("tile_px = 224", f"tile_px = {TILE_PX}")
    (encoder / "recipe.toml").write_text(changed, encoding="utf-8")
    tiles = crc9.load()
    manifest = json.loads((encoder / "manifest.json").read_bytes())
    manifest |= {
        "recipe_sha256": sha256_bytes(changed.encode()),
        "seen": Seen.of(tiles, np.arange(len(tiles))).record(),
    }
    (encoder / "manifest.json").write_bytes(json_bytes(manifest))
    text = small((RECIPES / "slide-abmil-small.toml").read_text(encoding="utf-8"))
    path = tmp_path / "recipe.toml"
    path.write_text(text.replace("tile_px = 224", f"tile_px = {TILE_PX}"), encoding="utf-8")
    return path


def test_a_run_stopped_half_way_gives_the_same_bits(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train.train(recipe, tmp_path / "whole")
    answered, asked = evaluate.answer, []

    def stop_at_the_third(*given: object) -> Answers:
        asked.append(given)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return answered(*given)

    monkeypatch.setattr(evaluate, "answer", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        train.train(recipe, tmp_path / "stopped")
    monkeypatch.setattr(evaluate, "answer", answered)
    resumed = train.train(recipe, tmp_path / "stopped", resume=True)
    assert resumed.weights_sha256 == whole.weights_sha256
    assert resumed.metrics | {"cpu_s": 0} == whole.metrics | {"cpu_s": 0}
    _holds_what_the_page_and_the_card_say(whole)


def _holds_what_the_page_and_the_card_say(run: Run) -> None:
    assert set(run.metrics["rows"]) == {
        HEAD,
        "mean pooling",
        "control: shuffled labels",
        "control: random encoder",
    }
    assert len(run.metrics["auroc_by_split"][HEAD]) == 2
    assert run.metrics["planted_tile_first"]["slides"] == 8
    graph = declare(run)
    assert [spec.name for spec in graph.outputs] == ["logits", "attention"]
    assert graph.needs == {"tile_encoder": run.manifest["starts_from"]["encoder"]["weights_sha256"]}
    ((encoder, weights_sha256),) = graph.needs.items()
    card = build_card(
        model=graph.model,
        version="1",
        kind=graph.kind,
        target="onnx",
        precision="fp32",
        texts=graph.card,
        digests=digests_of(run, "0" * 64),
        golden_tolerance=1e-3,
        encoder={"model": encoder, "weights_sha256": weights_sha256},
    )
    assert "composed" in card["limits"][0]
    assert card["composed"] is True
    # The made tiles' colours have no stains of a kind; what counts is that the reference goes from run to card.
    assert card.get("stain_reference") == run.metrics["stain_reference"]
    (seen,) = run.metrics["encoder_has_seen"][:1]
    assert seen.startswith("tissue-encoder-small has seen 28 of 28 groups")
    assert any(seen in limit for limit in card["limits"])
    assert f"AUROC by split, {HEAD}" in page.page([run.path])


def test_an_encoder_of_other_tiles_is_refused(recipe: Path) -> None:
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text(text.replace(f"tile_px = {TILE_PX}", "tile_px = 224"), encoding="utf-8")
    with pytest.raises(RecipeInvalid, match=f"Write mpp = 0.5 and tile_px = {TILE_PX} into"):
        train.train(recipe)
    shutil.rmtree(runs_folder() / "tissue-encoder-small")  # the released one is left, for tiles of 224 px
    with pytest.raises(RecipeInvalid, match=f"takes 224 px at 0.5 µm/px; the tiles are {TILE_PX} px"):
        train.train(recipe)


def test_another_stage_is_refused(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace('stage = "head"', 'stage = "encoder"'))
    with pytest.raises(RecipeInvalid, match="the mil system has the stage head"):
        train.train(recipe)


def test_a_target_that_the_set_does_not_have_is_refused(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace('target = "colorectal', 'target = "gastric'))
    with pytest.raises(RecipeInvalid, match="not one of the set's classes"):
        train.train(recipe)


def test_intervals_are_wider_where_splits_differ() -> None:
    def answers(right: float) -> Answers:
        labels = np.arange(40) % 2
        called = np.where(np.arange(40) < 40 * right, labels, 1 - labels)
        return Answers(np.eye(2)[called] * 0.8 + 0.1, labels, labels, labels, np.array([0.5, 1.0]), np.zeros(0, bool))

    score = evaluate.SCORES["sensitivity"]
    alike = figure(score, [answers(0.75)] * 4, 200, 1)
    unlike = figure(score, [answers(0.5), answers(1.0)] * 2, 200, 1)
    assert alike.value == pytest.approx(unlike.value)
    assert unlike.high - unlike.low > 1.5 * (alike.high - alike.low)
