"""A whole bench on made images: cells are computed once, whoever is killed, and a new encoder adds its own only."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.training.data import made
from training.errors import ResultInvalid
from training.pathbench import __main__ as command
from training.pathbench import runner, tasks
from training.pathbench.cells import Cells, code_version
from training.pathbench.encoders import cards
from training.pathbench.records import read_record
from training.pathbench.results import published

pytestmark = pytest.mark.training
RECIPE = """
name = "made"
system = "pathbench"
stage = "bench"
seed = 2026
encoders = {encoders}
tasks = ["{task}"]
seeds = [0, 1]
bootstrap = 40
[linear]
rates = [5e-3]
epochs = 4
patience = 4
[controls]
encoder = "random-vit"
permutations = 5
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = made.Made(tmp_path_factory.mktemp("made"))
    made.oral(folder)
    return folder.finish()


@pytest.fixture
def place(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a bench's own, where runs and results go; its recipe is to be written."""
    monkeypatch.setenv("PATHSERVE_DATA", str(data))
    monkeypatch.setenv("PATHSERVE_RUNS", str(tmp_path / "runs"))
    return tmp_path


def recipe(place: Path, *encoders: str, task: str = "oral") -> Path:
    path = place / "made.toml"
    path.write_text(RECIPE.format(encoders=json.dumps(encoders), task=task))
    return path


def cells(place: Path) -> dict[str, int]:
    """The finished cells by name, and when each was written."""
    return {path.stem: path.stat().st_mtime_ns for path in (place / "runs" / "pathbench" / "cells").glob("*.json")}


def computed(place: Path) -> list[tuple[str, str]]:
    """(model, probe) of every computation that the log tells of."""
    lines = (place / "runs" / "pathbench" / "log.jsonl").read_text().splitlines()
    return [(line["model"], line["probe"]) for line in map(json.loads, lines)]


def test_a_bench_end_to_end_and_an_update_that_adds_an_encoder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = place / "results"
    assert command.main(["run", str(recipe(place, "colour-histogram")), "--out", str(out)]) == 0
    before, first = cells(place), json.loads((out / "pathbench.json").read_text())
    assert len(before) == 6  # two cohorts by three probes
    assert {record["board"] for record in first["records"]} == {"main"}
    assert all(record["test_reads"] == 1 for record in first["records"])
    assert all(control["caught"] for control in first["controls"])
    assert (out / "pathbench.html").stat().st_size > 1000
    text = (out / "pathbench.md").read_text()
    assert "## Negative controls" in text
    for record in published(out / "pathbench.json"):
        predictions = np.load(place / "runs" / "pathbench" / "cells" / str(record.predictions))
        assert predictions["probabilities_RNC"].shape == (len(record.values), record.items, 2)

    _register(place / "registry", "seventh", "random-vit.toml", monkeypatch)
    added = ["gpfm-ssl-small", "seventh"]  # the first of which has no run here
    assert command.main(["update", str(recipe(place, "colour-histogram", *added)), "--out", str(out)]) == 0
    after, second = cells(place), json.loads((out / "pathbench.json").read_text())
    assert {name: after[name] for name in before} == before
    assert len(after) == 12
    assert [pair for pair in computed(place) if pair[0] == "colour-histogram"] == [
        ("colour-histogram", probe) for probe in ("linear", "knn", "retrieval")
    ]
    assert [each["model"] for each in second["not_run"]] == ["gpfm-ssl-small"]
    (change,) = (out / "pathbench-changes").iterdir()
    assert "6 cells added, 0 changed, 0 removed, 6 untouched" in change.read_text()

    # Published cells count where the cells' folder is gone: nothing but the controls is computed again.
    shutil.rmtree(place / "runs" / "pathbench")
    (place / "runs" / "pathbench").mkdir()
    assert command.main(["update", str(recipe(place, "colour-histogram", "seventh")), "--out", str(out)]) == 0
    assert not cells(place)
    assert json.loads((out / "pathbench.json").read_text())["records"] == second["records"]


def _register(folder: Path, name: str, like: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file and one line, in a copy of the registry."""
    shutil.copytree(cards.FOLDER / "cards", folder / "cards")
    shutil.copy(folder / "cards" / like, folder / "cards" / f"{name}.toml")
    lines = (cards.FOLDER / "registry.toml").read_text(encoding="utf-8")
    (folder / "registry.toml").write_text(f'{lines}{name} = "{name}.toml"\n', encoding="utf-8")
    monkeypatch.setattr(cards, "FOLDER", folder)


def test_a_run_that_is_killed_goes_on_where_it_was(place: Path) -> None:
    arguments = [str(recipe(place, "colour-histogram", "random-vit")), "--out", str(place / "results")]
    process = subprocess.Popen(
        [sys.executable, "-m", "training.pathbench", "run", *arguments], stderr=subprocess.DEVNULL, env={**os.environ}
    )
    _wait(lambda: len(cells(place)) >= 2 or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = cells(place)
    assert 2 <= len(finished) < 12
    assert command.main(["run", *arguments]) == 0
    after = cells(place)
    assert len(after) == 12
    assert {name: after[name] for name in finished} == finished


def _wait(done: Callable[[], bool]) -> None:
    limit = time.monotonic() + 300  # for a machine that others use as well
    while not done() and time.monotonic() < limit:
        time.sleep(0.005)


def test_two_runs_at_once_share_the_cells(place: Path) -> None:
    path = recipe(place, "colour-histogram", "random-vit")
    other = subprocess.Popen(
        [sys.executable, "-m", "training.pathbench", "run", str(path), "--out", str(place / "other")],
        stderr=subprocess.DEVNULL,
        env={**os.environ},
    )
    assert command.main(["run", str(path), "--out", str(place / "results")]) == 0
    assert other.wait(300) == 0
    assert sorted(computed(place)) == sorted(
        (model, probe) for model in ("colour-histogram", "random-vit") for probe in ("linear", "knn", "retrieval")
    )
    texts = [(place / name / "pathbench.json").read_text() for name in ("results", "other")]
    assert texts[0] == texts[1]


def test_an_unreadable_image_is_counted_and_named(place: Path, data: Path) -> None:
    (damaged,) = (data / "he_oral" / "images").glob("00_0.jpg")
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:200])
    try:
        found = runner.run(recipe(place, "colour-histogram"), place / "results")
    finally:
        damaged.write_bytes(whole)
    assert sum(record.items for record in found.records if record.probe == "knn") > 0
    assert all("1 unreadable images were skipped: 00_0.jpg" in record.notes for record in found.records)
    assert "00_0.jpg" in (place / "runs" / "pathbench" / "log.jsonl").read_text()


def test_a_task_that_its_data_do_not_fill_is_not_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cards from another folder: one whose set is not here, and one whose cohort is empty."""
    folder = place / "tasks"
    folder.mkdir()
    (folder / "registry.toml").write_text('empty = "empty.toml"\n')
    (folder / "empty.toml").write_text(
        'title = "t"\nkind = "tile"\norgan = "colon"\ndataset = "oral"\ncohorts = ["40x"]\n'
    )
    monkeypatch.setattr(runner, "read_task", lambda name: tasks.read_task(name, folder))
    found = runner.run(recipe(place, "colour-histogram", task="empty"), place / "results")
    assert [(each.task, "has no items" in each.reason) for each in found.not_run] == [("empty", True)]
    assert found.records == ()


def test_a_damaged_cell_is_refused_by_name(place: Path) -> None:
    folder = place / "cells"
    store = Cells(folder)
    store.refuse({"a": 1}, "One class only.")
    assert store.find({"a": 1}) == "One class only."
    assert store.find({"a": 2}) is None
    (folder / "0123.json").write_text("{")
    with pytest.raises(ResultInvalid, match=r"0123\.json cannot be read"):
        read_record(folder / "0123.json")
    (folder / "0123.json").write_text("{}")
    with pytest.raises(ResultInvalid, match="cannot be read"):
        read_record(folder / "0123.json")


def test_the_code_version_minds_code_and_not_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.pathbench import cells as module

    source = tmp_path / "protocol.py"
    monkeypatch.setattr(module, "find_spec", lambda name: type("Spec", (), {"origin": str(source)}))

    def version(text: str) -> str:
        source.write_text(text)
        return code_version("tile")

    plain = version("def f(x):\n    return x + 1\n")
    assert version('"""Words."""\n\n# More.\ndef f(x):\n    """Doc."""\n    return x+1\n') == plain
    assert version("def f(x):\n    return x + 2\n") != plain


def test_an_unknown_subcommand_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["sing"]) == 2
    assert "run|update|rank|check-split|page" in capsys.readouterr().err
    assert command.main(["run", "nowhere.toml"]) == 1
    assert capsys.readouterr().err.strip() == "The recipe nowhere.toml cannot be read. Name an existing recipe file."
