"""Which rate and decay a parameter has, what the schedules say, and what is clipped."""

from pathlib import Path

import pytest
import torch

from tests.training.ssl.small import small_recipe
from training.ssl import optimiser
from training.ssl.heads import ProjHead
from training.ssl.method import SelfDistillation, Term
from training.ssl.recipe import Optim, SelfDistillationRecipe

pytestmark = pytest.mark.training

PUBLISHED = Optim(base_lr=4e-4, epochs=400, epoch_iterations=1250, warmup_epochs=40)


class Heads(Term):
    def __init__(self) -> None:
        super().__init__()
        self.head = ProjHead(16, 4, layers=1, bottleneck=8)


def with_heads(recipe: SelfDistillationRecipe) -> SelfDistillation:
    method = SelfDistillation(recipe)
    method.terms["extra"] = Heads()
    return method


@pytest.fixture
def recipe(tmp_path: Path) -> SelfDistillationRecipe:
    return small_recipe(tmp_path)[0]


@pytest.mark.parametrize(
    ("name", "rate", "decay"),
    [
        ("student.backbone.cls_token", 0.9**25, 1),
        ("student.backbone.pos_embed", 0.9**25, 1),
        ("student.backbone.mask_token", 0.9**25, 1),
        ("student.backbone.patch_embed.proj.weight", 0.2 * 0.9**25, 1),
        ("student.backbone.patch_embed.proj.bias", 0.2 * 0.9**25, 0),
        ("student.backbone.blocks.0.norm1.weight", 0.9**24, 0),
        ("student.backbone.blocks.0.attn.qkv.weight", 0.9**24, 1),
        ("student.backbone.blocks.23.ls2.gamma", 0.9, 0),
        ("student.backbone.blocks.23.mlp.fc2.bias", 0.9, 0),
        ("student.backbone.norm.weight", 1, 0),
        ("student.head.mlp.0.weight", 1, 1),
        ("student.head.last_layer.weight_g", 1, 1),
        ("terms.experts.heads.uni.mlp.weight", 1, 1),
        ("student.backbone._conv_stem.weight", 0.9**25, 1),
        ("student.backbone._bn0.weight", 0.9**25, 0),
        ("student.backbone._blocks.3._bn0.weight", 0.9**21, 0),
        ("student.backbone._conv_head.weight", 1, 1),
    ],
)
def test_rates_fall_with_depth_and_norms_are_not_decayed(name: str, rate: float, decay: float) -> None:
    """DINOv2's rules for a ViT of 24 blocks; a CNN's stem stands where the patch embedding does."""
    assert optimiser.multipliers(name, 24, PUBLISHED) == (pytest.approx(rate), decay)


def test_the_published_plan(recipe: SelfDistillationRecipe) -> None:
    """GPFM's: batch 1536, 500,000 iterations, warm-up 50,000, the last layer frozen for 1250."""
    published = recipe.model_copy(update={"optim": PUBLISHED, "data": recipe.data.model_copy(update={"batch": 1536})})
    plan = optimiser.Plan(published)
    assert plan(0).rate == 0
    assert plan(49_999).rate == pytest.approx(4.898979e-4)
    assert plan(500_000).rate == 1e-6
    assert (plan(0).decay, plan(500_000).decay) == pytest.approx((0.04, 0.4))
    assert (plan(0).momentum, plan(500_000).momentum) == pytest.approx((0.992, 1.0))
    assert plan(1249).last_layer_frozen
    assert not plan(1250).last_layer_frozen


def test_last_layers_stand_still_while_frozen(recipe: SelfDistillationRecipe) -> None:
    method = with_heads(recipe)
    for also, expected in ((True, {"student.head", "terms.extra.head"}), (False, {"student.head"})):
        optim = recipe.optim.model_copy(update={"freeze_distill_last_layer": also})
        adam = optimiser.make_optimiser(method, optim)
        optimiser.apply(optimiser.Settings(0.1, 0.2, 0.99, last_layer_frozen=True), adam)
        still = {id(value) for group in adam.param_groups if group["lr"] == 0 for value in group["params"]}
        names = {name for name, value in method.trained().items() if id(value) in still}
        assert names == {f"{head}.last_layer.weight_{part}" for head in expected for part in "gv"}


def test_every_trained_parameter_is_in_one_group(recipe: SelfDistillationRecipe) -> None:
    method = with_heads(recipe)
    adam = optimiser.make_optimiser(method, recipe.optim)
    held = [id(value) for group in adam.param_groups for value in group["params"]]
    assert sorted(held) == sorted(id(value) for value in method.trained().values())
    assert not any(name.startswith("teacher") for name in method.trained())


def test_parts_are_clipped_apart_and_distill_heads_only_on_request(recipe: SelfDistillationRecipe) -> None:
    method = with_heads(recipe)

    def norms(optim: Optim) -> dict[str, float]:
        for value in method.trained().values():
            value.grad = torch.ones_like(value)
        method.student["head"].last_layer.weight_v.grad.mul_(1e-3)
        optimiser.clip(method, optim)
        parts = {**method.student, **method.terms}
        return {
            name: float(torch.nn.utils.get_total_norm([p.grad for p in part.parameters()]))
            for name, part in parts.items()
        }

    plain = norms(recipe.optim)
    assert plain["backbone"] == pytest.approx(3, abs=1e-3)
    assert plain["head"] == pytest.approx(3, abs=1e-3)
    assert plain["extra"] > 10
    assert norms(recipe.optim.model_copy(update={"clip_distill_heads": True}))["extra"] == pytest.approx(3, abs=1e-3)
    assert norms(recipe.optim.model_copy(update={"clip": None}))["backbone"] > 10


def test_the_step_is_adamw(recipe: SelfDistillationRecipe) -> None:
    """Two steps by hand: decoupled decay, then the bias-corrected moments (arXiv 1711.05101)."""
    method = SelfDistillation(recipe)
    adam = optimiser.make_optimiser(method, recipe.optim)
    weight = method.student["backbone"].blocks[0].attn.qkv.weight
    expected, first, second = weight.detach().clone(), torch.zeros_like(weight), torch.zeros_like(weight)
    for step in (1, 2):
        optimiser.apply(optimiser.Settings(0.01, 0.3, 0.99, last_layer_frozen=False), adam)
        gradient = torch.full_like(weight, 0.5 * step)
        weight.grad = gradient.clone()
        adam.step()
        rate = 0.01 * 0.9**2
        expected -= rate * 0.3 * expected
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        expected -= rate * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    torch.testing.assert_close(weight.detach(), expected)
