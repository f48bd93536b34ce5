# Made by `python -m gateway.grpc.generate`.
# ruff: noqa
# fmt: off
# mypy: ignore-errors
from gateway.grpc.proto.pathserve.v1 import analysis_pb2 as _analysis_pb2
from gateway.grpc.proto.pathserve.v1 import order_pb2 as _order_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SegmentRequest(_message.Message):
    __slots__ = ("study", "series", "region", "prompts", "patient", "accession", "container")
    STUDY_FIELD_NUMBER: _ClassVar[int]
    SERIES_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    PATIENT_FIELD_NUMBER: _ClassVar[int]
    ACCESSION_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_FIELD_NUMBER: _ClassVar[int]
    study: str
    series: str
    region: _order_pb2.Region
    prompts: _containers.RepeatedScalarFieldContainer[str]
    patient: _order_pb2.Patient
    accession: str
    container: str
    def __init__(self, study: _Optional[str] = ..., series: _Optional[str] = ..., region: _Optional[_Union[_order_pb2.Region, _Mapping]] = ..., prompts: _Optional[_Iterable[str]] = ..., patient: _Optional[_Union[_order_pb2.Patient, _Mapping]] = ..., accession: _Optional[str] = ..., container: _Optional[str] = ...) -> None: ...

class Finding(_message.Message):
    __slots__ = ("kind", "code", "text")
    KIND_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    kind: str
    code: _order_pb2.Code
    text: str
    def __init__(self, kind: _Optional[str] = ..., code: _Optional[_Union[_order_pb2.Code, _Mapping]] = ..., text: _Optional[str] = ...) -> None: ...

class Ring(_message.Message):
    __slots__ = ("xy_um",)
    XY_UM_FIELD_NUMBER: _ClassVar[int]
    xy_um: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, xy_um: _Optional[_Iterable[float]] = ...) -> None: ...

class Polygon(_message.Message):
    __slots__ = ("rings",)
    RINGS_FIELD_NUMBER: _ClassVar[int]
    rings: _containers.RepeatedCompositeFieldContainer[Ring]
    def __init__(self, rings: _Optional[_Iterable[_Union[Ring, _Mapping]]] = ...) -> None: ...

class Mask(_message.Message):
    __slots__ = ("prompt", "triple", "category", "code", "supported", "present", "presence", "mpp", "x_um", "y_um", "width_px", "height_px", "area_um2", "area_fraction", "png", "polygons", "tolerance_um", "findings")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    TRIPLE_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    SUPPORTED_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_FIELD_NUMBER: _ClassVar[int]
    MPP_FIELD_NUMBER: _ClassVar[int]
    X_UM_FIELD_NUMBER: _ClassVar[int]
    Y_UM_FIELD_NUMBER: _ClassVar[int]
    WIDTH_PX_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_PX_FIELD_NUMBER: _ClassVar[int]
    AREA_UM2_FIELD_NUMBER: _ClassVar[int]
    AREA_FRACTION_FIELD_NUMBER: _ClassVar[int]
    PNG_FIELD_NUMBER: _ClassVar[int]
    POLYGONS_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_UM_FIELD_NUMBER: _ClassVar[int]
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    triple: str
    category: _order_pb2.Code
    code: _order_pb2.Code
    supported: bool
    present: bool
    presence: float
    mpp: float
    x_um: float
    y_um: float
    width_px: int
    height_px: int
    area_um2: float
    area_fraction: float
    png: bytes
    polygons: _containers.RepeatedCompositeFieldContainer[Polygon]
    tolerance_um: float
    findings: _containers.RepeatedCompositeFieldContainer[Finding]
    def __init__(self, prompt: _Optional[str] = ..., triple: _Optional[str] = ..., category: _Optional[_Union[_order_pb2.Code, _Mapping]] = ..., code: _Optional[_Union[_order_pb2.Code, _Mapping]] = ..., supported: _Optional[bool] = ..., present: _Optional[bool] = ..., presence: _Optional[float] = ..., mpp: _Optional[float] = ..., x_um: _Optional[float] = ..., y_um: _Optional[float] = ..., width_px: _Optional[int] = ..., height_px: _Optional[int] = ..., area_um2: _Optional[float] = ..., area_fraction: _Optional[float] = ..., png: _Optional[bytes] = ..., polygons: _Optional[_Iterable[_Union[Polygon, _Mapping]]] = ..., tolerance_um: _Optional[float] = ..., findings: _Optional[_Iterable[_Union[Finding, _Mapping]]] = ...) -> None: ...

class SegmentResponse(_message.Message):
    __slots__ = ("study", "series", "region", "models", "findings", "masks")
    STUDY_FIELD_NUMBER: _ClassVar[int]
    SERIES_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    MASKS_FIELD_NUMBER: _ClassVar[int]
    study: str
    series: str
    region: _order_pb2.Region
    models: _containers.RepeatedCompositeFieldContainer[_analysis_pb2.PinnedModel]
    findings: _containers.RepeatedCompositeFieldContainer[Finding]
    masks: _containers.RepeatedCompositeFieldContainer[Mask]
    def __init__(self, study: _Optional[str] = ..., series: _Optional[str] = ..., region: _Optional[_Union[_order_pb2.Region, _Mapping]] = ..., models: _Optional[_Iterable[_Union[_analysis_pb2.PinnedModel, _Mapping]]] = ..., findings: _Optional[_Iterable[_Union[Finding, _Mapping]]] = ..., masks: _Optional[_Iterable[_Union[Mask, _Mapping]]] = ...) -> None: ...
