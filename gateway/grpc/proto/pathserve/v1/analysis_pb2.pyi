# Made by `python -m gateway.grpc.generate`.
# ruff: noqa
# fmt: off
# mypy: ignore-errors
import datetime

from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from gateway.grpc.proto.pathserve.v1 import order_pb2 as _order_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATE_UNSPECIFIED: _ClassVar[State]
    STATE_ACCEPTED: _ClassVar[State]
    STATE_RUNNING: _ClassVar[State]
    STATE_HELD_IDENTITY: _ClassVar[State]
    STATE_COMPLETED: _ClassVar[State]
    STATE_FAILED: _ClassVar[State]
    STATE_CANCELLED: _ClassVar[State]
STATE_UNSPECIFIED: State
STATE_ACCEPTED: State
STATE_RUNNING: State
STATE_HELD_IDENTITY: State
STATE_COMPLETED: State
STATE_FAILED: State
STATE_CANCELLED: State

class Progress(_message.Message):
    __slots__ = ("step", "done", "total", "unit")
    STEP_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    step: str
    done: int
    total: int
    unit: str
    def __init__(self, step: _Optional[str] = ..., done: _Optional[int] = ..., total: _Optional[int] = ..., unit: _Optional[str] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("reason", "detail")
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    reason: str
    detail: str
    def __init__(self, reason: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class Difference(_message.Message):
    __slots__ = ("attribute", "series", "problem")
    ATTRIBUTE_FIELD_NUMBER: _ClassVar[int]
    SERIES_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    attribute: str
    series: str
    problem: str
    def __init__(self, attribute: _Optional[str] = ..., series: _Optional[str] = ..., problem: _Optional[str] = ...) -> None: ...

class PinnedModel(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class Analysis(_message.Message):
    __slots__ = ("id", "state", "protocol", "priority", "accession", "created", "updated", "deadline", "cancel_requested", "progress", "failure", "held", "etag", "order", "models", "run")
    ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    ACCESSION_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    UPDATED_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    CANCEL_REQUESTED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    id: str
    state: State
    protocol: str
    priority: _order_pb2.Priority
    accession: str
    created: _timestamp_pb2.Timestamp
    updated: _timestamp_pb2.Timestamp
    deadline: _timestamp_pb2.Timestamp
    cancel_requested: bool
    progress: Progress
    failure: Failure
    held: _containers.RepeatedCompositeFieldContainer[Difference]
    etag: str
    order: _order_pb2.Order
    models: _containers.RepeatedCompositeFieldContainer[PinnedModel]
    run: int
    def __init__(self, id: _Optional[str] = ..., state: _Optional[_Union[State, str]] = ..., protocol: _Optional[str] = ..., priority: _Optional[_Union[_order_pb2.Priority, str]] = ..., accession: _Optional[str] = ..., created: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., updated: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., deadline: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., cancel_requested: _Optional[bool] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., held: _Optional[_Iterable[_Union[Difference, _Mapping]]] = ..., etag: _Optional[str] = ..., order: _Optional[_Union[_order_pb2.Order, _Mapping]] = ..., models: _Optional[_Iterable[_Union[PinnedModel, _Mapping]]] = ..., run: _Optional[int] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("seq", "time", "kind", "data")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    seq: int
    time: _timestamp_pb2.Timestamp
    kind: str
    data: _struct_pb2.Struct
    def __init__(self, seq: _Optional[int] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., kind: _Optional[str] = ..., data: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...
