"""A teacher that answers the same to everything is noticed; a healthy one is not accused."""

from pathlib import Path

import pytest
import torch

from tests.training.ssl.test_loop import begin, events
from training.ssl.collapse import signs

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
        (lambda f, q: (f, torch.full_like(q, 1 / 128)), "the same distribution"),
        (lambda f, q: (f, torch.eye(128)[:1].expand(64, 128)), "the same distribution"),
    ],
)
def test_each_kind_of_collapse_is_named(features: torch.Tensor, answers: torch.Tensor, harm, alarm: str) -> None:
    assert alarm in signs(*harm(features, answers)).alarm()


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
