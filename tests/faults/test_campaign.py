"""A short campaign of kills on a fixed seed: the long one is `make campaign` (docs/results/faults.md)."""

from pathlib import Path

import pytest

from gateway.operations.settings import Settings
from tests.faults.campaign.run import run
from tests.support.models import without_slide_heads

pytestmark = [pytest.mark.pacs, pytest.mark.triton]

SEED = 2124


def test_every_order_ends_once_whatever_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each Triton that takes another's place loads only what the orders need.
    models = without_slide_heads(Settings().model_repository, tmp_path / "models")
    monkeypatch.setenv("PATHSERVE_MODEL_REPOSITORY", str(models))
    result = run(tmp_path, seed=SEED, kills=6, analyses=6, database="postgresql", most_s=240.0)
    assert result.faults == ()
    assert result.states == {"completed": 6}
    # Each of them once: gateway, worker, Triton, a stub of it, PACS, database.
    assert len({each.kill.target for each in result.kills}) == 6
    assert [control.name for control in result.controls if not control.noticed] == []
