"""What exactly is written and hashed of a record, so that both databases give back what went in."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

FORMAT = "pathserve-audit-1"
"""Goes into every hash. Another way of hashing gets another name, so that no record can be read in two ways."""
GENESIS = "0" * 64
"""What the first record is chained to."""

COLUMNS = (
    *("seq", "time", "tenant", "type", "subtype", "action", "outcome", "actor", "actor_kind", "address"),
    *("entity_kind", "entity", "detail", "previous"),
)
"""All columns of the table but `hash`, in the order in which they are hashed."""

MOST_DETAIL = 4096
_MOST_TEXT = 512
_MOST_ITEMS = 64
_MOST_DEPTH = 4
# PostgreSQL takes no NUL, no encoding takes a lone surrogate, XML 1.0 takes no control character, and a line of an
# export is one record.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")


class CanonicalJson(TypeDecorator[dict[str, Any]]):
    """A JSON object, kept as the canonical text that is hashed: a JSON column would give back another text."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: dict[str, Any] | None, dialect: Dialect) -> str | None:
        return None if value is None else canonical(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> dict[str, Any] | None:
        if value is None:
            return None
        found: dict[str, Any] = json.loads(value)
        return found


def canonical(value: Any) -> str:
    """JSON text with sorted keys and nothing that could be written in two ways."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def digest_of(row: Mapping[str, Any]) -> str:
    """SHA-256 over every column but `hash`; `row["time"]` is aware, `row["detail"]` the text in the database."""
    values = [row[name] for name in COLUMNS]
    values[1] = row["time"].astimezone(UTC).isoformat(timespec="microseconds")
    return hashlib.sha256(canonical([FORMAT, *values]).encode()).hexdigest()


def now() -> datetime:
    """The time of a record: both databases keep microseconds."""
    return datetime.now(UTC)


def fit_text(text: str, most: int = _MOST_TEXT) -> str:
    """A text that every database and every export takes; what is cut off is shown by `…`."""
    fit = _UNFIT.sub("\ufffd", text[: most + 1])
    return fit if len(fit) <= most else fit[: most - 1] + "…"


def fit_detail(detail: Mapping[str, Any]) -> dict[str, Any]:
    """The details, each fit to be written; only their names where they are too large together."""
    fit: dict[str, Any] = _fit(dict(detail), _MOST_DEPTH)
    if len(canonical(fit)) <= MOST_DETAIL:
        return fit
    return {"too_large": [name[:64] for name in sorted(fit)][:32]}


def _fit(value: Any, depth: int) -> Any:
    match value:
        case None | bool():
            return value
        case str():
            return fit_text(str(value))
        case int():
            # As an integer of 64 bits, which every reader of JSON takes.
            return int(value) if -(2**63) <= value < 2**63 else fit_text(str(value))
        case float():
            return float(value) if math.isfinite(value) else str(value)
        case Mapping() if depth > 0:
            return {fit_text(str(name), 64): _fit(item, depth - 1) for name, item in list(value.items())[:_MOST_ITEMS]}
        case list() | tuple() | set() | frozenset() if depth > 0:
            items = sorted(value) if isinstance(value, (set, frozenset)) else value
            return [_fit(item, depth - 1) for item in list(items)[:_MOST_ITEMS]]
        case _:
            return fit_text(str(value))
