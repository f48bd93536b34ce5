"""docs/security.md: every threat has its mitigation, and a test that is there."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "security.md"
_ROW = re.compile(r"^\| ([A-Z]{1,2}\d+) \| ([STRIDE]+) \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def rows() -> list[tuple[str, str, str, str, str]]:
    """Number, kinds (STRIDE), threat, mitigation, tests."""
    return _ROW.findall(PAGE.read_text(encoding="utf-8"))


@cache
def names_in(path: str) -> frozenset[str]:
    """The tests of a module, by their names."""
    module = ast.parse((ROOT / path).read_text(encoding="utf-8")) if (ROOT / path).is_file() else ast.Module([], [])
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in module.body if isinstance(node, kinds))


def test_every_threat_is_shown_by_a_test_that_is_there() -> None:
    assert len(rows()) > 50
    without = [number for number, _, _, _, tests in rows() if not _TEST.findall(tests)]
    assert without == []
    gone = [
        (number, f"{path}::{test}")
        for number, _, _, _, tests in rows()
        for path, test in _TEST.findall(tests)
        if test not in names_in(path)
    ]
    assert gone == []


def test_every_line_of_a_table_is_read() -> None:
    """A threat that is written otherwise would be passed over."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if re.match(r"\| [A-Z]{1,2}\d", line)]
    assert len(lines) == len(rows())
    numbers = [number for number, *_ in rows()]
    assert len(set(numbers)) == len(numbers)


def test_each_door_is_looked_at_from_every_side() -> None:
    """Every letter of STRIDE is somewhere, and each section says what stays."""
    assert set("".join(kinds for _, kinds, *_ in rows())) == set("STRIDE")
    assert "## What stays" in PAGE.read_text(encoding="utf-8")
