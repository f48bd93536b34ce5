"""The methods over a real ledger: what REST does, field by field and error by error."""

from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from gateway.grpc.proto.pathserve.v1 import analysis_pb2, order_pb2
from gateway.grpc.proto.pathserve.v1 import analysis_service_pb2 as pb
from gateway.grpc.proto.pathserve.v1 import catalog_service_pb2 as catalog
from tests.grpc.conftest import Api, an_order, refusal

MISSING = "00000000-0000-4000-8000-000000000000"


def created(client: Any, key: str = "", **order: Any) -> analysis_pb2.Analysis:
    return client.CreateAnalysis(pb.CreateAnalysisRequest(order=an_order(**order), request_id=key))


def test_an_order_is_kept_as_it_was_sent(client: Any, api: Api) -> None:
    code = order_pb2.Code(code="119376003", scheme="SCT", display="Tissue specimen")
    order = order_pb2.Order(
        protocol="tissue-classification",
        priority=order_pb2.PRIORITY_URGENT,
        accession="S26-004711",
        patient=order_pb2.Patient(id="PID-0815", issuer="HOSPITAL"),
        specimens=[
            order_pb2.Specimen(
                container="C-1",
                type=code,
                site=code,
                stain="HE",
                slides=[order_pb2.Slide(study="1.2", series=["1.2.3"])],
            ),
            order_pb2.Specimen(slides=[order_pb2.Slide(study="1.3"), order_pb2.Slide(study="1.4")]),
        ],
        region=order_pb2.Region(x_um=0.0, y_um=12.5, width_um=100.0, height_um=200.0),
    )
    accepted = client.CreateAnalysis(pb.CreateAnalysisRequest(order=order))
    assert (accepted.state, accepted.priority) == (analysis_pb2.STATE_ACCEPTED, order_pb2.PRIORITY_URGENT)
    assert accepted.order == order
    record = api.ledger.get(accepted.id)
    assert (record.caller, record.tenant, record.version) == ("key:default", "default", accepted.etag)
    assert accepted.created.ToDatetime(tzinfo=UTC) == record.analysis.created
    assert client.GetAnalysis(pb.GetAnalysisRequest(id=accepted.id)) == accepted


def test_the_same_request_id_is_the_same_analysis(client: Any) -> None:
    first = created(client, "key-1")
    assert created(client, "key-1").id == first.id
    wrong = refusal(lambda: created(client, "key-1", study="1.2.9"))
    assert (wrong.code, wrong.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "idempotency-conflict")
    for key in ("with blank", "é", "x" * 256, "a\nb"):
        wrong = refusal(lambda key=key: created(client, key))
        assert [each.field for each in wrong.details["BadRequest"].field_violations] == ["request_id"]


@pytest.mark.parametrize(
    ("order", "field"),
    [
        (order_pb2.Order(), "order.protocol"),
        (order_pb2.Order(protocol="tissue-classification"), "order.specimens"),
        (an_order(accession=""), "order.accession"),
        (an_order(accession="x" * 17), "order.accession"),
        (an_order(accession="a\\b"), "order.accession"),
        (an_order(study="1.02"), "order.specimens.0.slides.0.study"),
        (an_order(priority=9), "order.priority"),
        (an_order(patient=order_pb2.Patient(id="\x00")), "order.patient.id"),
        (an_order(region=order_pb2.Region(x_um=0, y_um=0, width_um=0, height_um=1)), "order.region.width_um"),
        (an_order(region=order_pb2.Region(x_um=float("nan"), y_um=0, width_um=1, height_um=1)), "order.region.x_um"),
        (an_order(region=order_pb2.Region(y_um=0, width_um=1, height_um=1)), "order.region.x_um"),
        (an_order(prompts=[""]), "order.prompts.0"),
        (an_order(prompts=["nuclei"] * 33), "order.prompts"),
    ],
)
def test_a_wrong_field_is_named(client: Any, order: order_pb2.Order, field: str) -> None:
    wrong = refusal(lambda: client.CreateAnalysis(pb.CreateAnalysisRequest(order=order)))
    assert (wrong.code, wrong.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "invalid-order")
    assert field in [each.field for each in wrong.details["BadRequest"].field_violations]


