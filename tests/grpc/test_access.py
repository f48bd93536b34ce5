"""Who may call what: every method with every scope, with no token and wrong ones, and from another tenant."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sa

from gateway.domain.principal import Scope
from gateway.grpc.proto.pathserve.v1 import analysis_service_pb2 as pb
from gateway.grpc.proto.pathserve.v1 import catalog_service_pb2 as catalog
from gateway.grpc.proto.pathserve.v1 import order_pb2, results_pb2, segment_pb2
from gateway.operations.audit.table import AUDIT
from gateway.operations.auth.keys import Keys
from gateway.operations.auth.store import Store
from gateway.operations.database import open_database
from tests.grpc.conftest import KEY, Api, an_order, bearer, refusal, refusal_of, serving
from tests.grpc.fuzz import METHODS
from tests.support.oidc_issuer import Issuer, running_issuer

READ, WRITE, SIGN, MODELS = Scope.ANALYSES_READ, Scope.ANALYSES_WRITE, Scope.ANALYSES_SIGN, Scope.MODELS_READ
KEY_SCOPES = [scope for scope in Scope if scope is not SIGN]


@dataclass(frozen=True)
class Case:
    """A method with the scopes that it needs, and a valid request for an analysis."""

    method: str
    scopes: frozenset[Scope]
    request: Callable[[str], Any]

    def call(self, api: Api, token: str | None, analysis_id: str) -> Any:
        stub = (
            api.catalogue(token) if self.method in ("ListProtocols", "ListModels", "GetStatus") else api.analyses(token)
        )
        return getattr(stub, self.method)(self.request(analysis_id))


def a_region() -> segment_pb2.SegmentRequest:
    """A region of a slide that is not there."""
    region = order_pb2.Region(x_um=0, y_um=0, width_um=100, height_um=100)
    return segment_pb2.SegmentRequest(study="1.2.3", series="1.2.3.4", region=region, prompts=["nucleus in colon"])


CASES = [
    Case(method, frozenset(scopes), request)
    for method, scopes, request in (
        ("CreateAnalysis", {WRITE}, lambda _: pb.CreateAnalysisRequest(order=an_order())),
        (
            "BatchCreateAnalyses",
            {WRITE},
            lambda _: pb.BatchCreateAnalysesRequest(requests=[pb.CreateAnalysisRequest(order=an_order())]),
        ),
        ("RunAnalysis", {WRITE, READ}, lambda _: pb.RunAnalysisRequest(order=an_order())),
        ("GetAnalysis", {READ}, lambda id: pb.GetAnalysisRequest(id=id)),
        ("ListAnalyses", {READ}, lambda _: pb.ListAnalysesRequest()),
        ("WatchAnalysis", {READ}, lambda id: pb.WatchAnalysisRequest(id=id)),
        ("CancelAnalysis", {WRITE}, lambda id: pb.CancelAnalysisRequest(id=id)),
        ("RetryAnalysis", {WRITE}, lambda id: pb.RetryAnalysisRequest(id=id)),
        ("UpdatePriority", {WRITE}, lambda id: pb.UpdatePriorityRequest(id=id, priority=order_pb2.PRIORITY_STAT)),
        ("ReleaseAnalysis", {SIGN}, lambda id: pb.ReleaseAnalysisRequest(id=id, reason="checked")),
        ("SignAnalysis", {SIGN}, lambda id: pb.SignAnalysisRequest(id=id)),
        ("AmendAnalysis", {SIGN}, lambda id: pb.AmendAnalysisRequest(id=id, reason="checked", text="No tumour.")),
        (
            "CreateFeedback",
            {WRITE},
            lambda id: pb.CreateFeedbackRequest(
                id=id, feedback=results_pb2.Feedback(verdict=results_pb2.VERDICT_AGREE)
            ),
        ),
        ("ListFeedback", {READ}, lambda id: pb.ListFeedbackRequest(id=id)),
        ("GetReport", {READ}, lambda id: pb.GetReportRequest(id=id)),
        ("ListArtifacts", {READ}, lambda id: pb.ListArtifactsRequest(id=id)),
        ("GetArtifact", {READ}, lambda id: pb.GetArtifactRequest(id=id, name="report.pdf")),
        ("ListRevisions", {READ}, lambda id: pb.ListRevisionsRequest(id=id)),
        ("ListDeliveries", {READ}, lambda id: pb.ListDeliveriesRequest(id=id)),
        ("Segment", {WRITE}, lambda _: a_region()),
        ("ListProtocols", {MODELS}, lambda _: catalog.ListProtocolsRequest()),
        ("ListModels", {MODELS}, lambda _: catalog.ListModelsRequest()),
        ("GetStatus", {READ}, lambda _: catalog.GetStatusRequest()),
    )
]
OF_ONE_ANALYSIS = [case for case in CASES if "id" in case.request("").DESCRIPTOR.fields_by_name]


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with running_issuer(Issuer()) as running:
        yield running


@pytest.fixture(scope="module")
def api(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A server that takes the tokens of an identity provider too."""
    with serving(tmp_path_factory.mktemp("grpc") / "state", oidc_issuer=issuer.url) as running:
        yield running


