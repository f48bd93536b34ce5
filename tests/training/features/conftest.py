"""Small slides, and features of them by an encoder without weights (colour histograms)."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.operations.settings import Settings
from gateway.slides.phantom import write_phantom
from training.features.embedders import Options
from training.features.job import Job
from training.features.run import Progress, run

Compute = Callable[..., Progress]
NATIVE = Options(profile="native")


@pytest.fixture(scope="session")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two phantoms, one of them twice as fine as the other."""
    folder = tmp_path_factory.mktemp("slides")
    write_phantom(folder / "a", width_px=2100, height_px=1500, seed=3)
    write_phantom(folder / "b", width_px=1800, height_px=1400, mpp=0.25, seed=4)
    return folder


@pytest.fixture
def own_slides(slides: Path, tmp_path: Path) -> Path:
    """A copy that a test may harm."""
    return shutil.copytree(slides, tmp_path / "slides")


@pytest.fixture
def compute(tmp_path: Path) -> Compute:
    """Run a job in this process, in shards of a few tiles."""

    def compute(slides: Path, out: Path, encoder: str = "colour-histogram", workers: int = 1) -> Progress:
        job = Job(slides=slides, encoder=encoder, out=out, options=NATIVE, shard_tiles=4)
        return run(job, Settings(state=tmp_path / "state"), workers)

    return compute
