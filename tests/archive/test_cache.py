"""The frame cache: bounded, shared by processes, and never emptied under a reader."""

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.archive.cache import FrameCache
from gateway.operations.errors import Cancelled, DiskFull, FramesNotFetched, StateError

ADDRESS, STUDY = "dicomweb://pacs.example/dicom-web", "2.25.1"
MOST = 1000


@pytest.fixture
def small(tmp_path: Path) -> FrameCache:
    return FrameCache(tmp_path / "cache", MOST)


def never() -> bool:
    return False


def fill(cache: FrameCache, series: str, size: int, used_s: float = 0.0) -> Path:
    """A series of one file of so many bytes; `used_s` is when it was last used."""
    with cache.filling(ADDRESS, STUDY, series, never) as folder:
        cache.make_room(folder, size)
        file = folder / "2.25.9.dcm"
        file.write_bytes(bytes(size))
    os.utime(folder, (used_s, used_s))
    return file


@contextmanager
def another_process(folder: Path, code: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that runs `code` with `cache` at hand, prints a line when it is ready, and is killed at the end."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom gateway.archive.cache import FrameCache\n"
        f"cache = FrameCache(Path({str(folder)!r}), {MOST})\n{code}"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stdin.close()


def test_the_least_recently_used_series_goes_first(small: FrameCache) -> None:
    old, older, young = (
        fill(small, "2.25.2", 300, 200),
        fill(small, "2.25.3", 300, 100),
        fill(small, "2.25.4", 300, 300),
    )
    added = fill(small, "2.25.5", 300, 400)
    assert [file.exists() for file in (older, old, young, added)] == [False, True, True, True]
    with small.hold([old]):
        pass
    fill(small, "2.25.6", 300, 500)
    assert old.exists()  # its use counted
    assert not young.exists()


def test_what_is_held_stays(small: FrameCache) -> None:
    held, free = fill(small, "2.25.2", 400, 100), fill(small, "2.25.3", 400, 200)
    with small.hold([held]):
        fill(small, "2.25.4", 400, 300)
        assert held.exists()
        assert not free.exists()
        with (
            small.filling(ADDRESS, STUDY, "2.25.5", never) as folder,
            pytest.raises(DiskFull, match="PATHSERVE_CACHE_BYTES"),
        ):
            small.make_room(folder, 700)
    fill(small, "2.25.5", 700, 400)
    assert not held.exists()


def test_what_is_unwanted_goes_unless_it_is_held(small: FrameCache) -> None:
    held, gone, kept = fill(small, "2.25.2", 100), fill(small, "2.25.3", 100), fill(small, "2.25.4", 100)
    with small.hold([held]):
        assert small.drop(lambda folder: folder.name != "2.25.4") == (1, 1)
    assert (held.exists(), gone.exists(), kept.exists()) == (True, False, True)
    assert small.drop(lambda folder: True) == (2, 0)
    assert not list(small.of_archive(ADDRESS).glob("*"))


def test_what_can_never_fit_is_refused_before_anything_is_evicted(small: FrameCache) -> None:
    there = fill(small, "2.25.2", 400)
    with small.filling(ADDRESS, STUDY, "2.25.3", never) as folder:
        (folder / "2.25.9.dcm").write_bytes(bytes(600))
        with pytest.raises(StateError, match="PATHSERVE_CACHE_BYTES") as caught:
            small.make_room(folder, 401)
    assert not caught.value.retryable
    assert there.exists()


def test_what_is_gone_cannot_be_held(small: FrameCache, tmp_path: Path) -> None:
    file = fill(small, "2.25.2", 400)
    outside = tmp_path / "outside.dcm"  # not there, and not ours to keep
    with small.hold([outside]):
        pass
    file.unlink()
    with pytest.raises(FramesNotFetched), small.hold([outside, file]):
        pass


def test_nobody_else_can_read_it(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    mask = os.umask(0)
    try:
        fill(FrameCache(tmp_path / "state" / "cache", MOST), "2.25.2", 100)
    finally:
        os.umask(mask)
    made = [tmp_path / "state" / "cache", *(tmp_path / "state" / "cache").rglob("*")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in made if path.is_dir()} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in made if path.name == ".lock"} == {0o600}


def test_archives_do_not_mix(small: FrameCache) -> None:
    first = fill(small, "2.25.2", 100)
    with small.filling("dicomweb://other.example/dicom-web", STUDY, "2.25.2", never) as folder:
        assert folder != first.parent
        assert folder.is_relative_to(small.of_archive("dicomweb://other.example/dicom-web"))


def test_a_reader_in_another_process_holds_until_it_dies(small: FrameCache, tmp_path: Path) -> None:
    file = fill(small, "2.25.2", 600)
    code = f"with cache.hold([Path({str(file)!r})]):\n    print('ready', flush=True)\n    sys.stdin.read()"
    with another_process(tmp_path / "cache", code):
        with small.filling(ADDRESS, STUDY, "2.25.3", never) as folder, pytest.raises(DiskFull):
            small.make_room(folder, 600)
        assert file.exists()
    fill(small, "2.25.3", 600)
    assert not file.exists()


def test_a_killed_writer_leaves_nothing_behind(small: FrameCache, tmp_path: Path) -> None:
    code = (
        f"with cache.filling({ADDRESS!r}, {STUDY!r}, '2.25.2', lambda: False) as folder:\n"
        "    (folder / '.2.25.9.dcm.part').write_bytes(bytes(900))\n"
        "    print('ready', flush=True)\n    sys.stdin.read()"
    )
    with another_process(tmp_path / "cache", code):
        gave_up = threading.Event()
        threading.Timer(0.3, gave_up.set).start()
        with pytest.raises(Cancelled), small.filling(ADDRESS, STUDY, "2.25.2", gave_up.is_set):
            pass
        with small.filling(ADDRESS, STUDY, "2.25.3", never) as folder, pytest.raises(DiskFull):
            small.make_room(folder, 200)  # what is being written counts
    with small.filling(ADDRESS, STUDY, "2.25.2", never) as folder:
        assert [path.name for path in folder.iterdir()] == [".lock"]


def test_many_at_once_stay_within_bounds(small: FrameCache, tmp_path: Path) -> None:
    """Two processes fill and evict for a while: every claim holds, and at rest the bound does."""
    work = (
        "import random\n"
        "print('ready', flush=True)\n"
        "for turn in range(60):\n"
        f"    with cache.filling({ADDRESS!r}, {STUDY!r}, f'2.25.{{random.randrange(8)}}', lambda: False) as folder:\n"
        "        cache.make_room(folder, 0)\n"
        "        file = folder / '2.25.9.dcm'\n"
        "        file.write_bytes(bytes(200))\n"
        "        with cache.hold([file]):\n"
        "            assert file.stat().st_size == 200\n"
        "print('done', flush=True)\n"
    )
    with another_process(tmp_path / "cache", work) as one, another_process(tmp_path / "cache", work) as two:
        for process in (one, two):
            assert process.stdout is not None
            assert process.stdout.readline() == "done\n"
    with small.filling(ADDRESS, STUDY, "2.25.100", never) as folder:
        small.make_room(folder, 0)
    sizes = [path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert 0 < sum(sizes) <= MOST
