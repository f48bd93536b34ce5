"""Slides pulled from a real PACS."""

from pathlib import Path

import pytest

from gateway.archive.cache import FrameCache
from gateway.archive.dicomweb import DicomWebArchive
from gateway.archive.dicomweb_http import Limits
from gateway.operations.errors import (
    Cancelled,
)
from tests.support.orthanc import Orthanc

pytestmark = pytest.mark.pacs

QUICK = Limits(backoff_s=0.01)


@pytest.fixture
def archive(orthanc: Orthanc) -> DicomWebArchive:
    return DicomWebArchive.from_address(orthanc.address)


def kept(cache: Path) -> dict[str, int]:
    """Every whole instance below the cache, with its inode."""
    return {path.name: path.stat().st_ino for path in cache.rglob("*.dcm")}


def test_fetched_files_are_the_stored_ones(
    archive: DicomWebArchive, slide_uids: tuple[str, str], slide_folder: Path, cache: FrameCache, tmp_path: Path
) -> None:
    [entry] = archive.find_series(slide_uids[0])
    seen: list[tuple[int, int | None]] = []
    fetched = archive.fetch(entry, cache, progress=lambda done, total: seen.append((done, total)))

    assert [file.name for file in fetched.files] == sorted(file.name for file in slide_folder.glob("*.dcm"))
    assert all(file.is_relative_to(tmp_path / "cache") for file in fetched.files)
    for file in fetched.files:
        assert file.read_bytes() == (slide_folder / file.name).read_bytes()
    size = sum(file.stat().st_size for file in fetched.files)
    assert seen == sorted(seen, key=lambda step: step[0])
    assert seen[-1] == (size, size)


def test_an_interrupted_fetch_continues(
    archive: DicomWebArchive, slide_uids: tuple[str, str], slide_folder: Path, cache: FrameCache, tmp_path: Path
) -> None:
    [entry] = archive.find_series(slide_uids[0])
    done = 0

    def progress(size: int, total: int | None) -> None:
        nonlocal done
        done = size

    with pytest.raises(Cancelled):
        archive.fetch(entry, cache, progress=progress, cancelled=lambda: done > 300_000)
    before = kept(tmp_path)
    assert 0 < len(before) < 8
    # What kill -9 in the middle of a file leaves behind.
    missing = next(file.name for file in slide_folder.glob("*.dcm") if file.name not in before)
    (next(iter(tmp_path.rglob("*.dcm"))).parent / f".{missing}.part").write_bytes(b"half of it")

    fetched = archive.fetch(entry, cache)
    after = kept(tmp_path)
    assert before.items() <= after.items()  # the same inodes: not fetched again
    assert sorted(after) == sorted(file.name for file in slide_folder.glob("*.dcm"))
    assert all(file.read_bytes() == (slide_folder / file.name).read_bytes() for file in fetched.files)
    archive.fetch(entry, cache)
    assert kept(tmp_path) == after
