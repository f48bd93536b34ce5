"""A made data folder with all sets of segmentation."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.pathsegmentor.made_sets import write_sets


@pytest.fixture(scope="session")
def made_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder; `segmentation_data` lets a module's tests read from it."""
    return write_sets(tmp_path_factory.mktemp("segmentation"))


@pytest.fixture(scope="module")
def segmentation_data(made_sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The made folder as the data folder, and a place for runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATHSERVE_DATA", str(made_sets))
        patch.setenv("PATHSERVE_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield made_sets
