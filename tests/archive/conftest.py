"""Fixtures of the archive's tests: a real Orthanc that holds the small slide."""

from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from gateway.archive.cache import FrameCache
from tests.support.orthanc import Orthanc, running_orthanc

SLIDE = Path(__file__).parents[1] / "data" / "cmu_small_he"


@pytest.fixture
def cache(tmp_path: Path) -> FrameCache:
    """An empty cache that has room for every slide of these tests."""
    return FrameCache(tmp_path / "cache", 2**30)


@pytest.fixture(scope="session")
def slide_folder() -> Path:
    return SLIDE


@pytest.fixture(scope="session")
def slide_uids() -> tuple[str, str]:
    """Study and series of the small slide."""
    dataset = pydicom.dcmread(next(SLIDE.glob("*.dcm")), stop_before_pixels=True)
    return dataset.StudyInstanceUID, dataset.SeriesInstanceUID


@pytest.fixture(scope="session")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """An Orthanc that holds the small slide. Tests that stop it start it again."""
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as server:
        server.upload(SLIDE)
        yield server