@pytest.fixture(scope="module")
def key_of(api: Api) -> Iterator[Callable[..., str]]:
    """Makes an API key for scopes, of a tenant."""
    engine = open_database(api.settings.ledger_url, api.state)
    keys = Keys(Store(engine))
    made: dict[Any, str] = {}

    def key(*scopes: Scope, tenant: str = "default") -> str:
        if (scopes, tenant) not in made:
            made[scopes, tenant] = keys.create("of the tests", scopes, tenant, None, "tests")[1]
        return made[scopes, tenant]

    yield key
    engine.dispose()


@pytest.fixture
def analysis_id(api: Api) -> str:
    return str(api.analyses().CreateAnalysis(pb.CreateAnalysisRequest(order=an_order())).id)


def audited(api: Api, subtype: str) -> int:
    engine = open_database(api.settings.ledger_url, api.state)
    with engine.connect() as connection:
        found = connection.execute(sa.select(sa.func.count()).where(AUDIT.c.subtype == subtype)).scalar_one()
    engine.dispose()
    return int(found)


def refused(case: Case, api: Api, token: str | None, analysis_id: str) -> str:
    """The reason of a refusal; of a stream, what its first message says; empty where it goes through."""
    try:
        answer = case.call(api, token, analysis_id)
        if hasattr(answer, "cancel"):
            next(answer)
            answer.cancel()
    except grpc.RpcError as error:
        return refusal_of(error).reason
    return ""


def test_every_method_has_a_case() -> None:
    assert {case.method for case in CASES} == {method.name for method in METHODS}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.method)
def test_a_method_needs_its_scopes_and_no_others(
    case: Case, api: Api, key_of: Callable[..., str], analysis_id: str
) -> None:
    for scope in KEY_SCOPES:
        reason = refused(case, api, key_of(scope), analysis_id)
        enough = case.scopes <= {scope} or (scope is Scope.ADMIN and SIGN not in case.scopes)
        assert (reason == "wrong-scope") == (not enough), (scope, reason)
    if SIGN in case.scopes:
        everything = refusal(lambda: case.call(api, KEY, analysis_id))
        assert (everything.code, everything.reason) == (grpc.StatusCode.PERMISSION_DENIED, "wrong-scope")
    else:
        assert refused(case, api, key_of(*case.scopes), analysis_id) != "wrong-scope"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.method)
