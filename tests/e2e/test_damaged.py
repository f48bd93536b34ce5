"""`pathserve analyze` of a damaged slide: a report or one sentence, and nothing is left of what failed."""

from pathlib import Path

import pytest

from tests.e2e.conftest import Cli
from tests.fuzz.cases import MUTATORS, case_of
from tests.fuzz.corpus import corpus

DAMAGED = ("bits-in-pixels", "frames-lie", "bottomless", "file-set-elsewhere")


@pytest.mark.triton
@pytest.mark.parametrize("mutator", DAMAGED)
def test_a_damaged_slide_gives_a_report_or_one_sentence(
    cli: Cli, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, mutator: str
) -> None:
    damaged = corpus(tmp_path_factory.getbasetemp() / "corpus")
    case_of(MUTATORS.index(("slide", mutator)) + 3 * len(MUTATORS), damaged).damage(tmp_path)
    before = {path: path.lstat().st_mtime_ns for path in (tmp_path / "in").rglob("*")}
    done = cli(
        "analyze", "--protocol", "tissue-classification", "--slide", tmp_path / "in", "--out", tmp_path / "out",
        timeout_s=60,
    )  # fmt: skip
    said = done.stderr
    written = {path.name for path in (tmp_path / "out").iterdir()} if (tmp_path / "out").exists() else set()
    assert (done.returncode == 0) == ("report.json" in written), said
    assert "Traceback" not in said
    if done.returncode:
        assert written == set()
        [sentence] = [line for line in said.splitlines() if line.startswith("pathserve: ")]
        assert said.endswith(f"{sentence}\n")
        assert str(tmp_path) not in said
    assert {path: path.lstat().st_mtime_ns for path in (tmp_path / "in").rglob("*")} == before
