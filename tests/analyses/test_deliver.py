"""Delivery: every object of the report, in the order in which they refer to each other, and none twice."""

from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest

from gateway.analyses.steps import CaseRun
from gateway.archive import FolderArchive
from gateway.domain.analysis import Progress, Step
from gateway.domain.order import Order, SlideReference, Specimen
from gateway.operations.errors import Cancelled, StateError
from gateway.operations.settings import Settings
from tests.reports.conftest import COMMITTED, encoded, reading_of, report_of, result_of, source_of, volume_headers

ORDER = Order("tissue-classification", (Specimen(slides=(SlideReference("1.2.3"),)),))
OBJECTS = [f"tissue-1.{kind}.dcm" for kind in ("seg", "pm", "ann")] + [
    f"report.{kind}.dcm" for kind in ("sr", "pdf", "ko")
]


class Watched(FolderArchive):
    """A folder that remembers in which order it was given what."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.stored: list[str] = []

    def store(self, files: list[Path]) -> None:
        super().store(files)
        self.stored += [file.name for file in files]


@pytest.fixture(scope="module")
def artifacts() -> dict[str, bytes]:
    image = volume_headers(COMMITTED)[0]
    slide = reading_of(image)
    result = result_of(slide)
    return encoded(report_of([slide], [result]), [source_of(image, result)])[1]


@pytest.fixture
def archive(tmp_path: Path) -> Watched:
    (tmp_path / "pacs").mkdir()
    return Watched(tmp_path / "pacs")


@pytest.fixture
def run_of(tmp_path: Path, archive: Watched, artifacts: dict[str, bytes]) -> Callable[..., CaseRun]:
    folder = tmp_path / "analyses" / "a-1"
    (folder / "artifacts").mkdir(parents=True)
    for name, data in artifacts.items():
        (folder / "artifacts" / name).write_bytes(data)
    return lambda **more: CaseRun("a-1", ORDER, folder, settings=Settings(state=tmp_path), archive=archive, **more)


async def test_each_object_is_told_and_the_key_objects_come_last(
    run_of: Callable[..., CaseRun], archive: Watched, tmp_path: Path
) -> None:
    told: list[Progress] = []
    assert await run_of(progress=told.append).deliver() == {"objects": 6}
    assert archive.stored == OBJECTS
    assert told == [Progress(Step.DELIVER, done, 6, "objects") for done in range(7)]
    sent = {pydicom.dcmread(path, stop_before_pixels=True).Modality for path in (tmp_path / "pacs").rglob("*.dcm")}
    assert sent == {"SEG", "OT", "ANN", "SR", "DOC", "KO"}


async def test_what_was_interrupted_is_repeated_with_the_same_objects(
    run_of: Callable[..., CaseRun], archive: Watched, tmp_path: Path
) -> None:
    with pytest.raises(Cancelled):
        await run_of(cancelled=lambda: len(archive.stored) == 2).deliver()
    assert archive.stored == OBJECTS[:2]
    before = {path.name: path.read_bytes() for path in (tmp_path / "pacs").rglob("*.dcm")}
    await run_of().deliver()
    after = {path.name: path.read_bytes() for path in (tmp_path / "pacs").rglob("*.dcm")}
    assert before.items() <= after.items()
    assert len(after) == 6


@pytest.mark.parametrize("gone", ["report.json", "report.sr.dcm"])
async def test_a_report_that_is_not_whole_is_not_delivered(
    run_of: Callable[..., CaseRun], archive: Watched, gone: str
) -> None:
    run = run_of()
    (run.artifacts / gone).unlink()
    with pytest.raises(StateError, match="gone"):
        await run.deliver()
    assert archive.stored == []