@pytest.mark.parametrize("token", [None, "", "no-such-key", "pathserve_key_none"])
def test_a_stranger_is_refused_and_noted_once(case: Case, api: Api, token: str | None, analysis_id: str) -> None:
    before = audited(api, "login-refused")
    wrong = refusal(lambda: case.call(api, token, analysis_id))
    assert (wrong.code, wrong.reason) == (grpc.StatusCode.UNAUTHENTICATED, "unauthenticated")
    assert audited(api, "login-refused") == before + 1


@pytest.mark.parametrize("case", OF_ONE_ANALYSIS, ids=lambda case: case.method)
def test_another_tenants_analysis_is_not_there(
    case: Case, api: Api, key_of: Callable[..., str], analysis_id: str
) -> None:
    before = audited(api, "access-refused")
    wrong = refusal(lambda: case.call(api, key_of(*KEY_SCOPES, tenant="elsewhere"), analysis_id))
    if SIGN in case.scopes:
        assert wrong.reason == "wrong-scope"
    else:
        assert (wrong.code, wrong.reason) == (grpc.StatusCode.NOT_FOUND, "not-found")
    assert audited(api, "access-refused") == before + 1


@pytest.mark.parametrize("case", [case for case in CASES if SIGN in case.scopes], ids=lambda case: case.method)
def test_only_a_person_signs(case: Case, api: Api, issuer: Issuer, analysis_id: str) -> None:
    person = issuer.token(tenant="default")
    wrong = refusal(lambda: case.call(api, person, analysis_id))
    assert (wrong.code, wrong.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "conflict" if case.method == "ReleaseAnalysis" else "report-not-ready",
    )
    system = issuer.token(tenant="default", sub="viewer")
    assert refusal(lambda: case.call(api, system, analysis_id)).reason == "wrong-scope"


@pytest.mark.parametrize(
    ("claims", "code", "reason"),
    [
        ({"exp": 1}, "UNAUTHENTICATED", "unauthenticated"),
        ({"aud": "another"}, "UNAUTHENTICATED", "unauthenticated"),
        ({"tenant": None}, "PERMISSION_DENIED", "forbidden"),
    ],
)
def test_a_wrong_token(api: Api, issuer: Issuer, claims: dict[str, Any], code: str, reason: str) -> None:
    before = audited(api, "login-refused")
    wrong = refusal(lambda: api.analyses(issuer.token(**claims)).ListAnalyses(pb.ListAnalysesRequest()))
    assert (wrong.code.name, wrong.reason) == (code, reason)
    assert audited(api, "login-refused") == before + 1


@pytest.mark.parametrize(("proxied", "address"), [(False, "127.0.0.1"), (True, "10.1.1.9")])
def test_the_callers_address_is_what_our_proxy_says(tmp_path: Path, proxied: bool, address: str) -> None:
    with serving(tmp_path / "state", tls_elsewhere=proxied) as api:
        forwarded = (("x-forwarded-for", "6.6.6.6, 10.1.1.9"),)
        wrong = refusal(
            lambda: api.analyses().ListAnalyses(pb.ListAnalysesRequest(), metadata=bearer("wrong") + forwarded)
        )
        assert wrong.code is grpc.StatusCode.UNAUTHENTICATED
        engine = open_database(api.settings.ledger_url, api.state)
        with engine.connect() as connection:
            query = sa.select(AUDIT.c.address).where(AUDIT.c.subtype == "login-refused")
            assert connection.execute(query).scalars().all() == [address]
        engine.dispose()


def test_two_tokens_are_none(api: Api) -> None:
    call = api.analyses().ListAnalyses
    assert refusal(lambda: call(pb.ListAnalysesRequest(), metadata=bearer() + bearer())).reason == "unauthenticated"


def test_a_stranger_learns_nothing_of_a_message(api: Api) -> None:
    """It is not even parsed: what is wrong with it stays unknown."""
    call = api.channel().unary_unary("/pathserve.v1.AnalysisService/CreateAnalysis")
    assert refusal(lambda: call(b"\xff\xff\xff", timeout=5)).code is grpc.StatusCode.UNAUTHENTICATED
