"""One step: who sees what, what is learned and what is not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.training.ssl.small import SmallCorpus, small_recipe
from training.nn.vit import Tokens
from training.ssl import losses
from training.ssl.heads import ProjHead
from training.ssl.method import SelfDistillation, Term
from training.ssl.model import normalise
from training.ssl.views import Steps, Views

pytestmark = pytest.mark.training


class Norm(Term):
    """A term with a head of its own, which looks at both kinds of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.head = ProjHead(16, 4, layers=1, bottleneck=8)

    def losses(
        self, views: Views, student: Tokens, unmasked: Callable[[], Tokens], iteration: int
    ) -> dict[str, Tensor]:
        self.masked, self.whole = student, unmasked()
        return {"norm": self.head(student.cls_BD).square().mean()}


def make(folder: Path, *changes: str, term: Term | None = None) -> tuple[SelfDistillation, Views]:
    recipe, _ = small_recipe(folder, *changes)
    grid = 4 if recipe.network.arch == "vit" else 1
    method = SelfDistillation(recipe)
    if term is not None:
        method.terms["norm"] = term
    return method.train(), Steps(SmallCorpus(), recipe, grid)[0]


def test_gradients_reach_what_is_trained_and_nothing_else(tmp_path: Path) -> None:
    method, views = make(tmp_path, term=Norm())
    sum(method(views, 0).values()).backward()
    for name, value in method.named_parameters():
        if name.startswith("teacher."):
            assert value.grad is None, name
        else:
            assert value.grad is not None, name
            assert value.grad.abs().sum() > 0, name


def test_every_loss_is_the_published_one_on_masked_student_and_whole_teacher_crops(tmp_path: Path) -> None:
    """Put together once more from the parts, with the teacher moved away from the student."""
    method, views = make(tmp_path)
    with torch.no_grad():
        for value in method.teacher.parameters():
            value.add_(0.01 * torch.randn(value.shape, generator=torch.Generator().manual_seed(9)))
        for centre in method.centres.values():
            centre.centre.fill_(0.0).add_(torch.linspace(-0.1, 0.1, 24))
    centres = {name: centre.centre.clone() for name, centre in method.centres.items()}
    found = method(views, 1)
    crops = normalise(views.globals_GHWC, method.scale)
    student, teacher = method.student, method.teacher
    seen, whole = student["backbone"](crops, views.mask_GN), teacher["backbone"](crops)
    small = student["backbone"](normalise(views.locals_LHWC, method.scale))
    temp = 0.04 + 0.03 * 1 / 2  # the second of three warm-up values
    z_GK = teacher["head"](whole.cls_BD)
    q_GK = torch.softmax((z_GK - centres["dino"]) / temp, dim=1)
    masked_z = teacher["head"](whole.patches_BND[views.mask_GN])
    q_MK = torch.softmax((masked_z - centres["ibot"]) / temp, dim=1)
    expected = {
        "dino_global": losses.dino_global(q_GK, student["head"](seen.cls_BD), 2),
        "dino_local": losses.dino_local(q_GK, student["head"](small.cls_BD), 2),
        "koleo": 0.1 * (losses.koleo(seen.cls_BD[:4]) + losses.koleo(seen.cls_BD[4:])),
        "ibot": losses.ibot(q_MK, student["head"](seen.patches_BND[views.mask_GN]), views.mask_GN),
    }
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)
    updated = 0.9 * centres["dino"] + 0.1 * z_GK.mean(0)
    torch.testing.assert_close(method.centres["dino"].centre, updated)
    torch.testing.assert_close(method.centres["ibot"].centre, 0.9 * centres["ibot"] + 0.1 * masked_z.mean(0))


def test_a_term_sees_masked_tokens_and_may_ask_for_whole_ones(tmp_path: Path) -> None:
    term = Norm()
    method, views = make(tmp_path, term=term)
    found = method(views, 0)
    assert list(found)[-1] == "norm"
    masked_G = views.mask_GN.any(1)
    assert not torch.allclose(term.masked.patches_BND[masked_G], term.whole.patches_BND[masked_G])
    torch.testing.assert_close(term.masked.cls_BD[~masked_G], term.whole.cls_BD[~masked_G])
    teacher = method.teacher["backbone"](normalise(views.globals_GHWC, method.scale))
    torch.testing.assert_close(term.whole.cls_BD, teacher.cls_BD)  # at the first step they are equal


def test_teacher_and_student_begin_equal_and_the_teacher_drops_no_path(tmp_path: Path) -> None:
    method, _ = make(tmp_path, "network.drop_path=0.4")
    assert method.student.training
    assert not any(module.training for module in method.teacher.modules())
    own = method.teacher.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in method.student.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        (("ibot.separate_prototypes=40",), ["dino_global", "dino_local", "koleo", "ibot"]),
        (("dino.centering=sinkhorn",), ["dino_global", "dino_local", "koleo", "ibot"]),
        (("crops.local_count=0", "dino.koleo=0"), ["dino_global", "ibot"]),
        (("network.registers=2", "network.ffn=swiglu"), ["dino_global", "dino_local", "koleo", "ibot"]),
    ],
)
def test_the_variants_of_the_published_recipes(tmp_path: Path, changes: tuple[str, ...], names: list[str]) -> None:
    method, views = make(tmp_path, *changes)
    found = method(views, 0)
    assert list(found) == names
    sum(found.values()).backward()
    assert all(value.grad is not None for value in method.trained().values())
    if "separate" in changes[0]:
        assert method.student["ibot_head"].last_layer.weight_v.shape == (40, 8)


def test_a_cnn_learns_without_masks(tmp_path: Path) -> None:
    recipe, _ = small_recipe(tmp_path)
    values = recipe.model_dump() | {
        "network": {"arch": "efficientnet-lite0", "start": "random"},
        "ibot": None,
        "crops": recipe.crops.model_copy(update={"global_px": 64, "local_px": 32}).model_dump(),
    }
    cnn = type(recipe).model_validate(values)
    method = SelfDistillation(cnn).train()
    views = Steps(SmallCorpus(), cnn, 2)[0]
    assert views.mask_GN is None
    found = method(views, 0)
    assert list(found) == ["dino_global", "dino_local", "koleo"]
    sum(found.values()).backward()
    assert all(value.grad is not None for value in method.trained().values())
    tokens = method.teacher["backbone"](torch.zeros(1, 3, 64, 64))
    assert tokens.patches_BND.shape == (1, 4, 1280)
    torch.testing.assert_close(tokens.cls_BD, tokens.patches_BND.mean(1))
