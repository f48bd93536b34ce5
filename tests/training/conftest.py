"""Training without the real data: a small data folder, and a place for runs."""

from pathlib import Path

import pytest

from tests.training.small_data import write_small_data


@pytest.fixture
def small_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "data"
    write_small_data(root)
    monkeypatch.setenv("PATHSERVE_DATA", str(root))
    monkeypatch.setenv("PATHSERVE_RUNS", str(tmp_path / "runs"))
    return root
