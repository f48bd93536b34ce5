"""The recipes that lie in the repository, and those that are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from training.errors import RecipeInvalid
from training.pathsegmentor.recipe import AnyRecipe, SegmentorRecipe, SpecialistRecipe
from training.pathsegmentor.sets import SETS
from training.pathsegmentor.specialists import Specialist
from training.pathsegmentor.train import describe, read
from training.runs import parse_recipe, read_toml

RECIPES = Path(__file__).parents[3] / "training" / "recipes"
ARMS = ("nolevel", "noregion", "naive-absent", "query-per-prompt", "minilm")


def recipe(name: str, *changes: str) -> AnyRecipe:
    return read(RECIPES / f"pathsegmentor-{name}.toml", changes)[0]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("pathsegmentor-*.toml")), ids=lambda path: path.stem)
def test_a_recipe_is_named_as_its_file_and_can_be_told(path: Path) -> None:
    found, text = read(path)
    assert found.name == path.stem
    assert text == path.read_bytes()
    assert describe(found).startswith(path.stem)


def test_only_the_network_of_one_query_is_served() -> None:
    published = {
        found.name for path in RECIPES.glob("pathsegmentor-*.toml") if getattr(found := read(path)[0], "publish", None)
    }
    assert published == {"pathsegmentor-query-per-prompt-small"}


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_differs_in_one_thing(arm: str) -> None:
    ours, small = recipe(f"{arm}-small").model_dump(), recipe("small").model_dump()
    differing = {key for key in small if ours[key] != small[key]} - {"name", "publish"}
    assert differing == ({"network"} if arm in ("query-per-prompt", "minilm") else {"data"})


def test_specialists_have_the_parameters_and_steps_of_the_one_network() -> None:
    small = recipe("small")
    nets = [recipe(f"specialist-{name}-small") for name in small.data.sets]
    assert sum(net.training.iterations for net in nets) == small.training.iterations
    assert {net.training.batch for net in nets} == {small.training.batch}
    count = 0
    for net in nets:
        assert isinstance(net, SpecialistRecipe)
        classes = [(SETS[net.data.sets[0]].level, name) for name in SETS[net.data.sets[0]].names]
        with torch.device("meta"):
            count += sum(value.numel() for value in Specialist(net.network, classes).parameters())
    assert count == pytest.approx(801_000, rel=0.01)


def test_the_full_recipe_is_the_published_one() -> None:
    full = recipe("full")
    assert isinstance(full, SegmentorRecipe)
    training, decoder = full.training, full.network.decoder
    assert (training.rate, training.decay, training.batch, training.clip) == (8e-4, 0.05, 32, 5.0)
    assert (training.image_rate, training.text_rate, training.drops) == (0.1, 0.1, (0.889, 0.963))
    assert (decoder.queries, decoder.layers, full.loss.points, full.data.side_px) == (101, 9, 12544, 1024)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("small", "network.decoder.query_per_prompt=true", "queries must be 1"),
        ("small", "network.text.vocabulary_file=vocab.txt", "network.text.words.vocabulary_file"),
        ("specialist-ebhi-small", 'data.sets=["ebhi", "consep"]', "exactly one set"),
        ("specialist-ebhi-small", "loss.points=12", "leave out without and points"),
        ("small", 'data.without=["object"]', "data.without"),
    ],
)
def test_what_contradicts_itself_is_refused(name: str, change: str, words: str) -> None:
    with pytest.raises(RecipeInvalid, match=words):
        recipe(name, change)


def test_a_bert_names_its_word_pieces_where_it_needs_them() -> None:
    values: dict[str, Any] = read_toml(RECIPES / "pathsegmentor-full.toml")
    del values["network"]["text"]["vocabulary_file"]
    with pytest.raises(RecipeInvalid, match="vocabulary_file is named for the tower pubmedbert"):
        parse_recipe(SegmentorRecipe, values)


def test_an_unknown_stage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    path.write_text('stage = "detector"')
    with pytest.raises(RecipeInvalid, match="the stage 'detector'; pathsegmentor has the stages segmentor, specialist"):
        read(path)
