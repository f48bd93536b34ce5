"""`pathserve analyze` with the real Triton: the objects of a real slide are clean, a damaged slide leaves nothing."""

from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from gateway.operations.settings import Settings
from gateway.reports.derived import Kind
from tests.e2e.conftest import Cli
from tests.fuzz.cases import MUTATORS, case_of
from tests.fuzz.corpus import corpus
from tests.support.dciodvfy import validate
from tests.support.triton import held_triton

DAMAGED = ("bits-in-pixels", "frames-lie", "bottomless", "file-set-elsewhere")


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    state = tmp_path_factory.mktemp("state")
    with held_triton(Settings(state=state)):
        yield Cli(state)


def analyze(command: Cli, slide: Path, out: Path) -> tuple[int, str]:
    done = command(
        "analyze", "--protocol", "tissue-classification", "--slide", slide, "--out", out, timeout_s=60
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.triton
@pytest.mark.validators
def test_every_object_of_a_real_analysis_is_clean(command: Cli, cmu_slide: Path, tmp_path: Path) -> None:
    status, said = analyze(command, cmu_slide, tmp_path)
    assert status == 0, said
    objects = {kind: next(iter(tmp_path.glob(f"*.{kind.extension}.dcm"))) for kind in Kind}
    assert {kind.name: validate(path) for kind, path in objects.items()} == {kind.name: [] for kind in Kind}
    text = pydicom.dcmread(objects[Kind.KO]).to_json()
    for kind, path in objects.items():
        assert kind is Kind.KO or pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID in text


@pytest.mark.triton
@pytest.mark.parametrize("mutator", DAMAGED)
def test_a_damaged_slide_gives_a_report_or_one_sentence(
    command: Cli, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, mutator: str
) -> None:
    damaged = corpus(tmp_path_factory.getbasetemp() / "corpus")
    case_of(MUTATORS.index(("slide", mutator)) + 3 * len(MUTATORS), damaged).damage(tmp_path)
    before = {path: path.lstat().st_mtime_ns for path in (tmp_path / "in").rglob("*")}
    status, said = analyze(command, tmp_path / "in", tmp_path / "out")
    written = {path.name for path in (tmp_path / "out").iterdir()} if (tmp_path / "out").exists() else set()
    assert (status == 0) == ("report.json" in written), said
    assert "Traceback" not in said
    if status:
        assert written == set()
        [sentence] = [line for line in said.splitlines() if line.startswith("pathserve: ")]
        assert said.endswith(f"{sentence}\n")
        assert str(tmp_path) not in said
    assert {path: path.lstat().st_mtime_ns for path in (tmp_path / "in").rglob("*")} == before
