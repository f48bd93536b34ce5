"""A teacher that answers the same to everything is noticed; a healthy one is not accused."""

from pathlib import Path

import pytest
import torch

from tests.training.ssl.test_loop import begin, events
from training.ssl.collapse import signs
from training.ssl.train import figures

pytestmark = pytest.mark.training


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(64, 32, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def answers() -> torch.Tensor:
    return torch.softmax(4 * torch.randn(64, 128, generator=torch.Generator().manual_seed(4)), dim=1)


def test_a_healthy_teacher_is_not_accused(features: torch.Tensor, answers: torch.Tensor) -> None:
    found = signs(features, answers)
    assert found.alarm() is None
    assert found.effective_rank > 25
    assert 0 < found.entropy < found.used_entropy < torch.tensor(128.0).log()


@pytest.mark.parametrize(
    ("harm", "alarm"),
    [
        (lambda f, q: (f[:1].expand(64, 32) + 1e-5 * f, q), "the same feature"),
        (lambda f, q: (torch.outer(f[:, 0], f[0]) + 1e-4 * f, q), "along one line"),
        (lambda f, q: (f, torch.full_like(q, 1 / 128)), "the teacher answers nothing"),
        (lambda f, q: (f, torch.softmax(0.05 * q.log(), dim=1)), "the teacher answers nothing"),
        (lambda f, q: (f, torch.eye(128)[:1].expand(64, 128)), "the same distribution"),
    ],
)
def test_each_kind_of_collapse_is_named(features: torch.Tensor, answers: torch.Tensor, harm, alarm: str) -> None:
    assert alarm in signs(*harm(features, answers)).alarm()


def test_a_uniform_teacher_is_not_a_teacher_of_one_prototype(features: torch.Tensor, answers: torch.Tensor) -> None:
    """Both tell nothing of an image; only one of them answers nothing."""
    uniform = signs(features, torch.softmax(0.05 * answers.log(), dim=1))
    single = signs(features, torch.eye(128)[:1].expand(64, 128))
    assert uniform.uniform
    assert 0 < uniform.information < uniform.sharpness < 0.05
    assert not single.uniform
    assert single.sharpness == pytest.approx(torch.tensor(128.0).log().item())
    assert single.information == pytest.approx(0)
    assert not signs(features, answers).uniform


def test_a_teacher_that_answers_nothing_is_said_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At a high temperature the answers are uniform; features differ, and neither spread nor rank tells."""
    flat = ("iterations=4", "teacher.temp=[5.0, 5.0]", "network.layerscale=1.0")
    begin(tmp_path / "flat", *flat).train(4)
    assert events(tmp_path / "flat", "teacher")[-1]["signs"]["uniform"]
    assert figures(tmp_path / "flat" / "log.jsonl")["teacher"]["uniform"]
    assert events(tmp_path / "flat", "collapse")[-1]["alarm"].startswith("the teacher answers nothing")
    assert "the teacher answers nothing" in capsys.readouterr().err


def test_a_constructed_collapse_trips_the_alarm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without centring and with a tiny temperature, all images fall on one prototype."""
    quick = ("iterations=20", "checkpoints.every=20", "network.layerscale=1.0", "teacher.momentum=[0.9, 1.0]")
    harm = ("dino.centre_momentum=1", "dino.koleo=0", "teacher.temp=[0.001, 0.001]")
    begin(tmp_path / "collapsed", *quick, *harm).train(20)
    alarms = events(tmp_path / "collapsed", "collapse")
    assert alarms
    assert alarms[-1]["iteration"] == 19
    assert alarms[-1]["alarm"] in capsys.readouterr().err
    begin(tmp_path / "healthy", *quick).train(20)
    assert not events(tmp_path / "healthy", "collapse")
