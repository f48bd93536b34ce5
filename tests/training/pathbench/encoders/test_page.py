"""The page says what the cards say now."""

from pathlib import Path

import pytest

from training.pathbench.encoders import registered
from training.pathbench.encoders.__main__ import main
from training.pathbench.encoders.page import page

pytestmark = pytest.mark.training

DOCS = Path(__file__).parents[4] / "docs"


def test_the_committed_page_is_current(tmp_path: Path) -> None:
    assert main(["page", "--out", str(tmp_path / "page.md")]) == 0
    assert (DOCS / "encoders.md").read_bytes() == (tmp_path / "page.md").read_bytes()


def test_a_place_that_cannot_be_written_ends_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["page", "--out", str(tmp_path / "nowhere" / "page.md")]) == 1
    assert capsys.readouterr().err == "The page cannot be written: No such file or directory.\n"


def test_every_encoder_is_on_it() -> None:
    assert [name for name in registered() if f"| `{name}` |" not in page()] == []
