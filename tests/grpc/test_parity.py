"""The messages beside REST's bodies, name by name: what one door shows or takes, the other does."""

from typing import Any

import pytest

from gateway.analyses import forms, order_form, segment_form
from gateway.analyses.ledger.queries import AnalysisQuery
from gateway.domain.analysis import State
from gateway.domain.delivery import DeliveryState
from gateway.domain.feedback import Verdict
from gateway.domain.order import Priority
from gateway.domain.report import ReportState
from gateway.grpc.proto.pathserve.v1 import analysis_pb2, catalog_service_pb2, order_pb2, results_pb2, segment_pb2
from gateway.grpc.proto.pathserve.v1 import analysis_service_pb2 as pb
from gateway.http import models, segment, status, views


@pytest.mark.parametrize(
    ("message", "body", "only_grpc", "only_rest"),
    [
        # Links are REST's; what is an ETag there is a field here, and what is in the path there is `id` here.
        (analysis_pb2.Analysis, views.AnalysisView, {"etag"}, {"links"}),
        (analysis_pb2.Progress, views.ProgressView, set(), set()),
        (analysis_pb2.Failure, views.FailureView, set(), set()),
        (analysis_pb2.Difference, views.HeldView, set(), set()),
        (analysis_pb2.PinnedModel, views.PinnedModel, set(), set()),
        (results_pb2.Revision, views.RevisionView, set(), {"links"}),
        (results_pb2.Delivery, views.DeliveryView, set(), set()),
        (results_pb2.Feedback, views.FeedbackView, set(), set()),
        (results_pb2.FileInfo, views.Artifact, {"etag"}, {"href"}),
        (catalog_service_pb2.Model, models.ModelView, set(), set()),
        (catalog_service_pb2.Protocol, models.ProtocolView, set(), set()),
        (catalog_service_pb2.Setting, models.SettingView, set(), set()),
        (catalog_service_pb2.Status, status.Status, set(), set()),
        (catalog_service_pb2.Worker, status.WorkerView, set(), set()),
        (order_pb2.Order, order_form.OrderBody, set(), set()),
        (order_pb2.Specimen, order_form.SpecimenBody, set(), set()),
        (order_pb2.Slide, order_form.SlideBody, set(), set()),
        (order_pb2.Patient, order_form.PatientBody, set(), set()),
        (order_pb2.Region, order_form.RegionBody, set(), set()),
        (order_pb2.Point, order_form.PointBody, set(), set()),
        (segment_pb2.SegmentRequest, segment_form.SegmentBody, set(), set()),
        (segment_pb2.SegmentResponse, segment.SegmentView, set(), set()),
        (segment_pb2.Mask, segment.MaskView, set(), set()),
        (segment_pb2.Finding, segment.FindingView, set(), set()),
        (order_pb2.Code, order_form.CodeBody, set(), set()),
        (pb.UpdatePriorityRequest, forms.PriorityBody, {"id", "etag"}, set()),
        (pb.ReleaseAnalysisRequest, forms.ReleaseBody, {"id"}, set()),
        (pb.SignAnalysisRequest, forms.SignBody, {"id", "etag"}, set()),
        (pb.AmendAnalysisRequest, forms.AmendBody, {"id", "etag"}, set()),
        (results_pb2.Feedback, forms.FeedbackBody, {"revision", "by", "time", "number"}, set()),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_messages_have_the_names_of_bodies(message: Any, body: Any, only_grpc: set[str], only_rest: set[str]) -> None:
    ours, theirs = set(message.DESCRIPTOR.fields_by_name), set(body.model_fields)
    assert (ours - theirs, theirs - ours) == (only_grpc, only_rest)


def test_lists_have_the_same_filters() -> None:
    filters = set(pb.ListAnalysesRequest.DESCRIPTOR.fields_by_name) - {"page_size", "page_token"}
    assert filters - {"patient"} == set(AnalysisQuery.__dataclass_fields__) - {"patient_id", "patient_issuer"}


@pytest.mark.parametrize(
    ("kind", "enum"),
    [
        (analysis_pb2.State, State),
        (order_pb2.Priority, Priority),
        (results_pb2.ReportState, ReportState),
        (results_pb2.Verdict, Verdict),
        (results_pb2.DeliveryState, DeliveryState),
    ],
)
def test_enums_have_every_value_and_no_other(kind: Any, enum: Any) -> None:
    prefix = kind.Name(0).removesuffix("UNSPECIFIED")
    assert {name.removeprefix(prefix) for name in kind.keys()} == {each.name for each in enum} | {"UNSPECIFIED"}  # noqa: SIM118
