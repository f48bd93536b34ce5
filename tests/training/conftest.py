"""A small data folder with a place for runs, for training without the real data; and the real data where they are."""

from pathlib import Path

import pytest

from tests.training.small_data import write_small_data
from training.data.common import data_root
from training.errors import DataMissing


@pytest.fixture(scope="module")
def real_data() -> None:
    """Skips, and says so, where the public sets are not there."""
    try:
        data_root()
    except DataMissing:
        pytest.skip("data sets not present (set PATHSERVE_DATA)")


@pytest.fixture
def small_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "data"
    write_small_data(root)
    monkeypatch.setenv("PATHSERVE_DATA", str(root))
    monkeypatch.setenv("PATHSERVE_RUNS", str(tmp_path / "runs"))
    return root
