"""A made data folder for a module's tests, and a place for runs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.data import made


@pytest.fixture(scope="module")
def made_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = made.Made(tmp_path_factory.mktemp("made"))
    for build in (made.oral, made.breakhis, made.smears, made.consep):
        build(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATHSERVE_DATA", str(folder.finish()))
        patch.setenv("PATHSERVE_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield folder.root
