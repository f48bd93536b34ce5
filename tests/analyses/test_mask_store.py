"""Masks on disk: whole after a kill at any moment, read as reports read them, in memory that no slide's size moves."""

import sqlite3
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gateway.analyses import mask_file, mask_store
from gateway.analyses.blending import blend
from gateway.analyses.mask_file import MaskFile
from gateway.analyses.mask_store import MaskStore, StoredMasks, WindowAnswers
from gateway.domain.model import PresenceRule
from gateway.operations.errors import RowsOutdated, StateError
from gateway.slides import quality
from gateway.slides.windows import WindowPlan
from tests.analyses.windows import plan_over

PROMPTS, BATCH, SIDE = 2, 4, 256
OWNER = {"plan": "this one"}


def said(window: int) -> tuple[np.ndarray, np.ndarray]:
    """The logits and the presence of a window, always the same."""
    rng = np.random.default_rng(window)
    logits = rng.normal(0, 2, (PROMPTS, 8, 8)).repeat(SIDE // 8, axis=1).repeat(SIDE // 8, axis=2)
    return logits.astype(np.float32), rng.random(PROMPTS).astype(np.float32)


def answers(first: int, end: int) -> WindowAnswers:
    logits, presence = zip(*map(said, range(first, end)), strict=True)
    figures = np.arange(first, end, dtype=np.float32)[:, None].repeat(quality.WIDTH, axis=1)
    return WindowAnswers(np.stack(logits), np.stack(presence), figures)


def fill(path: Path, plan: WindowPlan, until: int | None = None, owner: dict[str, str] = OWNER) -> Iterator[int]:
    """Go on with the file; tell how far it is after each batch. Ends without a commit where it is left earlier."""
    with MaskFile.writing(path, owner, PROMPTS) as file:
        store = MaskStore(file, plan, (PresenceRule(threshold=0.4, temperature=1.0),) * PROMPTS, None)
        yield store.done
        while store.done < (until or len(plan)):
            store.append(answers(store.done, min(store.done + BATCH, len(plan))), missing=((store.done, 7),))
            yield store.done


def masks(path: Path, plan: WindowPlan) -> StoredMasks:
    return StoredMasks(
        series="1.2",
        level=0,
        pixel_px=1.0,
        rows=plan.height_px,
        columns=plan.width_px,
        indices=(3, 5),
        path=path,
        belongs_to=OWNER,
    )


def content(path: Path) -> list[tuple]:
    with sqlite3.connect(path) as database:
        return [
            *database.execute("SELECT * FROM cells ORDER BY 1, 2, 3"),
            *database.execute("SELECT first, presence, figures FROM answers ORDER BY 1"),
            *database.execute("SELECT windows, blocks FROM state"),
            *database.execute("SELECT row, column FROM missing ORDER BY 1"),
            *database.execute("SELECT row, column FROM begun"),
        ]


@pytest.fixture(scope="module")
def plan() -> WindowPlan:
    return plan_over(700, 1000)


@pytest.fixture(scope="module")
def whole(plan: WindowPlan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that was written without a stop."""
    path = tmp_path_factory.mktemp("whole") / "masks.db"
    assert [*fill(path, plan)][-1] == len(plan)
    return path


def test_what_is_read_is_what_was_blended(whole: Path, plan: WindowPlan) -> None:
    logits, presence = (np.stack(each) for each in zip(*map(said, range(len(plan))), strict=True))
    spoken = presence >= np.float32(0.4)
    expected = np.rint(blend(plan, logits, spoken, slice(0, 700), slice(0, 1000)) * 255).astype(np.uint8)
    expected[expected < 13] = 0
    stored = masks(whole, plan)
    for number, index in enumerate(stored.indices):
        tiles = stored.occupied(index)
        assert tiles.tolist() == sorted(tiles.tolist())
        found = np.zeros((700, 1000), np.uint8)
        for _ in range(2):  # as often as an encoding needs them
            for (row, column), tile in zip(tiles.tolist(), stored.fractions(index), strict=True):
                y, x = row * stored.tile_px, column * stored.tile_px
                assert tile.shape == (min(512, 700 - y), min(512, 1000 - x))
                found[y : y + 512, x : x + 512] = tile
        assert np.array_equal(found, expected[number])
    with stored.opened() as file:
        assert file.missing() == {(first, 7) for first in range(0, len(plan), BATCH)}
        assert np.array_equal(np.concatenate([*file.presence()]), presence)
        assert file.figures()[:, 0].tolist() == list(range(len(plan)))
        area, total = file.extent(1)
        assert area == np.count_nonzero(expected[1] >= 128)
        assert total == expected[1][expected[1] >= 128].sum()
        assert np.array_equal(file.read(0, slice(-40, 60), slice(950, 1050))[40:, :50], expected[0][:60, 950:])
        assert not file.read(0, slice(-40, 0), slice(0, 50)).any()


@pytest.mark.parametrize("commit_s", [0.0, 3600.0])
def test_work_that_is_left_anywhere_goes_on_to_the_same_masks(
    whole: Path, plan: WindowPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commit_s: float
) -> None:
    """With a commit after every batch nothing is done twice; with none all is. Cells are put away and taken up."""
    monkeypatch.setattr(mask_file, "COMMIT_S", commit_s)
    monkeypatch.setattr(mask_file, "WORK_PER_COMMIT", 0.0)
    monkeypatch.setattr(mask_file, "_PAGE", 2)
    monkeypatch.setattr(mask_store, "_MOST_OPEN", 3)
    path = tmp_path / "masks.db"
    for until in (4, 8, 16):
        work = fill(path, plan, until)
        begun = next(work)
        assert begun == (0 if commit_s else {4: 0, 8: 4, 16: 8}[until])
        for _ in work:
            pass
    assert [*fill(path, plan)][-1] == len(plan)
    assert content(path) == content(whole)


KILLED = """
import sys
from pathlib import Path
from gateway.analyses import mask_file
from tests.analyses.test_mask_store import fill
from tests.analyses.windows import plan_over
mask_file.COMMIT_S = mask_file.WORK_PER_COMMIT = 0.0
for done in fill(Path(sys.argv[1]), plan_over(700, 1000)):
    print(done, flush=True)
"""


def test_a_killed_process_leaves_what_another_goes_on_with(whole: Path, plan: WindowPlan, tmp_path: Path) -> None:
    path = tmp_path / "masks.db"
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    while int(child.stdout.readline()) < 8:
        pass
    child.kill()
    child.wait()
    child.stdout.close()
    work = fill(path, plan)
    assert next(work) >= 8
    assert [*work][-1] == len(plan)
    assert content(path) == content(whole)


def test_masks_of_anything_else_are_not_used(whole: Path, plan: WindowPlan, tmp_path: Path) -> None:
    path = tmp_path / "masks.db"
    path.write_bytes(whole.read_bytes())
    assert next(fill(path, plan)) == len(plan)
    other = StoredMasks(
        series="1.2", level=0, pixel_px=1, rows=1, columns=1, indices=(0,), path=path, belongs_to={"plan": "another"}
    )
    with pytest.raises(RowsOutdated):
        other.occupied(0)
    assert next(fill(path, plan, owner={"plan": "another"})) == 0
    path.write_bytes(b"no database" * 100)
    assert next(fill(path, plan)) == 0
    path.unlink()
    with pytest.raises(RowsOutdated):
        masks(path, plan).occupied(3)


@pytest.mark.parametrize("spoil", ["pages", "blob"])
def test_a_damaged_file_is_thrown_away(whole: Path, plan: WindowPlan, tmp_path: Path, spoil: str) -> None:
    """Whether it is read or written to: else an analysis would fail at the same place each time that it is tried."""

    def spoilt() -> Path:
        path = tmp_path / "masks.db"
        path.write_bytes(whole.read_bytes())
        if spoil == "blob":
            with sqlite3.connect(path) as database:
                database.execute("UPDATE cells SET fractions = substr(fractions, 1, length(fractions) - 9)")
        else:
            content = bytearray(path.read_bytes())
            content[4096 * 2 :] = b"\xff" * (len(content) - 4096 * 2)
            path.write_bytes(content)
        return path

    path = spoilt()
    with pytest.raises(RowsOutdated, match="damaged"):
        list(masks(path, plan).fractions(3))
    assert not path.exists()
    path = spoilt()
    with pytest.raises(RowsOutdated, match="damaged"), MaskFile.writing(path, OWNER, PROMPTS) as file:
        file.read(0, slice(0, 700), slice(0, 1000))
    assert [*fill(path, plan)][-1] == len(plan)
    assert content(path) == content(whole)


def test_a_file_that_cannot_be_opened_is_not_thrown_away(whole: Path, plan: WindowPlan, tmp_path: Path) -> None:
    path = tmp_path / "masks.db"
    path.write_bytes(whole.read_bytes())
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StateError) as raised:
            next(fill(path, plan))
        assert type(raised.value) is StateError
        other.execute("ROLLBACK")
    assert next(fill(path, plan)) == len(plan)


def test_memory_does_not_grow_with_the_slide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the height, and two strips in place of one: the peak is that of the same few cells."""
    monkeypatch.setattr(mask_store, "_MOST_OPEN", 12)

    def peak_mb(plan: WindowPlan) -> float:
        tracemalloc.start()
        try:
            for _ in fill(tmp_path / plan.digest.replace(" ", "-"), plan):
                pass
            return tracemalloc.get_traced_memory()[1] / 2**20
        finally:
            tracemalloc.stop()

    small, large = peak_mb(plan_over(700, 3000)), peak_mb(plan_over(1500, 3700))
    assert small < 64
    assert large < small * 1.15
