"""What the fault tests share: a PACS with slides to analyse, and a Triton that survives what is killed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.operations.settings import Settings
from gateway.slides.phantom import write_phantom
from tests.support.gateway import Case, case_of
from tests.support.models import without_golden
from tests.support.orthanc import Orthanc, running_orthanc
from tests.support.triton import held_triton

SLIDE_PX = 6656
"""Side of the slide that is killed in the middle: a few hundred tiles, some seconds of work."""


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path_factory.mktemp("pacs")) as server:
        yield server


@pytest.fixture(scope="module")
def case(pacs: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A case of a slide in the PACS that is large enough to be interrupted."""
    folder = tmp_path_factory.mktemp("slide")
    write_phantom(folder, kind="he", width_px=SLIDE_PX, height_px=SLIDE_PX, seed=6)
    pacs.upload(folder)
    return case_of(folder)


@pytest.fixture(scope="module")
def small_case(pacs: Orthanc, cmu_slide: Path) -> Case:
    """A case of a small slide in the PACS."""
    pacs.upload(cmu_slide)
    return case_of(cmu_slide)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tissue models without golden inputs, so that every row that goes through a model is a tile."""
    return without_golden(Settings().model_repository, tmp_path_factory.mktemp("models") / "repository")


@pytest.fixture(scope="module")
def state(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state folder whose Triton belongs to this process."""
    folder = tmp_path_factory.mktemp("work") / "state"
    with held_triton(Settings(state=folder, model_repository=models)):
        yield folder
