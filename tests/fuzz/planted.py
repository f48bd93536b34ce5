"""Bugs planted on purpose: the control of the harness, which must catch each of them."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from gateway.operations.errors import ArchiveError, InvalidSetting, PathserveError, SlideError
from tests.fuzz.judge import Task


def _leaks(case: Path) -> None:
    held = []
    while True:
        held.append(bytearray(os.urandom(1 << 20)) * 32)


def _hangs(case: Path) -> None:
    time.sleep(60)


def _spins(case: Path) -> None:
    while True:
        pass


def _raises(case: Path) -> None:
    raise ValueError("not a typed error")


def _hides_a_mistake(case: Path) -> None:
    try:
        assert not case.exists()
    except AssertionError as error:
        raise SlideError("The slide is damaged.") from error


def _exits(case: Path) -> None:
    os._exit(3)


def _crashes(case: Path) -> None:
    os.abort()


def _writes_beside(case: Path) -> None:
    (case / "in" / "left-behind").write_text("x")


def _writes_above(case: Path) -> None:
    (case / "store" / ".." / ".." / f"escaped-{case.name}").write_text("x")


def _writes_far_away(case: Path) -> None:
    folder = Path(f"/tmp/pathserve-fuzz-{os.getpid()}")
    folder.mkdir()
    folder.rmdir()  # even what is gone again was written


def _removes(case: Path) -> None:
    for file in (case / "in").iterdir():
        file.unlink()


def _starts_a_program(case: Path) -> None:
    subprocess.run(["true"], check=True)


def _names_the_path(case: Path) -> None:
    raise SlideError(f"{case}/in/level-0.dcm is damaged.")


def _is_of_another_family(case: Path) -> None:
    raise InvalidSetting("The slide is set wrongly.")


def _is_of_no_family(case: Path) -> None:
    raise PathserveError("Something is wrong.")


PLANTED: dict[str, tuple[str, Callable[[Path], None]]] = {
    "leaks memory": ("memory", _leaks),
    "hangs": ("timeout", _hangs),
    "spins": ("timeout", _spins),
    "raises ValueError": ("untyped", _raises),
    "hides a mistake behind a typed error": ("untyped", _hides_a_mistake),
    "ends the process": ("crash", _exits),
    "crashes": ("crash", _crashes),
    "writes beside the slide": ("stray", _writes_beside),
    "writes above the store": ("stray", _writes_above),
    "writes somewhere else": ("stray", _writes_far_away),
    "removes the slide": ("stray", _removes),
    "starts a program": ("stray", _starts_a_program),
    "names a path in its error": ("leaky-detail", _names_the_path),
    "raises an error of another family": ("wrong-family", _is_of_another_family),
    "raises the root of the errors": ("wrong-family", _is_of_no_family),
}
"""What the bug does -> the verdict that it must get, and the bug."""


def planted(name: str) -> Task:
    """A target with one bug."""
    return Task(PLANTED[name][1], (ArchiveError, SlideError), ("store",))
