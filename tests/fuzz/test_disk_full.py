"""The disk fills up while a slide is fetched or a result is stored: a typed error, and nothing half-written."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from gateway.archive import FolderArchive, SeriesEntry
from gateway.archive.cache import FrameCache
from gateway.archive.dicomweb import DicomWebArchive
from gateway.operations.errors import DiskFull
from gateway.slides import Slide
from tests.fuzz import rogue, targets

_SMALL_MB = 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte, half of it taken."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={_SMALL_MB}m", "tmpfs", folder], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("needs root and the right to mount a tmpfs")
    try:
        (folder / "taken").write_bytes(bytes(_SMALL_MB << 19))
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def pacs(cmu_slide: Path, tmp_path: Path) -> Iterator[tuple[DicomWebArchive, SeriesEntry]]:
    """A server that holds the committed slide (its finest level alone is larger than the disk)."""
    targets.copied(cmu_slide, tmp_path / "in")
    with rogue.running(rogue.Rogue(Random(0), tmp_path / "in", "none", rogue.html)) as server:
        archive = DicomWebArchive.from_address(server.address)
        [entry] = archive.find_series(server.study)
        yield archive, entry


def left_on(disk: Path) -> set[str]:
    return {path.name for path in disk.rglob("*") if path.is_file()}


@pytest.mark.parametrize("make_room", [True, False], ids=["then there is room", "then it is given up"])
def test_fetching_onto_a_full_disk(
    small_disk: Path, pacs: tuple[DicomWebArchive, SeriesEntry], make_room: bool, tmp_path: Path
) -> None:
    archive, entry = pacs
    cache = FrameCache(small_disk / "cache", 1 << 30)
    with pytest.raises(DiskFull):
        archive.fetch(entry, cache)
    # What is under its name is whole; nothing half-written stays in its way.
    assert not [name for name in left_on(small_disk) if ".part" in name]
    if make_room:
        subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
        with Slide.open(archive.fetch(entry, cache).files) as slide:
            assert slide.levels[0].width_px == 2220


def test_storing_onto_a_full_disk(small_disk: Path, cmu_slide: Path) -> None:
    largest = max(cmu_slide.glob("*.dcm"), key=lambda path: path.stat().st_size)
    small = min(cmu_slide.glob("*.dcm"), key=lambda path: path.stat().st_size)
    archive = FolderArchive(small_disk / "archive")
    (small_disk / "archive").mkdir()
    archive.store([small])
    before = left_on(small_disk)
    with pytest.raises(DiskFull):
        archive.store([largest])
    assert left_on(small_disk) == before
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    archive.store([largest])
    assert len(left_on(small_disk)) == len(before) + 1
