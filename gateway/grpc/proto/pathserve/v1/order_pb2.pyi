# Made by `python -m gateway.grpc.generate`.
# ruff: noqa
# fmt: off
# mypy: ignore-errors
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_STAT: _ClassVar[Priority]
    PRIORITY_URGENT: _ClassVar[Priority]
    PRIORITY_ROUTINE: _ClassVar[Priority]
PRIORITY_UNSPECIFIED: Priority
PRIORITY_STAT: Priority
PRIORITY_URGENT: Priority
PRIORITY_ROUTINE: Priority

class Code(_message.Message):
    __slots__ = ("code", "scheme", "display")
    CODE_FIELD_NUMBER: _ClassVar[int]
    SCHEME_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_FIELD_NUMBER: _ClassVar[int]
    code: str
    scheme: str
    display: str
    def __init__(self, code: _Optional[str] = ..., scheme: _Optional[str] = ..., display: _Optional[str] = ...) -> None: ...

class Patient(_message.Message):
    __slots__ = ("id", "issuer")
    ID_FIELD_NUMBER: _ClassVar[int]
    ISSUER_FIELD_NUMBER: _ClassVar[int]
    id: str
    issuer: str
    def __init__(self, id: _Optional[str] = ..., issuer: _Optional[str] = ...) -> None: ...

class Slide(_message.Message):
    __slots__ = ("study", "series")
    STUDY_FIELD_NUMBER: _ClassVar[int]
    SERIES_FIELD_NUMBER: _ClassVar[int]
    study: str
    series: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, study: _Optional[str] = ..., series: _Optional[_Iterable[str]] = ...) -> None: ...

class Specimen(_message.Message):
    __slots__ = ("container", "type", "site", "stain", "slides")
    CONTAINER_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    STAIN_FIELD_NUMBER: _ClassVar[int]
    SLIDES_FIELD_NUMBER: _ClassVar[int]
    container: str
    type: Code
    site: Code
    stain: str
    slides: _containers.RepeatedCompositeFieldContainer[Slide]
    def __init__(self, container: _Optional[str] = ..., type: _Optional[_Union[Code, _Mapping]] = ..., site: _Optional[_Union[Code, _Mapping]] = ..., stain: _Optional[str] = ..., slides: _Optional[_Iterable[_Union[Slide, _Mapping]]] = ...) -> None: ...

class Point(_message.Message):
    __slots__ = ("x_um", "y_um")
    X_UM_FIELD_NUMBER: _ClassVar[int]
    Y_UM_FIELD_NUMBER: _ClassVar[int]
    x_um: float
    y_um: float
    def __init__(self, x_um: _Optional[float] = ..., y_um: _Optional[float] = ...) -> None: ...

class Region(_message.Message):
    __slots__ = ("x_um", "y_um", "width_um", "height_um", "polygon_um")
    X_UM_FIELD_NUMBER: _ClassVar[int]
    Y_UM_FIELD_NUMBER: _ClassVar[int]
    WIDTH_UM_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_UM_FIELD_NUMBER: _ClassVar[int]
    POLYGON_UM_FIELD_NUMBER: _ClassVar[int]
    x_um: float
    y_um: float
    width_um: float
    height_um: float
    polygon_um: _containers.RepeatedCompositeFieldContainer[Point]
    def __init__(self, x_um: _Optional[float] = ..., y_um: _Optional[float] = ..., width_um: _Optional[float] = ..., height_um: _Optional[float] = ..., polygon_um: _Optional[_Iterable[_Union[Point, _Mapping]]] = ...) -> None: ...

class Order(_message.Message):
    __slots__ = ("protocol", "priority", "accession", "patient", "specimens", "prompts", "region")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    ACCESSION_FIELD_NUMBER: _ClassVar[int]
    PATIENT_FIELD_NUMBER: _ClassVar[int]
    SPECIMENS_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    protocol: str
    priority: Priority
    accession: str
    patient: Patient
    specimens: _containers.RepeatedCompositeFieldContainer[Specimen]
    prompts: _containers.RepeatedScalarFieldContainer[str]
    region: Region
    def __init__(self, protocol: _Optional[str] = ..., priority: _Optional[_Union[Priority, str]] = ..., accession: _Optional[str] = ..., patient: _Optional[_Union[Patient, _Mapping]] = ..., specimens: _Optional[_Iterable[_Union[Specimen, _Mapping]]] = ..., prompts: _Optional[_Iterable[str]] = ..., region: _Optional[_Union[Region, _Mapping]] = ...) -> None: ...
