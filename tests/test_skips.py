"""The plugin of CI's skips, and the settings of pytest that it stands beside, each in a pytest of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

MARKED = """
import pytest

@pytest.mark.skip(reason="{reason}")
def test_it():
    pass
"""
INSIDE = """
import pytest

def test_it():
    pytest.skip("{reason}")
"""
MODULE = """
import pytest

pytest.skip("{reason}", allow_module_level=True)
"""
KINDS = {"marked": MARKED, "inside": INSIDE, "module": MODULE}
PASSING = "def test_that_passes():\n    pass\n"


def outcome(folder: Path, modules: dict[str, str], *, ci: bool) -> tuple[int, list[str]]:
    """The exit status and the output of pytest, with our settings and plugin, on modules and one that passes."""
    for name, text in {**modules, "other": PASSING}.items():
        (folder / f"test_{name}.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-p", "tests.skips", "-p", "no:cacheprovider", "-c", "pyproject.toml"]
    done = subprocess.run(
        [*command, f"--rootdir={ROOT}", str(folder)],
        cwd=ROOT,
        env={**os.environ, "CI": "true" if ci else ""},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout.splitlines()


def test_a_strange_skip_fails_ci_by_name(tmp_path: Path) -> None:
    status, lines = outcome(tmp_path, {name: text.format(reason=name) for name, text in KINDS.items()}, ci=True)
    strangers = sorted(line.rsplit(": ", 1)[1] for line in lines if line.startswith("skip that is not on the allow-"))
    assert (status, strangers) == (1, sorted(KINDS))


def test_a_skip_on_the_list_passes_ci(tmp_path: Path) -> None:
    reason = "data set not present: slides"
    status, lines = outcome(tmp_path, {name: text.format(reason=reason) for name, text in KINDS.items()}, ci=True)
    assert (status, lines[-1].startswith("==")) == (0, True)


def test_outside_ci_a_strange_skip_passes_and_a_warning_does_not(tmp_path: Path) -> None:
    strange = INSIDE.format(reason="not today")
    assert outcome(tmp_path, {"one": strange}, ci=False)[0] == 0
    status, lines = outcome(
        tmp_path, {"two": "import warnings\n\ndef test_it():\n    warnings.warn('old')\n"}, ci=False
    )
    assert status == 1
    assert any(line.endswith("UserWarning: old") for line in lines)
