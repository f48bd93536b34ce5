"""`pathserve` commands on a state folder of a test, run in its process."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import structlog

from gateway import cli
from gateway.operations.settings import settings


def run_command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit status of `pathserve …`, and what was said; an error is one sentence."""
    capsys.readouterr()
    status = cli.main(arguments)
    for handler in logging.getLogger().handlers:
        handler.close()
    said = capsys.readouterr()
    if status:
        [line] = said.err.splitlines()
        assert line.startswith("pathserve: ")
        return status, line
    assert said.err == ""
    return status, said.out


@contextmanager
def commands_on(state: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands meet this state folder and this model repository, and leave the logging of the tests as it was."""
    monkeypatch.setenv("PATHSERVE_STATE", str(state))
    monkeypatch.setenv("PATHSERVE_MODEL_REPOSITORY", str(models))
    settings.cache_clear()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()
    settings.cache_clear()
