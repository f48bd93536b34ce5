# Made by `python -m gateway.grpc.generate`.
# ruff: noqa
# fmt: off
# mypy: ignore-errors
import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from gateway.grpc.proto.pathserve.v1 import order_pb2 as _order_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReportState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REPORT_STATE_UNSPECIFIED: _ClassVar[ReportState]
    REPORT_STATE_PRELIMINARY: _ClassVar[ReportState]
    REPORT_STATE_FINAL: _ClassVar[ReportState]
    REPORT_STATE_AMENDED: _ClassVar[ReportState]

class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERDICT_UNSPECIFIED: _ClassVar[Verdict]
    VERDICT_AGREE: _ClassVar[Verdict]
    VERDICT_AMEND: _ClassVar[Verdict]
    VERDICT_REJECT: _ClassVar[Verdict]

class DeliveryState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DELIVERY_STATE_UNSPECIFIED: _ClassVar[DeliveryState]
    DELIVERY_STATE_PENDING: _ClassVar[DeliveryState]
    DELIVERY_STATE_DELIVERED: _ClassVar[DeliveryState]
    DELIVERY_STATE_HELD: _ClassVar[DeliveryState]
    DELIVERY_STATE_DEAD: _ClassVar[DeliveryState]
REPORT_STATE_UNSPECIFIED: ReportState
REPORT_STATE_PRELIMINARY: ReportState
REPORT_STATE_FINAL: ReportState
REPORT_STATE_AMENDED: ReportState
VERDICT_UNSPECIFIED: Verdict
VERDICT_AGREE: Verdict
VERDICT_AMEND: Verdict
VERDICT_REJECT: Verdict
DELIVERY_STATE_UNSPECIFIED: DeliveryState
DELIVERY_STATE_PENDING: DeliveryState
DELIVERY_STATE_DELIVERED: DeliveryState
DELIVERY_STATE_HELD: DeliveryState
DELIVERY_STATE_DEAD: DeliveryState

class FileInfo(_message.Message):
    __slots__ = ("name", "media_type", "bytes", "etag")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    name: str
    media_type: str
    bytes: int
    etag: str
    def __init__(self, name: _Optional[str] = ..., media_type: _Optional[str] = ..., bytes: _Optional[int] = ..., etag: _Optional[str] = ...) -> None: ...

class FilePart(_message.Message):
    __slots__ = ("info", "data")
    INFO_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    info: FileInfo
    data: bytes
    def __init__(self, info: _Optional[_Union[FileInfo, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Revision(_message.Message):
    __slots__ = ("number", "state", "documents", "by", "by_name", "reason", "made")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    BY_NAME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MADE_FIELD_NUMBER: _ClassVar[int]
    number: int
    state: ReportState
    documents: _containers.RepeatedScalarFieldContainer[str]
    by: str
    by_name: str
    reason: str
    made: _timestamp_pb2.Timestamp
    def __init__(self, number: _Optional[int] = ..., state: _Optional[_Union[ReportState, str]] = ..., documents: _Optional[_Iterable[str]] = ..., by: _Optional[str] = ..., by_name: _Optional[str] = ..., reason: _Optional[str] = ..., made: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Feedback(_message.Message):
    __slots__ = ("verdict", "finding", "series", "comment", "revision", "by", "time", "number")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    FINDING_FIELD_NUMBER: _ClassVar[int]
    SERIES_FIELD_NUMBER: _ClassVar[int]
    COMMENT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    verdict: Verdict
    finding: _order_pb2.Code
    series: str
    comment: str
    revision: int
    by: str
    time: _timestamp_pb2.Timestamp
    number: int
    def __init__(self, verdict: _Optional[_Union[Verdict, str]] = ..., finding: _Optional[_Union[_order_pb2.Code, _Mapping]] = ..., series: _Optional[str] = ..., comment: _Optional[str] = ..., revision: _Optional[int] = ..., by: _Optional[str] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., number: _Optional[int] = ...) -> None: ...

class Delivery(_message.Message):
    __slots__ = ("id", "channel", "target", "event", "state", "revision", "tries", "reason", "detail", "created", "next", "settled", "done")
    ID_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    TRIES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    id: str
    channel: str
    target: str
    event: str
    state: DeliveryState
    revision: int
    tries: int
    reason: str
    detail: str
    created: _timestamp_pb2.Timestamp
    next: _timestamp_pb2.Timestamp
    settled: _timestamp_pb2.Timestamp
    done: int
    def __init__(self, id: _Optional[str] = ..., channel: _Optional[str] = ..., target: _Optional[str] = ..., event: _Optional[str] = ..., state: _Optional[_Union[DeliveryState, str]] = ..., revision: _Optional[int] = ..., tries: _Optional[int] = ..., reason: _Optional[str] = ..., detail: _Optional[str] = ..., created: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., next: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., settled: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., done: _Optional[int] = ...) -> None: ...
