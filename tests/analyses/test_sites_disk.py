"""A disk that is full, and a process that is killed, while a site's next state is written: the one that was signed
stays what slides are read with, and nothing half is read."""

import multiprocessing
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gateway.analyses.sites import SiteStore, signed_state, site_of
from gateway.analyses.sites_seen import Seen
from gateway.operations.errors import DiskFull
from gateway.slides.site_state import SiteState, Source
from tests.analyses.test_sites import HEADER, quietly, record, signed, state_of
from tests.analyses.test_sites import source as source_of
from tests.analyses.test_sites_fit import Counting, Place, few, like, models, source
from tests.support.commands import commands_on

__all__ = ["few", "like", "models", "source"]
"""Fixtures."""

PAGE = os.sysconf("SC_PAGE_SIZE")
FILES = ("1.fit.json", "1.json", "1.signed.json")
STATE_MB = 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A state folder on a file system of one megabyte."""
    folder = tmp_path / "state"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={STATE_MB}m", "tmpfs", folder]
    if os.geteuid() != 0 or subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("needs root and the right to mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(disk: Path, left: int) -> Path:
    """Take all room but so many pages; the file that takes it."""
    taken = disk / "taken"
    with taken.open("ab", buffering=0) as out:
        out.write(bytes(os.statvfs(disk).f_bavail * PAGE - left * PAGE))
    assert os.statvfs(disk).f_bavail == left
    return taken


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def with_one_signed(folder: Path) -> tuple[SiteStore, dict[str, bytes]]:
    """A site of one signed version, and its files."""
    store = SiteStore(folder)
    store.add(state_of(), record(), quietly)
    signed(store, "north", 1)
    return store, bytes_of(folder / "sites" / "north")


def demand_the_first(folder: Path, before: dict[str, bytes]) -> None:
    """The site is what it was: its slides find it, and are read with its first version."""
    now = bytes_of(folder / "sites" / "north")
    assert {name: now[name] for name in FILES} == before
    assert [version.state.version for version in SiteStore(folder).versions("north")] == [1]
    assert site_of(folder, HEADER, "PAP") == "north"
    found = signed_state(folder, "north", source_of())
    assert found is not None
    assert found.state.to_bytes() == before["1.json"]


# A state has some hundred bytes, and each file takes a page.
@pytest.mark.parametrize(("left", "written"), [(0, set()), (1, {"2.fit.json"})], ids=["record", "state"])
def test_a_full_disk_leaves_the_version_before_and_the_next_fit_takes_the_number(
    small_disk: Path, left: int, written: set[str]
) -> None:
    store, before = with_one_signed(small_disk)
    taken: list[Path] = []
    with pytest.raises(DiskFull, match="No space is left in the state folder: make room there"):
        store.add(state_of(cells=200), record(), lambda state: taken.append(fill(small_disk, left)))
    assert set(bytes_of(small_disk / "sites" / "north")) == {*FILES, *written}
    demand_the_first(small_disk, before)
    taken[0].unlink()
    store.add(state_of(cells=300), record(), quietly)
    assert store.version("north", 2).state.cells == 300
    signed(store, "north", 2)
    found = signed_state(small_disk, "north", source_of())
    assert found is not None
    assert found.state.cells == 300


@pytest.mark.parametrize("decide", ["sign", "retire"])
def test_a_decision_that_finds_no_room_is_none(small_disk: Path, decide: str) -> None:
    store, before = with_one_signed(small_disk)
    store.add(state_of(cells=200), record(), quietly)
    taken: list[Path] = []

    def tell(state: SiteState) -> None:
        taken.append(fill(small_disk, 0))

    number = 2 if decide == "sign" else 1
    with pytest.raises(DiskFull):
        getattr(store, decide)("north", number, "B", "device:tester", record().time, tell)
    assert {name for name in bytes_of(small_disk / "sites" / "north") if "2." in name} == {"2.fit.json", "2.json"}
    found = signed_state(small_disk, "north", source_of())
    assert found is not None
    assert found.state.to_bytes() == before["1.json"]
    taken[0].unlink()
    getattr(store, decide)("north", number, "B", "device:tester", record().time, quietly)
    found = signed_state(small_disk, "north", source_of())
    assert (None if found is None else found.state.cells) == (200 if decide == "sign" else None)


def _killed(folder: Path, name: str, after: str) -> None:
    """Fit a second version, and die once so much of a file is written: part of it, all of it, or under its name."""
    fsync, replaced = os.fsync, Path.replace
    part = folder / "sites" / "north" / f".{name}.part"

    def dying_fsync(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").readlink() == part:
            if after == "part":
                os.ftruncate(handle, os.fstat(handle).st_size // 2)
            os.kill(os.getpid(), 9)
        fsync(handle)

    def dying_replace(path: Path, target: Path) -> Path:
        done = replaced(path, target)
        if path == part:
            os.kill(os.getpid(), 9)
        return done

    if after == "name":
        Path.replace = dying_replace  # type: ignore[method-assign, assignment]
    else:
        os.fsync = dying_fsync
    SiteStore(folder).add(state_of(cells=200), record(), quietly)


@pytest.mark.parametrize(
    ("name", "after"),
    [("2.fit.json", "part"), ("2.fit.json", "whole"), ("2.fit.json", "name"), ("2.json", "part"), ("2.json", "whole")],
)
def test_a_kill_leaves_the_version_before_and_the_next_fit_takes_the_number(
    tmp_path: Path, name: str, after: str
) -> None:
    store, before = with_one_signed(tmp_path)
    process = multiprocessing.get_context("forkserver").Process(target=_killed, args=(tmp_path, name, after))
    process.start()
    process.join()
    assert process.exitcode == -9
    left = set(bytes_of(tmp_path / "sites" / "north"))
    assert left - {*FILES} == {
        *([] if (name, after) in (("2.fit.json", "part"), ("2.fit.json", "whole")) else ["2.fit.json"]),
        *([] if after == "name" else [f".{name}.part"]),
    }
    demand_the_first(tmp_path, before)
    store.add(state_of(cells=300), record(), quietly)
    assert set(bytes_of(tmp_path / "sites" / "north")) == {*FILES, "2.fit.json", "2.json"} | {
        each for each in left if each.endswith(".part") and each != f".{name}.part"
    }
    assert store.version("north", 2).state.cells == 300


@pytest.mark.parametrize("left", [0, 1, 3])
def test_what_is_seen_of_a_slide_is_kept_whole_or_not_at_all(small_disk: Path, left: int) -> None:
    """The work of a fit: what was kept before stays, and what finds no room is looked at again."""
    seen = Seen(
        features_ND=np.random.default_rng(left).normal(size=(200, 40)).astype(np.float32),
        scores_N=np.ones(200),
        detected_6=np.ones(6, np.int64),
        counts_3V=np.zeros((3, 256), np.int64),
        stain_measured=True,
    )
    work = small_disk / "sites" / "north" / "work"
    seen.save(work / "first.npz", {"slide": "1"})
    taken = fill(small_disk, left)
    with pytest.raises(DiskFull):
        seen.save(work / "second.npz", {"slide": "2"})
    assert [path.name for path in work.iterdir()] == ["first.npz"]
    assert Seen.load(work / "second.npz", {"slide": "2"}) is None
    kept = Seen.load(work / "first.npz", {"slide": "1"})
    assert kept is not None
    np.testing.assert_array_equal(kept.features_ND, seen.features_ND)
    taken.unlink()
    seen.save(work / "second.npz", {"slide": "2"})
    assert Seen.load(work / "second.npz", {"slide": "2"}) is not None


def test_a_fit_that_finds_no_room_says_so_and_goes_on_once_there_is_some(
    small_disk: Path,
    like: Path,
    source: Source,
    models: Path,
    few: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command's own fit, in the midst of its slides; a version that was signed is used all the while."""
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    with commands_on(small_disk, models, monkeypatch):
        place = Place(small_disk, models, capsys)
        place.fit(like)
        signed(place.store, "north", 1)
        before = bytes_of(small_disk / "sites" / "north")
        taken: list[Path] = []
        engine = Counting(models, 9, lambda: taken.append(fill(small_disk, 1)), ends=False)
        with pytest.raises(DiskFull, match="make room there"):
            place.fit(like, engine=engine)
        assert bytes_of(small_disk / "sites" / "north") == before
        found = signed_state(small_disk, "north", source)
        assert found is not None
        assert found.state.to_bytes() == before["1.json"]
        taken[0].unlink()
        rest = Counting(models)
        place.fit(like, engine=rest)
        assert rest.calls["smartccs_detect"] < len(list(like.iterdir()))
        again = place.store.version("north", 2).state
        assert replace(again, version=1).to_bytes() == before["1.json"]
