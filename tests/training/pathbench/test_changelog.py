"""The dated log tells what an update did, and nothing where it did nothing."""

from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from tests.training.pathbench.boards import record, records
from training.pathbench import changelog

pytestmark = pytest.mark.training

DAY = date(2026, 11, 27)


def test_nothing_changed_writes_nothing(tmp_path: Path) -> None:
    assert changelog.write(records(), records(), tmp_path, DAY) is None
    assert list(tmp_path.iterdir()) == []


def test_a_new_encoder_is_added_and_other_cells_are_untouched(tmp_path: Path) -> None:
    rows = [r for r in records() if r.model == "weak"]
    seventh = [replace(r, model="seventh|<b>", value=0.95, low=0.9, high=1.0) for r in rows]
    path = changelog.write(records(), [*records(), *seventh], tmp_path / "changes", DAY)
    assert path == tmp_path / "changes" / "2026-11-27.md"
    text = path.read_text()
    assert "4 cells added, 0 changed, 0 removed, 12 untouched." in text
    assert "Models added: seventh\\|\\<b\\>." in text
    assert "| main | strong | 1.00 | 2.00 |" in text
    assert "| main | seventh\\|\\<b\\> | not ranked | 1.00 |" in text
    assert "### Changed" not in text


def test_changed_and_removed_cells_and_a_second_update_of_the_day(tmp_path: Path) -> None:
    first, *others = records()
    changelog.write([], records(), tmp_path, DAY)
    again = replace(first, value=0.91, key={"split": "0" * 64, "config": "other"})
    path = changelog.write(records(), [again, *others[:-1]], tmp_path, DAY)
    assert path is not None
    text = path.read_text()
    assert text.count("# PathBench: changes of 2026-11-27") == 1
    assert "## Update 1\n\n12 cells added" in text
    assert "## Update 2\n\n0 cells added, 1 changed, 1 removed, 10 untouched." in text
    assert "| config |" in text
    assert "0.9000 [0.8500, 0.9500]" in text.split("### Changed")[1]


def test_a_cell_that_turns_out_to_overlap_is_a_change(tmp_path: Path) -> None:
    cells = [record("A", "t", 0.7), record("B", "t", 0.6)]
    path = changelog.write(cells, [replace(cells[0], board="flagged", leakage="overlap"), cells[1]], tmp_path, DAY)
    assert path is not None
    assert "main board, clean | 0.7000 [0.6500, 0.7500], flagged board, overlap |" in path.read_text()
