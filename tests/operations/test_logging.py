"""Logs are JSON lines from an allow-list; what other libraries quote never gets in."""

import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from gateway.operations.logging import configure_logging

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Lines]:
    """Configures logging to a folder for one test; gives what was logged."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configure_logging("test", folder=tmp_path)
    yield lambda: [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def test_fields_outside_the_allow_list_are_dropped(lines: Lines) -> None:
    structlog.contextvars.bind_contextvars(analysis_id="a-1", patient_id="Mueller")
    structlog.get_logger("gateway.test").info("hello", patient="Mueller", step="infer")
    [line] = lines()
    assert line.keys() == {"event", "level", "logger", "timestamp", "process", "analysis_id", "step"}
    assert (line["event"], line["process"], line["analysis_id"]) == ("hello", "test", "a-1")


def test_an_exception_is_its_type_and_frames(lines: Lines) -> None:
    try:
        try:
            raise KeyError("Mueller")
        except KeyError as error:
            raise ValueError("Mueller") from error
    except ValueError:
        structlog.get_logger("gateway.test").exception("failed")
    [line] = lines()
    assert [each["type"] for each in line["exception"]] == ["ValueError", "KeyError"]
    assert line["exception"][0]["frames"][-1].startswith("test_logging.py:")
    assert "Mueller" not in json.dumps(line)


def test_messages_of_other_libraries_are_withheld(lines: Lines) -> None:
    logging.getLogger("pydicom").warning("invalid value %s", "Mueller")
    logging.getLogger("highdicom.base").info("reading Mueller")
    logging.getLogger("uvicorn.error").warning("a message of the server")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("Mueller has no spacing", stacklevel=1)
    assert [(line["logger"], line["event"]) for line in lines()] == [
        ("pydicom", "message of a library withheld"),
        ("uvicorn.error", "a message of the server"),
        ("py.warnings", "message of a library withheld"),
    ]


def test_an_uncaught_exception_of_a_process_is_not_swallowed(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from gateway.operations.logging import configure_logging;"
        f"configure_logging('test', folder=Path({str(tmp_path)!r})); 1/0"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
