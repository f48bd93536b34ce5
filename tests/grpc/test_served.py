"""`pathserve serve` with its worker and a real Triton, ordered from by gRPC."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from gateway.grpc.proto.pathserve.v1 import analysis_pb2, order_pb2, results_pb2
from gateway.grpc.proto.pathserve.v1 import analysis_service_pb2 as pb
from gateway.grpc.proto.pathserve.v1 import catalog_service_pb2 as catalog
from gateway.grpc.proto.pathserve.v1.analysis_service_pb2_grpc import AnalysisServiceStub
from gateway.grpc.proto.pathserve.v1.catalog_service_pb2_grpc import CatalogServiceStub
from gateway.operations.settings import Settings
from gateway.slides.phantom import write_phantom
from tests.grpc.conftest import Signed, refusal
from tests.grpc.ordering import order_from, placed
from tests.support.gateway import KEY, Gateway, case_of, eventually, running_gateway
from tests.support.models import without_golden
from tests.support.oidc_issuer import Issuer, running_issuer
from tests.support.triton import held_triton, rows_computed

pytestmark = pytest.mark.triton

SMALL_PX, LARGE_PX = 1024, 9984
"""Of the large one many more tiles are read than are in flight at any time."""


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of a small and a large slide."""
    archive = tmp_path_factory.mktemp("slides")
    for name, side in (("small", SMALL_PX), ("large", LARGE_PX)):
        write_phantom(archive / name, kind="he", width_px=side, height_px=side, seed=side)
    return archive


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with running_issuer(Issuer()) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(slides: Path, issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    state = tmp_path_factory.mktemp("work") / "state"
    models = without_golden(Settings().model_repository, tmp_path_factory.mktemp("models") / "repository")
    with (
        held_triton(Settings(state=state, model_repository=models)),
        running_gateway(
            state,
            f"folder:{slides}",
            PATHSERVE_MODEL_REPOSITORY=str(models),
            PATHSERVE_GRPC_PORT="0",
            PATHSERVE_OIDC_ISSUER=issuer.url,
        ) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def channel(gateway: Gateway) -> Iterator[grpc.Channel]:
    [address] = re.findall(r"pathserve: gRPC on (\S+)", gateway.log.read_text())
    with grpc.insecure_channel(address) as made:
        yield made


@pytest.fixture(scope="module")
def client(channel: grpc.Channel) -> Any:
    return Signed(AnalysisServiceStub(channel), KEY)


def order_of(slide: Path) -> order_pb2.Order:
    return order_from(case_of(slide))


def read(parts: Iterator[Any]) -> tuple[Any, bytes]:
    info = next(parts).info
    return info, b"".join(part.data for part in parts)


@pytest.fixture(scope="module")
def run(client: Any, slides: Path) -> list[Any]:
    """All that a run of the small slide said."""
    return list(client.RunAnalysis(pb.RunAnalysisRequest(order=order_of(slides / "small")), timeout=120))


def test_a_run_to_its_end_and_what_it_made(client: Any, gateway: Gateway, run: list[Any]) -> None:
    events = [part.event for part in run[1:-1]]
    ended = run[-1].analysis
    assert ended.state == analysis_pb2.STATE_COMPLETED, ended
    assert {model.name for model in ended.models} >= {"tissue_classification", "tile_encoder", "tissue_head"}
    states = [event.data["state"] for event in events if event.kind == "state"]
    assert states == ["accepted", "running", "completed"]
    assert [event.seq for event in events] == sorted({event.seq for event in events})
    assert gateway.show(ended.id)["state"] == "completed"

    info, report = read(client.GetReport(pb.GetReportRequest(id=ended.id)))
    assert (info.media_type, info.bytes) == ("application/json", len(report))
    assert json.loads(report)["analysis_id"] == ended.id
    for media_type in ("text/html", "application/pdf", "application/dicom"):
        info, content = read(client.GetReport(pb.GetReportRequest(id=ended.id, media_type=media_type)))
        answer = gateway.request("GET", f"/v1/analyses/{ended.id}/report", headers={"Accept": media_type})
        assert (info.media_type.split(";")[0], content) == (media_type, answer.content)
    wrong = refusal(lambda: client.GetReport(pb.GetReportRequest(id=ended.id, media_type="text/plain")))
    assert (wrong.code, wrong.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "not-acceptable")

    files = client.ListArtifacts(pb.ListArtifactsRequest(id=ended.id)).items
    assert {"report.json", "report.sr.dcm", "report.pdf"} <= {file.name for file in files}
    for file in files:
        info, content = read(client.GetArtifact(pb.GetArtifactRequest(id=ended.id, name=file.name, revision=1)))
        assert (info, len(content)) == (file, file.bytes)
        assert content == gateway.request("GET", f"/v1/analyses/{ended.id}/artifacts/{file.name}").content
    assert refusal(lambda: client.GetArtifact(pb.GetArtifactRequest(id=ended.id, name="../x"))).reason == "not-found"
    assert refusal(lambda: client.GetReport(pb.GetReportRequest(id=ended.id, revision=2))).reason == "not-found"
    [revision] = client.ListRevisions(pb.ListRevisionsRequest(id=ended.id)).items
    assert (revision.number, len(revision.documents), revision.HasField("by")) == (1, 1, False)
    [delivery] = client.ListDeliveries(pb.ListDeliveriesRequest(id=ended.id)).items
    assert (delivery.channel, delivery.revision, delivery.HasField("settled")) == ("stow", 1, True)


def test_a_person_signs_and_corrects(client: Any, channel: grpc.Channel, issuer: Issuer, run: list[Any]) -> None:
    analysis_id = run[-1].analysis.id
    person = Signed(AnalysisServiceStub(channel), issuer.token(tenant="default"))
    signed = person.SignAnalysis(pb.SignAnalysisRequest(id=analysis_id, revision=1, comment="Seen."), timeout=60)
    assert (signed.number, signed.state, signed.by_name) == (2, results_pb2.REPORT_STATE_FINAL, "Dr. Anna Example")
    finding = order_pb2.Code(code="35917007", scheme="SCT", display="Adenocarcinoma")
    correction = pb.AmendAnalysisRequest(id=analysis_id, reason="Second reading", text="A tumour.", findings=[finding])
    correction.revision = 1
    assert refusal(lambda: person.AmendAnalysis(correction, timeout=60)).reason == "precondition-failed"
    correction.revision = 2
    amended = person.AmendAnalysis(correction, timeout=60)
    assert (amended.number, amended.state, amended.reason) == (3, results_pb2.REPORT_STATE_AMENDED, "Second reading")
    _, report = read(client.GetReport(pb.GetReportRequest(id=analysis_id)))
    assert json.loads(report)["revision"] == 3
    _, report = read(client.GetReport(pb.GetReportRequest(id=analysis_id, revision=1)))
    assert json.loads(report)["state"] == "preliminary"
    told = results_pb2.Feedback(verdict=results_pb2.VERDICT_AMEND, finding=finding, comment="Missed at the margin.")
    given = person.CreateFeedback(pb.CreateFeedbackRequest(id=analysis_id, feedback=told))
    assert (given.revision, given.by, given.finding) == (3, "person:dr-anna", finding)
    assert list(client.ListFeedback(pb.ListFeedbackRequest(id=analysis_id)).items) == [given]
    assert [each.number for each in client.ListRevisions(pb.ListRevisionsRequest(id=analysis_id)).items] == [1, 2, 3]


def test_a_held_analysis_goes_on_where_a_person_lets_it(
    client: Any, channel: grpc.Channel, issuer: Issuer, slides: Path
) -> None:
    order = order_of(slides / "small")
    order.accession = "ANOTHER"
    accepted = client.CreateAnalysis(pb.CreateAnalysisRequest(order=order))
    watching = client.WatchAnalysis(pb.WatchAnalysisRequest(id=accepted.id), timeout=120)
    assert any(event.kind == "state" and event.data["state"] == "held-identity" for event in watching)
    held = client.GetAnalysis(pb.GetAnalysisRequest(id=accepted.id))
    assert held.state == analysis_pb2.STATE_HELD_IDENTITY
    assert {(each.attribute, each.problem) for each in held.held} == {("accession number", "differs")}
    person = Signed(AnalysisServiceStub(channel), issuer.token(tenant="default"))
    person.ReleaseAnalysis(pb.ReleaseAnalysisRequest(id=accepted.id, reason="Checked against the request form."))
    states = [event.data["state"] for event in watching if event.kind == "state"]
    assert states[-1] == "completed"


def test_an_order_is_the_same_one_by_either_door(gateway: Gateway, channel: grpc.Channel, slides: Path) -> None:
    case = case_of(slides / "small")
    body = {"protocol": "tissue-classification", **case}
    answer = gateway.request("POST", "/v1/analyses", json=body, headers={"Idempotency-Key": "either-door"})
    assert placed(channel, case, "either-door") == answer.json()["id"]


def test_a_cancelled_call_stops_the_work_in_triton(client: Any, gateway: Gateway, slides: Path) -> None:
    before = rows_computed(gateway.state, "tile_encoder")
    running = client.RunAnalysis(pb.RunAnalysisRequest(order=order_of(slides / "large")), timeout=120)
    analysis_id = next(running).analysis.id
    tiles = next(
        part.event.data
        for part in running
        if part.event.kind == "progress" and part.event.data["step"] == "infer" and part.event.data["done"] > 0
    )
    assert tiles["done"] < tiles["total"]
    running.cancel()
    eventually(lambda: gateway.show(analysis_id)["state"] == "cancelled", "it is cancelled")
    time.sleep(2)  # the batches that Triton had in hand come to their end
    rows = rows_computed(gateway.state, "tile_encoder")
    time.sleep(2)
    assert rows_computed(gateway.state, "tile_encoder") == rows
    assert rows - before < tiles["total"] / 2
    assert gateway.show(analysis_id)["progress"]["done"] < tiles["total"]
    assert refusal(lambda: client.GetReport(pb.GetReportRequest(id=analysis_id))).reason == "cancelled"


def test_a_deadline_ends_the_analysis(client: Any, gateway: Gateway, slides: Path) -> None:
    running = client.RunAnalysis(pb.RunAnalysisRequest(order=order_of(slides / "large")), timeout=2)
    analysis_id = next(running).analysis.id
    assert refusal(lambda: running).code is grpc.StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: gateway.show(analysis_id)["state"] == "cancelled", "it is cancelled")


def test_models_and_status_of_a_server_that_works(channel: grpc.Channel) -> None:
    catalogue = Signed(CatalogServiceStub(channel), KEY)
    models = {each.name: each for each in catalogue.ListModels(catalog.ListModelsRequest()).items}
    assert models["tile_encoder"].ready
    assert models["tile_encoder"].state == "serving"
    [worker] = catalogue.GetStatus(catalog.GetStatusRequest()).workers
    assert worker.parts["inference"]