def test_prompts_and_polygons_are_kept_and_a_prompt_of_other_words_is_refused(api: Api, client: Any) -> None:
    corners = [order_pb2.Point(x_um=x, y_um=y) for x, y in ((0, 0), (100, 0), (0, 50))]
    region = order_pb2.Region(x_um=0, y_um=0, width_um=100, height_um=50, polygon_um=corners)
    order = an_order("1.6.1", prompts=["glands", "nuclei of colon"], region=region)
    order.protocol = "segmentation"
    accepted = client.CreateAnalysis(pb.CreateAnalysisRequest(order=order))
    assert (accepted.order.prompts, accepted.order.region) == (order.prompts, region)
    assert api.ledger.get(accepted.id).analysis.order.prompts == ("glands", "nuclei of colon")
    order.prompts.append("unicorns")
    wrong = refusal(lambda: client.CreateAnalysis(pb.CreateAnalysisRequest(order=order)))
    assert (wrong.code, wrong.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "prompt-invalid")
    assert "unicorn" in wrong.message


def test_an_unknown_protocol_is_one_of_the_tree(client: Any) -> None:
    order = an_order()
    order.protocol = "reading-tea-leaves"
    wrong = refusal(lambda: client.CreateAnalysis(pb.CreateAnalysisRequest(order=order)))
    assert (wrong.code, wrong.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "unknown-protocol")


def test_a_batch_takes_each_order_on_its_own_merits(client: Any) -> None:
    wrong = an_order()
    wrong.protocol = "no-such"
    orders = [an_order("1.5.1"), order_pb2.Order(), wrong, an_order("1.5.2")]
    requests = [pb.CreateAnalysisRequest(order=order, request_id=f"batch-{n}") for n, order in enumerate(orders)]
    results = client.BatchCreateAnalyses(pb.BatchCreateAnalysesRequest(requests=requests)).results
    assert [each.WhichOneof("outcome") for each in results] == ["analysis", "error", "error", "analysis"]
    assert [each.analysis.order.specimens[0].slides[0].study for each in (results[0], results[3])] == ["1.5.1", "1.5.2"]
    assert {each.error.code for each in results[1:3]} == {grpc.StatusCode.INVALID_ARGUMENT.value[0]}
    again = client.BatchCreateAnalyses(pb.BatchCreateAnalysesRequest(requests=requests)).results
    assert [each.analysis.id for each in again] == [each.analysis.id for each in results]
    for count in (0, 101):
        many = pb.BatchCreateAnalysesRequest(requests=[requests[0]] * count)
        assert refusal(lambda many=many: client.BatchCreateAnalyses(many)).reason == "invalid-order"


def test_lists_are_filtered_and_paged(client: Any) -> None:
    patient = order_pb2.Patient(id="P-LIST", issuer="X")
    ids = [created(client, study=f"1.7.{n}", accession=f"ACC-{n % 2}", patient=patient).id for n in range(5)]
    asked = pb.ListAnalysesRequest(page_size=2, patient=patient)
    pages = [client.ListAnalyses(asked)]
    while token := pages[-1].next_page_token:
        asked.page_token = token
        pages.append(client.ListAnalyses(asked))
    assert [each.id for page in pages for each in page.items] == ids[::-1]
    assert [len(page.items) for page in pages] == [2, 2, 1]
    assert not pages[0].items[0].HasField("order")

    def listed(**filters: Any) -> list[str]:
        return [each.id for each in client.ListAnalyses(pb.ListAnalysesRequest(patient=patient, **filters)).items]

    assert listed(accession="ACC-1") == [ids[3], ids[1]]
    assert listed(study="1.7.2") == [ids[2]]
    assert listed(state=analysis_pb2.STATE_COMPLETED) == []
    assert listed(priority=order_pb2.PRIORITY_ROUTINE, protocol="tissue-classification") == ids[::-1]
    now = Timestamp()
    now.FromDatetime(datetime.now(UTC))
    assert listed(created_before=now) == ids[::-1]
    assert listed(created_after=now) == []


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.ListAnalysesRequest(page_size=201), "page_size"),
        (pb.ListAnalysesRequest(page_size=-1), "page_size"),
        (pb.ListAnalysesRequest(state=99), "state"),
        (pb.ListAnalysesRequest(priority=-7), "priority"),
        (pb.ListAnalysesRequest(study="1.2.\x00"), "study"),
        (pb.ListAnalysesRequest(patient=order_pb2.Patient(id="\x00")), "patient.id"),
        (pb.ListAnalysesRequest(created_after=Timestamp(seconds=2**62)), "created_after"),
        (pb.ListAnalysesRequest(created_before=Timestamp(nanos=-5)), "created_before"),
    ],
)
def test_a_wrong_filter_is_named(client: Any, request_: pb.ListAnalysesRequest, field: str) -> None:
    wrong = refusal(lambda: client.ListAnalyses(request_))
    assert wrong.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [each.field for each in wrong.details["BadRequest"].field_violations] == [field]


