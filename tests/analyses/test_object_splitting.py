"""Objects split while windows are still coming: the same as afterwards, and none that a later window could change."""

from pathlib import Path

import numpy as np
import pytest

from gateway.analyses import object_splitting
from gateway.analyses.instances import splitting_of
from gateway.analyses.mask_file import MaskFile
from gateway.analyses.mask_store import MaskStore, WindowAnswers
from gateway.analyses.object_splitting import Splitter
from gateway.analyses.outline_codec import unpacked
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
    y, x = np.mgrid[:1400, :900]
    mask = np.zeros((1400, 900), bool)
    for row, column, radius in zip(
        rng.uniform(20, 1380, 140), rng.uniform(20, 880, 140), rng.uniform(8, 18, 140), strict=True
    ):
        mask |= (y - row) ** 2 + (x - column) ** 2 < radius**2
    return np.where(mask, 6, -6).astype(np.float32)


def split_over(path: Path, field: np.ndarray, *, behind: bool, kept: int | None = None) -> list[tuple]:
    """What the file holds of the objects. `kept`: leave the file without a commit after so many windows, once."""
    plan: WindowPlan = plan_over(1400, 900)
    with MaskFile.writing(path, {}, 1) as file:
        store, splitter = MaskStore(file, plan, 1, 0.5, None), Splitter(file, plan, SPLITTINGS)
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


def test_behind_the_windows_is_as_after_them(field: np.ndarray, tmp_path: Path) -> None:
    after = split_over(tmp_path / "after.db", field, behind=False)
    assert 90 < sum(len(areas) for _, areas in after) <= 140
    assert split_over(tmp_path / "behind.db", field, behind=True) == after
    assert split_over(tmp_path / "left.db", field, behind=True, kept=32) == []
    assert split_over(tmp_path / "left.db", field, behind=True) == after


def test_some_blocks_need_not_wait_for_all_windows() -> None:
    plan = plan_over(2000, 900)
    blocks, needs = object_splitting._in_order(plan, SPLITTINGS)
    assert sorted(blocks.tolist()) == list(range(8 * 4))
    assert needs.tolist() == sorted(needs.tolist())
    assert needs[0] < len(plan) / 3
    assert needs[-1] == len(plan)


def test_it_ends_when_the_analysis_is_cancelled(field: np.ndarray, tmp_path: Path) -> None:
    with MaskFile.writing(tmp_path / "masks.db", {}, 1) as file:
        splitter = Splitter(file, plan_over(600, 900), SPLITTINGS)
        with pytest.raises(Cancelled):
            splitter.run(20, lambda: True)
        assert not splitter.finished
