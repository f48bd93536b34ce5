"""Frozen domain types to JSON-ready values and back, for the ledger, durable steps and the report."""

import json
from typing import Any, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")


_adapters: dict[Any, TypeAdapter[Any]] = {}


def adapter(kind: Any) -> TypeAdapter[Any]:
    """The pydantic adapter of a domain type, made once."""
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def dump(value: Any) -> Any:
    """A domain value as JSON-ready Python values."""
    return adapter(type(value)).dump_python(value, mode="json")


def dumps(value: Any) -> str:
    """A domain value as canonical JSON text (sorted keys), fit for hashing."""
    return json.dumps(dump(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def load(kind: type[T], data: Any) -> T:
    """A domain value from JSON-ready values. Raises pydantic.ValidationError."""
    result: T = adapter(kind).validate_python(data)
    return result


def loads(kind: type[T], text: str | bytes) -> T:
    """A domain value from JSON text. Raises pydantic.ValidationError."""
    result: T = adapter(kind).validate_json(text)
    return result
