"""The page stands alone, escapes every name, and ranks in a real browser as Python does."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.pathbench.boards import record, records
from training.pathbench import __main__ as command
from training.pathbench.leaderboard import leaderboard
from training.pathbench.page import page
from training.pathbench.records import Record

pytestmark = pytest.mark.training

HOSTILE = "<img src=x onerror=alert(1)>&\"'</script><!--\u2028"


class Parsed(HTMLParser):
    """Start tags with their attributes, and the text of each script, style and table cell."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": [], "th": [], "td": [], "p": []}
        self._open: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in self.texts:
            self._open = tag
            self.texts[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._open:
            self._open = None

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open][-1] += data


def results(cells: list[Record]) -> dict[str, Any]:
    return {
        **leaderboard(cells),
        "not_run": [{"model": HOSTILE, "task": "all", "reason": HOSTILE}],
        "controls": [{"name": HOSTILE, "task": "oral", "observed": "0.5", "expected": "0.5", "caught": True}],
    }


@pytest.fixture(scope="module")
def hostile_cells() -> list[Record]:
    named = [replace(cell, model=HOSTILE) if cell.model == "middle" else cell for cell in records()]
    return [replace(cell, notes=(HOSTILE,), reasons=(HOSTILE,)) for cell in named]


def test_the_page_needs_nothing_else(hostile_cells: list[Record]) -> None:
    text = page(results(hostile_cells))
    parsed = Parsed(text)
    assert not re.search(r"https?:|@import|url\(|\bimport\s*\(|fetch\(|XMLHttpRequest", text)
    assert not [tag for tag, attributes in parsed.tags if {"src", "href"} & attributes.keys()]
    assert not [tag for tag, attributes in parsed.tags if any(name.startswith("on") for name in attributes)]


def test_the_policy_admits_the_pages_own_style_and_script_only(hostile_cells: list[Record]) -> None:
    parsed = Parsed(page(results(hostile_cells)))
    policy = next(str(a["content"]) for _, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy")
    for kind, text in (("script-src", parsed.texts["script"][-1]), ("style-src", parsed.texts["style"][0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_names_are_text_whatever_they_hold(hostile_cells: list[Record]) -> None:
    parsed = Parsed(page(results(hostile_cells)))
    assert [tag for tag, _ in parsed.tags].count("script") == 2
    assert "img" not in [tag for tag, _ in parsed.tags]
    assert json.loads(parsed.texts["script"][0]) == json.loads(json.dumps(leaderboard(hostile_cells)["boards"]))
    assert HOSTILE in parsed.texts["th"]


@pytest.mark.parametrize("cells", [[], [record("alone", "t", 0.7)]], ids=["empty", "one model"])
def test_small_boards_have_a_page(cells: list[Record]) -> None:
    parsed = Parsed(page(results(cells)))
    assert ("alone" in parsed.texts["th"]) == bool(cells)


def test_the_command_writes_the_page_or_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "pathbench.json", tmp_path / "pathbench.html"
    assert command.main(["page", str(source), "--out", str(out)]) == 1
    assert "holds no boards" in capsys.readouterr().err
    source.write_text(json.dumps(results(records())))
    assert command.main(["page", str(source), "--out", str(out)]) == 0
    assert out.read_text().startswith("<!doctype html>")


CHROMIUM = shutil.which("chromium")


def ranking_in_browser(path: Path, view: str) -> tuple[dict[str, list[str]], Parsed]:
    """Model to the cells of its line in the ranking, as a real browser shows them."""
    assert CHROMIUM is not None
    settings = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={path.parent / 'profile'}")
    command_line = [CHROMIUM, *settings, "--virtual-time-budget=5000", "--dump-dom", f"{path.as_uri()}#{view}"]
    shown = subprocess.run(command_line, capture_output=True, timeout=120, check=True).stdout.decode()
    table = Parsed(re.search(r'<table id="ranking".*?</table>', shown, re.DOTALL)[0])  # type: ignore[index]
    heads = [text for text in table.texts["th"] if text][-len(table.texts["td"]) :]
    columns = len(table.tags and [1 for tag, _ in table.tags if tag == "button"])
    models = heads[columns:]
    width = columns - 1
    return {m: table.texts["td"][k * width : (k + 1) * width] for k, m in enumerate(models)}, Parsed(shown)


@pytest.mark.skipif(CHROMIUM is None, reason="oracle not installed: chromium")
def test_a_browser_ranks_as_python_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        ("breast", "a", "in"),
        ("breast", "a", "out"),
        ("colon", "b", "in"),
        ("colon", "c", "in"),
        ("skin", "d", "in"),
    ]
    names = ["strong", HOSTILE.replace("\u2028", ""), "weak", "fourth"]
    cells = [
        record(name, task, round(rng.random(), 1), organ=organ, cohort=cohort, probe=probe)
        for organ, task, cohort in rows
        for probe in ("linear", "knn")
        for name in names
    ]
    cells.append(record("partial", "a", 0.9, cohort="in"))
    path = tmp_path / "page.html"
    path.write_text(page(results(cells)), encoding="utf-8")
    board = leaderboard(cells)["boards"]["main"]
    found = board["ranking"]
    shown, whole = ranking_in_browser(path, "")
    assert list(shown) == list(found["mean_rank"])
    for model, (mean, interval, first, task, organ, *_) in shown.items():
        assert first == str(found["n_first"][model])
        figures = [float(text) for text in (mean, *interval.strip("[]").split(", "), task, organ)]
        balanced = [found[kind]["mean_rank"][model] for kind in ("task_balanced", "organ_balanced")]
        expected = [found["mean_rank"][model], *found["mean_rank_95"][model], *balanced]
        assert figures == pytest.approx(expected, abs=0.0051)  # two decimals are shown
    assert any(text.startswith(found["statement"]) for text in whole.texts["p"])
    assert any("for want of results" in text and "partial" in text for text in whole.texts["p"])
    assert [tag for tag, _ in whole.tags].count("article") == len(board["rows"])
    shown, part = ranking_in_browser(path, "organ=colon&without=weak&without=partial")
    kept = [cell for cell in cells if cell.organ == "colon" and cell.model in ("strong", names[1], "fourth")]
    expected = leaderboard(kept)["boards"]["main"]["ranking"]["mean_rank"]
    assert {model: float(line[0]) for model, line in shown.items()} == pytest.approx(expected, abs=0.0051)
    assert [tag for tag, _ in part.tags].count("article") == 4
    assert "img" not in [tag for tag, _ in part.tags]
