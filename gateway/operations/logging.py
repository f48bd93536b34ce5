"""Logs: one JSON object a line, on stderr and in the state folder, from an allow-list of fields (no patient data)."""

import logging
import logging.handlers
import sys
import traceback
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import structlog

_FIELDS = frozenset(
    {
        "event", "level", "logger", "timestamp", "process", "exception",
        "analysis_id", "step", "state", "attempt", "reason", "detail", "seconds", "protocol",
        "route", "method", "status", "name", "model", "pid", "exit_status", "port", "count", "trouble",
    }
)  # fmt: skip
# Messages of other libraries may quote what they read (a header's value, a query): only these are known not to.
_TRUSTED = ("gateway", "uvicorn", "dbos", "alembic")
_FILE_BYTES, _FILES = 10_000_000, 5


def configure_logging(process: str, level: str = "INFO", folder: Path | None = None, *, terminal: bool = True) -> None:
    """Send every log of this process through the allow-list, to FOLDER/<process>.jsonl (rotated) and to stderr.

    `terminal` False keeps stderr free for the sentence that a command ends with.
    """

    def name_process(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["process"] = process
        return event

    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        name_process,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*shared, _withhold_untrusted],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _frames_only,
            _allowed_only,
            structlog.processors.JSONRenderer(),
        ],
    )
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr) if terminal else logging.NullHandler()]
    if folder is not None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handlers.append(
            logging.handlers.RotatingFileHandler(
                folder / f"{process}.jsonl", maxBytes=_FILE_BYTES, backupCount=_FILES, delay=True, encoding="utf-8"
            )
        )
    root = logging.getLogger()
    root.handlers[:] = handlers
    for handler in handlers:
        handler.setFormatter(formatter)
        handler.addFilter(_worth_a_line)
    root.setLevel(level)
    logging.captureWarnings(True)
    # Libraries that tell much at INFO and nothing that an operator needs.
    for name in ("alembic", "httpx", "httpcore", "dbos", "pydicom", "asyncio", "uvicorn"):
        logging.getLogger(name).setLevel(logging.WARNING if level != "DEBUG" else logging.INFO)


def _worth_a_line(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or _trusted(record.name)


def _trusted(logger: str) -> bool:
    return logger.split(".")[0] in _TRUSTED


def _withhold_untrusted(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if not _trusted(str(event.get("logger", ""))):
        event["event"] = "message of a library withheld"
    return event


def _frames_only(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The exception as its type and its frames: its message may quote patient data."""
    found = event.pop("exc_info", None)
    error = sys.exc_info()[1] if found is True else found[1] if isinstance(found, tuple) else found
    if isinstance(error, BaseException):
        chain: list[dict[str, Any]] = []
        seen: BaseException | None = error
        while seen is not None and len(chain) < 5:
            frames = [
                f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
                for frame in traceback.extract_tb(seen.__traceback__)
            ]
            chain.append({"type": type(seen).__name__, "frames": frames[-30:]})
            seen = seen.__cause__ or seen.__context__
        event["exception"] = chain
    return event


def _allowed_only(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {key: value for key, value in event.items() if key in _FIELDS}
