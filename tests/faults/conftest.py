"""What the fault tests share: a PACS with slides to analyse, and a Triton that survives what is killed."""

from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from gateway.slides.phantom import write_phantom
from tests.support.orthanc import Orthanc, running_orthanc
from tests.support.triton import held_triton

SLIDE_PX = 5120
"""Side of the slide that is killed in the middle: a few hundred tiles, some seconds of work."""


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path_factory.mktemp("pacs")) as server:
        yield server


@pytest.fixture(scope="module")
def study(pacs: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The study of a slide in the PACS that is large enough to be interrupted."""
    folder = tmp_path_factory.mktemp("slide")
    write_phantom(folder, kind="he", width_px=SLIDE_PX, height_px=SLIDE_PX, seed=6)
    pacs.upload(folder)
    return study_of(folder)


@pytest.fixture(scope="module")
def small_study(pacs: Orthanc, cmu_slide: Path) -> str:
    """The study of a small slide in the PACS."""
    pacs.upload(cmu_slide)
    return study_of(cmu_slide)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state folder whose Triton belongs to this process."""
    folder = tmp_path_factory.mktemp("work") / "state"
    with held_triton(folder):
        yield folder


def study_of(folder: Path) -> str:
    """The study instance UID of a folder of DICOM files."""
    header = pydicom.dcmread(next(folder.glob("*.dcm")), stop_before_pixels=True, specific_tags=["StudyInstanceUID"])
    return str(header.StudyInstanceUID)
