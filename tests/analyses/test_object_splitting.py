"""Objects split while windows are still coming: the same as afterwards, and none that a later window could change."""

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest

from gateway.analyses import mask_file, object_splitting
from gateway.analyses.instances import split, splitting_of
from gateway.analyses.mask_file import MaskFile
from gateway.analyses.mask_store import MaskStore, WindowAnswers
from gateway.analyses.object_splitting import Splitter
from gateway.analyses.outline_codec import unpacked
from gateway.domain.model import PresenceRule
from gateway.domain.prompts import UNSPECIFIED, Level, Triple
from gateway.operations.errors import Cancelled
from gateway.slides import quality
from gateway.slides.windows import WindowPlan
from tests.analyses.windows import plan_over

SPLITTINGS = {0: splitting_of(Triple(Level.NUCLEI, "nucleus", UNSPECIFIED), 0.25)}
BATCH = 4


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_splitting, "BLOCK_PX", 256)


@pytest.fixture(scope="module")
def field() -> np.ndarray:
    """Logits of a picture with 140 discs, some of which touch."""
    rng = np.random.default_rng(2)
    logits = np.full((1400, 900), -6, np.float32)
    for _ in range(140):
        place = int(rng.uniform(20, 880)), int(rng.uniform(20, 1380))
        cv2.circle(logits, place, int(rng.uniform(8, 18)), 6, cv2.FILLED)
    return logits


def split_over(path: Path, field: np.ndarray, *, behind: bool, kept: int | None = None) -> list[tuple]:
    """What the file holds of the objects. `kept`: leave the file after so many windows."""
    plan: WindowPlan = plan_over(1400, 900)
    with MaskFile.writing(path, {}, 1) as file:
        store, splitter = (
            MaskStore(file, plan, (PresenceRule(threshold=0.5, temperature=1.0),), None),
            Splitter(file, plan, SPLITTINGS),
        )
        while store.done < len(plan):
            corners = list(zip(plan.tops_N, plan.lefts_N, strict=True))[store.done : store.done + BATCH]
            logits = np.stack([field[None, top : top + 256, left : left + 256] for top, left in corners])
            ones = np.ones((len(corners), 1), np.float32)
            store.append(WindowAnswers(logits, ones, np.zeros((len(corners), quality.WIDTH), np.float32)))
            if behind:
                splitter.run(store.done, lambda: False)
                # Many of the blocks do not wait for the last windows: else this would show nothing.
                assert file.blocks >= 4 or store.done < len(plan) / 2
            if kept is not None and store.done >= kept:
                return []
        splitter.run(len(plan), lambda: False)
        assert splitter.finished
        file.commit()
        found = [unpacked(data) for data in file.objects(0)]
    return [(batch.points_P2.tolist(), batch.area_um2_N.tolist()) for batch in found]


def test_behind_the_windows_is_as_after_them(
    field: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = split_over(tmp_path / "after.db", field, behind=False)
    assert 90 < sum(len(areas) for _, areas in after) <= 140
    assert split_over(tmp_path / "behind.db", field, behind=True) == after
    path = tmp_path / "left.db"
    with monkeypatch.context() as at_once:
        at_once.setattr(mask_file, "COMMIT_S", 0.0)
        at_once.setattr(mask_file, "WORK_PER_COMMIT", 0.0)
        assert split_over(path, field, behind=True, kept=32) == []
    with MaskFile.writing(path, {}, 1) as file:
        assert file.windows == 32
        assert file.blocks > 0
    assert split_over(path, field, behind=True) == after


@pytest.mark.parametrize(("object_", "radii_px"), [("nucleus", (5, 12)), ("gland", (15, 45))])
def test_what_is_empty_of_a_block_changes_no_object(object_: str, radii_px: tuple[int, int]) -> None:
    level, mpp = (Level.TISSUE, 1.0) if object_ == "gland" else (Level.NUCLEI, 0.25)
    splitting = splitting_of(Triple(level, object_, "colon"), mpp)
    assert splitting is not None
    rng = np.random.default_rng(7)
    for top, left in ((203, 311), (0, 2), (331, 430)):
        drawn = np.zeros((700, 900), np.uint8)
        for _ in range(60):
            place = int(rng.uniform(left, left + 420)), int(rng.uniform(top, top + 330))
            cv2.circle(drawn, place, int(rng.uniform(*radii_px)), 1, cv2.FILLED)
        mask = drawn.view(bool)
        used = object_splitting._used(mask, splitting.reduction)
        assert mask[used].size < mask.size
        whole, part = split(mask, splitting), split(np.ascontiguousarray(mask[used]), splitting)
        labels_HW = np.zeros_like(whole.labels_HW)
        labels_HW[used] = part.labels_HW
        assert np.array_equal(labels_HW, whole.labels_HW)
        assert np.array_equal(part.marks_M2 + np.array([used[0].start, used[1].start]), whole.marks_M2)
        assert len(whole.marks_M2) > 3


def test_a_block_waits_for_all_that_it_reads_and_for_no_more() -> None:
    """It reads whole cells of the file; one is there once the last window over any of it is done."""
    plan = plan_over(2000, 900)
    blocks, needs = object_splitting._in_order(plan, SPLITTINGS)
    assert sorted(blocks.tolist()) == list(range(8 * 4))
    assert needs.tolist() == sorted(needs.tolist())
    written = np.zeros((8, 4), int)
    for window, (top, left) in enumerate(zip(plan.tops_N.tolist(), plan.lefts_N.tolist(), strict=True), 1):
        written[top // 256 : -(-(top + 256) // 256), left // 256 : -(-(left + 256) // 256)] = window
    for block, waits in zip(blocks.tolist(), needs.tolist(), strict=True):
        row, column = divmod(block, 4)  # a block is a cell here, and its rim half of the next
        assert waits == written[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2].max()


def test_what_is_split_after_the_last_window_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the analysis is cancelled, or killed, meanwhile: within a block, whose other prompts nobody waits for."""
    monkeypatch.setattr(mask_file, "COMMIT_S", 0.0)
    monkeypatch.setattr(mask_file, "WORK_PER_COMMIT", 0.0)
    plan, asked, both = plan_over(600, 900), itertools.count(), {0: SPLITTINGS[0], 1: SPLITTINGS[0]}
    with MaskFile.writing(tmp_path / "masks.db", {}, 2) as file:
        splitter = Splitter(file, plan, both)
        with pytest.raises(Cancelled):
            splitter.run(len(plan), lambda: next(asked) > len(both) * 2 * object_splitting._WORKERS)
        assert not splitter.finished
    with MaskFile.writing(tmp_path / "masks.db", {}, 2) as file:
        assert file.blocks == 2 * object_splitting._WORKERS
