"""What is read of a run: ranks of those with every row, of all on the common rows, and the sentences beside them."""

from pathlib import Path

import pytest

from tests.training.pathbench.boards import records
from training.errors import ResultInvalid
from training.pathbench.results import Control, Results, publish

pytestmark = pytest.mark.training


def test_the_text_ranks_all_on_the_rows_that_all_have(tmp_path: Path) -> None:
    cells = tuple(cell for cell in records() if not (cell.model == "strong" and cell.task == "polyps"))
    publish(Results("made", cells, (), ()), tmp_path / "cells", tmp_path)
    text = (tmp_path / "pathbench.md").read_text()
    first, common = text.split("### Ranks on the rows that all encoders have")
    assert "| middle | 1.00 | [1.00, 1.00] |" in first
    assert "| strong |" not in first
    assert "| strong | 1.00 | [1.00, 1.00] |" in common
    assert "Not ranked with the others, for want of a row: strong." in common


def test_a_control_that_was_not_caught_publishes_nothing(tmp_path: Path) -> None:
    missed = Control("shuffled labels", "oral", "AUC 0.7", "an interval that covers 0.5", caught=False)
    with pytest.raises(
        ResultInvalid, match=r"void and nothing was published: .*shuffled labels.* on oral gave AUC 0\.7"
    ):
        publish(Results("made", tuple(records()), (), (missed,)), tmp_path / "cells", tmp_path / "out")
    assert not (tmp_path / "out").exists()
