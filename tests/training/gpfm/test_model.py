"""A student's first weights out of a checkpoint file, whatever its nesting."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from training.errors import WeightsInvalid
from training.gpfm.model import read_start
from training.gpfm.recipe import DistillRecipe
from training.gpfm.train import read
from training.nn.vit import chunked
from training.ssl.method import SelfDistillation
from training.ssl.train import load_start

pytestmark = pytest.mark.training


@pytest.fixture
def recipe(gpfm_folder: Path) -> DistillRecipe:
    found, _ = read(gpfm_folder / "recipes" / "student.toml")
    assert isinstance(found, DistillRecipe)
    return found


def released(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """As the official training exports a teacher: nested, prefixed, blocks in chunks, heads beside the backbone."""
    names = chunked(list(state), depth=2, chunks=2)
    own = {f"backbone.{names[name]}": value for name, value in state.items()}
    return {"teacher": own | {"dino_head.last_layer.weight_g": torch.ones(3, 1)}}


def test_a_released_teacher_is_loaded_whole(recipe: DistillRecipe, tmp_path: Path) -> None:
    wanted = SelfDistillation(recipe.model_copy(update={"seed": 99})).teacher["backbone"].state_dict()
    torch.save(released(wanted), tmp_path / "teacher.pth")
    method = SelfDistillation(recipe)
    load_start(method, read_start(tmp_path / "teacher.pth"))
    for part in (method.student, method.teacher):
        assert all(torch.equal(value, wanted[name]) for name, value in part["backbone"].state_dict().items())


def test_another_nesting_fails_instead_of_loading_nothing(recipe: DistillRecipe, tmp_path: Path) -> None:
    wanted = SelfDistillation(recipe).teacher["backbone"].state_dict()
    torch.save({"weights": released(wanted)["teacher"]}, tmp_path / "odd.pth")
    with pytest.raises(WeightsInvalid, match="holds no tensors by name"):
        read_start(tmp_path / "odd.pth")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(WeightsInvalid, match="no checkpoint of tensors"):
        read_start(tmp_path / "text.pth")
    with pytest.raises(WeightsInvalid, match="is missing"):
        read_start(tmp_path / "absent.pth")


def test_swiglu_of_the_official_names_is_renamed(tmp_path: Path) -> None:
    torch.save({"blocks.0.mlp.w12.weight": torch.ones(1), "blocks.0.mlp.w3.bias": torch.ones(1)}, tmp_path / "g.pth")
    assert list(read_start(tmp_path / "g.pth")) == ["blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.bias"]
