"""The loop that several systems train by: which validation's weights it keeps, and that its log says so."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from training.errors import TrainingError
from training.loop import Loop, Measured, Steps, figures
from training.runs import RunWriter
from training.ssl.distributed import World

pytestmark = pytest.mark.training


class Learner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(2, 1)

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        return {"total": self.model(batch).square().mean()}


def trained(folder: Path, *scores: float) -> Loop:
    """A step and a validation for each score, whose log rounds it."""
    learner, said = Learner(), iter(scores)
    steps = Steps(iterations=len(scores), batch=1, rate=0.1, warmup=1, validate_every=1)

    def measure(_: nn.Module) -> Measured:
        score = next(said)
        return Measured(score, {"score": round(score, 1)})

    loop = Loop(
        learner,
        [{"params": list(learner.parameters()), "lr": 0.1}],
        steps,
        1,
        lambda _, rng: torch.from_numpy(rng.normal(size=(1, 2)).astype(np.float32)),
        measure,
        folder / "work",
        World(),
        RunWriter(folder, b"recipe", resume=False),
    )
    loop.train(len(scores))
    return loop


def test_the_best_validation_is_kept_whatever_the_range_of_the_score_and_the_log_names_it(tmp_path: Path) -> None:
    loop = trained(tmp_path / "run", -3.0, -2.04, -2.01, -5.0)
    assert loop.best_score == -2.01
    assert not torch.equal(loop.best.weight, loop.average.weight)
    log = tmp_path / "run" / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["kept"] for line in lines if line["event"] == "validation"] == [True, True, True, False]
    # By the logged score it would be the one before.
    assert figures(log, "score")["validation"] == {"iteration": 2, "score": -2.0}


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_score_that_is_not_finite_ends_the_training(tmp_path: Path, score: float) -> None:
    with pytest.raises(TrainingError, match="no finite score"):
        trained(tmp_path / "run", 0.5, score)