def test_a_page_token_is_taken_from_its_own_list_only(client: Any) -> None:
    for study in ("1.8.1", "1.8.2"):
        created(client, study=study)
    token = client.ListAnalyses(pb.ListAnalysesRequest(page_size=1)).next_page_token
    for asked in (
        pb.ListAnalysesRequest(page_size=1, page_token="!"),
        pb.ListAnalysesRequest(page_size=1, page_token=token, accession="S"),
    ):
        assert refusal(lambda asked=asked: client.ListAnalyses(asked)).reason == "invalid-input"


def test_changes_ask_for_the_present_etag(client: Any) -> None:
    accepted = created(client)
    stat = order_pb2.PRIORITY_STAT
    changed = client.UpdatePriority(pb.UpdatePriorityRequest(id=accepted.id, priority=stat, etag=accepted.etag))
    assert changed.priority == stat
    assert changed.etag != accepted.etag
    for late in (
        lambda: client.UpdatePriority(pb.UpdatePriorityRequest(id=accepted.id, priority=stat, etag=accepted.etag)),
        lambda: client.CancelAnalysis(pb.CancelAnalysisRequest(id=accepted.id, etag=accepted.etag)),
    ):
        wrong = refusal(late)
        assert (wrong.code, wrong.reason) == (grpc.StatusCode.ABORTED, "precondition-failed")
        assert wrong.details["PreconditionFailure"].violations[0].subject == accepted.id
    assert client.CancelAnalysis(pb.CancelAnalysisRequest(id=accepted.id)).state == analysis_pb2.STATE_CANCELLED
    again = client.RetryAnalysis(pb.RetryAnalysisRequest(id=accepted.id))
    assert again.state == analysis_pb2.STATE_ACCEPTED
    wrong = refusal(lambda: client.RetryAnalysis(pb.RetryAnalysisRequest(id=accepted.id)))
    assert (wrong.code, wrong.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "conflict")


def test_there_is_no_report_before_the_end(client: Any) -> None:
    accepted = created(client)
    for call in (
        lambda: client.GetReport(pb.GetReportRequest(id=accepted.id)),
        lambda: client.GetArtifact(pb.GetArtifactRequest(id=accepted.id, name="report.pdf")),
    ):
        wrong = refusal(call)
        assert (wrong.code, wrong.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "report-not-ready")
    assert not client.ListArtifacts(pb.ListArtifactsRequest(id=accepted.id)).items
    assert not client.ListRevisions(pb.ListRevisionsRequest(id=accepted.id)).items
    assert not client.ListFeedback(pb.ListFeedbackRequest(id=accepted.id)).items
    assert not client.ListDeliveries(pb.ListDeliveriesRequest(id=accepted.id)).items


@pytest.mark.parametrize("wrong_id", [MISSING, "", "../../etc", "\x00", "x" * 65, "ID"])
def test_an_analysis_that_is_not_there(client: Any, wrong_id: str) -> None:
    wrong = refusal(lambda: client.GetAnalysis(pb.GetAnalysisRequest(id=wrong_id)))
    assert (wrong.code, wrong.reason) == (grpc.StatusCode.NOT_FOUND, "not-found")
    assert wrong.details["ResourceInfo"].resource_name == wrong_id
    assert refusal(lambda: client.WatchAnalysis(pb.WatchAnalysisRequest(id=wrong_id))).reason == "not-found"


def test_the_catalogue_says_what_the_server_can_do(api: Api) -> None:
    catalogue = api.catalogue()
    protocol, of_slides, by_words, of_smears = catalogue.ListProtocols(catalog.ListProtocolsRequest()).items
    assert (protocol.name, of_slides.name) == ("tissue-classification", "slide-classification")
    assert (by_words.name, list(by_words.models)) == ("segmentation", ["pathseg_text", "pathseg"])
    assert list(of_slides.models) == ["tile_encoder", "slide_abmil"]
    assert of_smears.name == "cervical-screening"
    assert list(of_smears.models) == ["smartccs_detect", "smartccs_embed", "smartccs_slide"]
    assert protocol.settings["tissue.min_share"].default == 0.25
    assert not protocol.settings["operating_point.min_probability"].HasField("default")
    assert protocol.cards["tissue_classification"]["name"] == "tissue_classification"
    models = catalogue.ListModels(catalog.ListModelsRequest()).items
    assert {"tile_encoder", "tissue_head"} <= {each.name for each in models}
    assert not any(each.ready for each in models)
    created(api.analyses())
    status = catalogue.GetStatus(catalog.GetStatusRequest())
    assert abs((status.now.ToDatetime(tzinfo=UTC) - datetime.now(UTC)).total_seconds()) < 5
    assert status.analyses["accepted"] >= 1
    assert status.oldest_s["ROUTINE"] >= 0
