"""The Makefile's promises that can be read off a dry run."""

import os
import shutil
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = (".venv", ".venv-triton", ".venv-training", ".venv-tensorrt", ".venv-import")
SETUPS = ("setup", "setup-training", "setup-tensorrt", "setup-import")


def checkout(folder: Path) -> Path:
    constraints = [f"constraints{name}.txt" for name in ("", "-triton", "-training", "-tensorrt", "-import")]
    for file in ("Makefile", "pyproject.toml", *constraints):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, folder / file)
    return folder


def stamp(folder: Path, home: Path) -> None:
    for environment in ENVIRONMENTS:
        (folder / environment).mkdir()
        (folder / environment / ".ready").write_text(f"{home}\n")


def dry_run(folder: Path, target: str) -> str:
    done = subprocess.run(["make", "-n", target], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def test_a_dry_run_of_the_tests_runs_nothing(tmp_path: Path) -> None:
    output = dry_run(checkout(tmp_path), "test")
    assert output.index("dpkg-query") < output.index("-m venv --clear .venv") < output.index("-m pytest")
    assert not (tmp_path / ".venv").exists()


def test_environments_that_are_ready_are_left_alone(tmp_path: Path) -> None:
    stamp(checkout(tmp_path), tmp_path)
    for target in SETUPS:
        assert f"Nothing to be done for '{target}'" in dry_run(tmp_path, target)


def test_a_changed_constraint_is_installed_into_the_same_environment(tmp_path: Path) -> None:
    stamp(checkout(tmp_path), tmp_path)
    later = time.time() + 60
    os.utime(tmp_path / "constraints-training.txt", (later, later))
    output = dry_run(tmp_path, "setup-training")
    assert "-m pip install" in output
    assert "--clear" not in output


def test_in_a_moved_checkout_the_environments_are_made_anew(tmp_path: Path) -> None:
    stamp(checkout(tmp_path / "here"), tmp_path / "there")
    output = "".join(dry_run(tmp_path / "here", target) for target in SETUPS)
    assert all(f"-m venv --clear {environment}\n" in output for environment in ENVIRONMENTS)
