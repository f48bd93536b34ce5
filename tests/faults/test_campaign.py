"""A short campaign of kills on a fixed seed: the long one is `make campaign` (docs/results/faults.md)."""

from pathlib import Path

import pytest

from tests.faults.campaign.run import run

pytestmark = [pytest.mark.pacs, pytest.mark.triton]

SEED = 2124


def test_every_order_ends_once_whatever_is_killed(tmp_path: Path) -> None:
    result = run(tmp_path, seed=SEED, kills=6, analyses=6, database="postgresql", most_s=240.0)
    assert result.faults == ()
    assert result.states == {"completed": 6}
    # Each of them once: gateway, worker, Triton, a stub of it, PACS, database.
    assert len({each.kill.target for each in result.kills}) == 6
    assert [control.name for control in result.controls if not control.noticed] == []
