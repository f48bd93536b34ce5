"""Requests as the forms that REST takes: the same validation, field by field."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped]
from pydantic import BaseModel, ValidationError

from gateway.analyses.order_form import Long, OrderBody, PatientBody, Short, Uid
from gateway.domain.order import Order
from gateway.domain.uids import is_analysis_id
from gateway.grpc.errors import InvalidFields
from gateway.operations.errors import NotFound

Form = TypeVar("Form", bound=BaseModel)
Choice = TypeVar("Choice", bound=Enum)

_KEY = re.compile(r"[\x21-\x7e]{1,255}\Z")


class Filters(BaseModel):
    """What lists are filtered by, besides states, priorities and times."""

    protocol: Long | None = None
    accession: Short | None = None
    patient: PatientBody = PatientBody()
    study: Uid | None = None


def order_of(request: Any) -> Order:
    """The order of a request. Raises InvalidFields."""
    return read(OrderBody, values_of(request.order), "order.").domain()


def key_of(request: Any) -> str | None:
    """The request's id, which makes repeating it harmless. Raises InvalidFields."""
    if request.request_id and not _KEY.match(request.request_id):
        raise InvalidFields(("request_id", "must be 1 to 255 printable ASCII characters without spaces"))
    return request.request_id or None


def id_of(request: Any) -> str:
    """The analysis that a request names. Raises NotFound where it names none."""
    found: str = request.id
    if not is_analysis_id(found):
        raise NotFound("There is no analysis with this id.")
    return found


def read(form: type[Form], values: Mapping[str, Any], within: str = "") -> Form:
    """The values as a form; `within`: where in the request they stand. Raises InvalidFields."""
    try:
        return form.model_validate(values)
    except ValidationError as error:
        raise InvalidFields(
            *(
                (within + ".".join(str(part)[:64] for part in each["loc"]), _shortened(each["msg"]))
                for each in error.errors()
            )
        ) from None


def said(message: Any, *names: str) -> dict[str, Any]:
    """Of what a message says only the fields of these names."""
    return {name: value for name, value in values_of(message).items() if name in names}


def values_of(message: Any) -> dict[str, Any]:
    """What a message says, by field name, an enum by the name of its value; what it leaves out is not there."""
    return {field.name: _value(field, value) for field, value in message.ListFields()}


def choice_of(request: Any, field: str, kind: type[Choice], within: str = "") -> Choice | None:
    """The value of an enum field as ours; None where it is unspecified. Raises InvalidFields."""
    name = values_of(request).get(field)
    if name is not None and name not in kind.__members__:
        raise InvalidFields((within + field, f"must be one of {', '.join(kind.__members__)}"))
    return None if name is None else kind[name]


def time_of(request: Any, field: str) -> datetime | None:
    """The time in a field, in UTC; None where there is none. Raises InvalidFields."""
    if not request.HasField(field):
        return None
    try:
        found: datetime = getattr(request, field).ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidFields((field, "must be a time of the years 1 to 9999")) from None
    return found


def _value(field: Any, value: Any) -> Any:
    return [_single(field, each) for each in value] if field.is_repeated else _single(field, value)


def _single(field: Any, value: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return values_of(value)
    if field.type == FieldDescriptor.TYPE_ENUM:
        known = field.enum_type.values_by_number.get(value)
        # PRIORITY_STAT is STAT; a number that has no name stays one, and is refused as such.
        prefix = field.enum_type.values_by_number[0].name.removesuffix("UNSPECIFIED")
        return value if known is None else known.name.removeprefix(prefix)
    return value


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else text[:197] + "..."
