"""The results page: every figure of the runs and of the bench, and "not run" for what is not there."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.training.pathbench.boards import record
from training.files import json_bytes
from training.gpfm import page
from training.pathbench.protocols import METRICS
from training.pathbench.records import Record, write_record
from training.runs import runs_folder

pytestmark = pytest.mark.training

STUDENT = "gpfm-distill-scratch-small"
AGREEMENT = {
    "centred": 0.61,
    "centred_interval": [0.55, 0.66],
    "centred_start": 0.02,
    "centred_gain": 0.59,
    "centred_gain_interval": [0.52, 0.65],
    "centred_shuffled": 0.01,
    "void": False,
}
TRAINING = {
    "iterations": 1200,
    "losses": {"ibot": {"first": 3.6, "last": 2.7}, "ibot_display": {"first": 1.8, "last": 1.35}},
    "teacher": {"entropy": 4.7, "used_entropy": 6.8, "most_entropy": 6.93, "effective_rank": 41.6},
    "alarms": 0,
}


def made_run(name: str) -> None:
    folder = runs_folder() / name
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(f'name = "{name}"\nsystem = "gpfm"\nstage = "distill"\nseed = 7\n')
    agreement = {"tiles": 256, "groups": 90, "experts": {"lite0": {"cls": AGREEMENT}}}
    metrics = {"training": TRAINING, "agreement": agreement, "cpu_s": 1800.0}
    (folder / "metrics.json").write_bytes(json_bytes(metrics))
    manifest = {"git_commit": "ab" * 20, "git_changed_files": 0, "seed": 7, "recipe_sha256": "", "weights_sha256": ""}
    (folder / "manifest.json").write_bytes(json_bytes(manifest))


def cell(folder: Path, model: str, shift: float) -> Record:
    """A cell whose probabilities tell two classes of forty patients by `shift`."""
    labels_N = np.tile([0, 1], 40)
    odds_N = shift * labels_N + np.random.default_rng(3).normal(size=80)
    second_N = 1 / (1 + np.exp(-odds_N))
    runs_RNC = np.stack([1 - second_N, second_N], 1)[None]
    value = METRICS["macro_auroc"](runs_RNC[0], labels_N)
    key = {"split": "0" * 64, "model": model}
    made = record(model, "oral", value, metric="macro_auroc", key=key, predictions=f"{model}.npz")
    write_record(
        folder, made, {"probabilities_RNC": runs_RNC, "labels_N": labels_N, "groups_N": np.repeat(np.arange(40), 2)}
    )
    return made


@pytest.fixture
def values(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, object]:
    monkeypatch.setenv("PATHSERVE_RUNS", str(tmp_path))
    made_run(STUDENT)
    records = [cell(tmp_path / "cells", model, shift) for model, shift in ((STUDENT, 3.0), (page.PLAIN, 0.2))]
    records.append(record("uni", "oral", 0.99))
    bench = tmp_path / "pathbench.json"
    bench.write_bytes(json_bytes({"records": [vars_of(each) for each in records]}))
    return page.figures(bench, tmp_path / "cells")


def vars_of(made: Record) -> dict[str, object]:
    return {name: getattr(made, name) for name in Record.__dataclass_fields__}


def test_a_student_is_told_from_the_plain_one(values: dict[str, object]) -> None:
    (pair,) = values["differences"]
    assert (pair["student"], pair["second"], pair["task"]) == (STUDENT, page.PLAIN, "oral")
    assert 0.2 < pair["low"] < pair["difference"] < pair["high"]
    assert values["ranks"]["main"]["mean_rank"] == {STUDENT: 1, page.PLAIN: 2}  # others of the bench are left out


def test_the_page_says_all_of_it(values: dict[str, object]) -> None:
    text = page.page(values)
    assert "| arm A: student from fresh weights | lite0, cls | 0.610 [0.550, 0.660] | 0.020 | 0.590" in text
    assert "1200 steps | 0.50 | abababababab, seed 7 |" in text
    assert "ibot | 3.600 | 2.700" in text
    assert "ibot_display" not in text
    assert f"{page.PLAIN}: better in 1, worse in 0 of 1 rows" in text
    assert "`training/recipes/gpfm-distill-expert-small.toml` | not run" in text
    assert "Flagged board (patients unknown, or a set seen): not run." in text


def test_nothing_run_is_said_everywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATHSERVE_RUNS", str(tmp_path))
    text = page.page(page.figures(tmp_path / "pathbench.json", tmp_path))
    assert text.count("not run") > len(page.ORDER)


def test_the_command_writes_figures_and_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATHSERVE_RUNS", str(tmp_path / "runs"))
    assert page.main(["--bench", str(tmp_path / "none.json"), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "gpfm.md").read_text(encoding="utf-8").startswith("# GPFM")
    assert (tmp_path / "gpfm.json").is_file()


def test_the_published_page_is_made_of_its_figures() -> None:
    results = Path(__file__).parents[3] / "docs" / "results"
    values = json.loads((results / "gpfm.json").read_bytes())
    assert (results / "gpfm.md").read_text(encoding="utf-8") == page.page(values)
