"""Recipes: what is refused, and the ones that we publish."""

from pathlib import Path

import pytest

from training.errors import RecipeInvalid
from training.gpfm.recipe import DistillRecipe
from training.gpfm.train import read
from training.runs import read_toml

pytestmark = pytest.mark.training

FOLDER = Path(__file__).resolve().parents[3] / "training" / "recipes"
PUBLISHED = sorted(FOLDER.glob("gpfm-*.toml"))


def change(folder: Path, *changes: str) -> DistillRecipe:
    recipe, _ = read(folder / "recipes" / "student.toml", changes)
    assert isinstance(recipe, DistillRecipe)
    return recipe


@pytest.mark.parametrize(
    ("expert", "reason"),
    [
        ('{name="a", run="x", dim=4, cls=1.0, patch=0.1}', "has a patch weight but no grid"),
        ('{name="a", run="x", dim=4, cls=1.0, grid=7}', "has a grid but no patch weight"),
        ('{name="a", run="x", dim=4, grid=7, patch=0.2}', "has no cls weight"),
        ('{name="a", dim=4, cls=1.0}', "exactly one of run, package and encoder"),
        ('{name="a", run="x", encoder="uni", dim=4, cls=1.0}', "exactly one of run, package and encoder"),
        ('{name="a", run="x", dim=4, cls=1.0, pach=0.1}', "Extra inputs"),
        ('{name="a", run="x", dim=4, cls=1.0}, {name="a", run="y", dim=4, cls=1.0}', "the same name"),
        ("", "at least 1 item"),
    ],
)
def test_a_weight_that_would_not_be_used_is_refused(gpfm_folder: Path, expert: str, reason: str) -> None:
    with pytest.raises(RecipeInvalid, match=reason):
        change(gpfm_folder, f"kd.experts=[{expert}]")


def test_settings_without_use_are_refused(gpfm_folder: Path) -> None:
    with pytest.raises(RecipeInvalid, match="temperature is of the loss kldiv"):
        change(gpfm_folder, "kd.temperature=2.0")
    with pytest.raises(RecipeInvalid, match="two beginnings"):
        change(gpfm_folder, "start=a", "start_file=b")


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_a_published_recipe_is_valid_and_starts_from_published_ones(path: Path) -> None:
    recipe, text = read(path)
    assert recipe.name == path.stem
    assert text == path.read_bytes()
    names = {read_toml(other)["name"] for other in PUBLISHED}
    if isinstance(recipe, DistillRecipe):
        assert {expert.run for expert in recipe.kd.experts if expert.run} <= names
        assert recipe.start is None or recipe.start in names


def test_experts_of_ours_learn_from_different_sources() -> None:
    tissue, text = (read(FOLDER / f"gpfm-expert-{name}-small.toml")[0].sets for name in ("tissue", "text"))
    ssl = read(FOLDER / "gpfm-expert-ssl-small.toml")[0].data.sets
    assert len({*tissue, *text, *ssl}) == len(tissue) + len(text) + len(ssl)


def test_the_student_is_compared_with_its_like() -> None:
    """Arm A and its baseline differ in the experts alone."""
    plain, unified = (read_toml(FOLDER / f"gpfm-{name}-small.toml") for name in ("ssl", "distill-scratch"))
    for key in ("network", "crops", "augment", "dino", "ibot", "teacher", "data", "iterations", "seed"):
        assert plain[key] == unified[key], key
    for key in ("clip_distill_heads", "freeze_distill_last_layer"):
        unified["optim"].pop(key)
    assert plain["optim"] == unified["optim"]
