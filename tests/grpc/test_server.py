"""The server around the methods: health, reflection, limits, TLS, its port and its end."""

import hashlib
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from gateway.domain.principal import Scope
from gateway.grpc.admission import address_of
from gateway.grpc.metrics import REGISTRY
from gateway.grpc.proto.pathserve.v1 import analysis_service_pb2 as pb
from gateway.grpc.proto.pathserve.v1.analysis_service_pb2_grpc import AnalysisServiceStub
from gateway.grpc.server import MAX_MESSAGE_BYTES, SERVICES
from gateway.operations.auth.clients import Client, Clients
from gateway.operations.auth.store import Store
from gateway.operations.database import open_database
from gateway.operations.errors import InvalidSetting
from tests.grpc.conftest import Api, an_order, bearer, refusal, serving
from tests.support.certificates import Authority, Issued
from tests.support.gateway import eventually


def test_health_is_open_and_follows_readiness(api: Api) -> None:
    stub = health_pb2_grpc.HealthStub(api.channel())
    serves, not_now = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING

    def said(service: str) -> int:
        return int(stub.Check(health_pb2.HealthCheckRequest(service=service)).status)

    eventually(lambda: said("") == serves, "it serves")
    assert {said(service) for service in ("", *SERVICES)} == {serves}
    # A stranger may not know more than that: not even which services there are besides these.
    with pytest.raises(grpc.RpcError) as raised:
        said("pathserve.v1.NoSuch")
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    watches = [stub.Watch(health_pb2.HealthCheckRequest(service=name), timeout=20) for name in ("", *SERVICES, "no")]
    assert [next(watch).status for watch in watches] == [serves, serves, serves, 3]
    watches[0].cancel()
    api.ready[0] = False
    try:
        assert [next(watch).status for watch in watches[1:3]] == [not_now, not_now]
        assert said("") == not_now
    finally:
        api.ready[0] = True
    assert next(watches[1]).status == serves
    for watch in watches:
        watch.cancel()


def test_reflection_needs_a_token(api: Api) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(api.channel())
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    assert refusal(lambda: stub.ServerReflectionInfo(iter([ask]))).code is grpc.StatusCode.UNAUTHENTICATED
    [answer] = stub.ServerReflectionInfo(iter([ask]), metadata=bearer())
    assert {each.name for each in answer.list_services_response.service} > SERVICES


class _WithToken(grpc.StreamStreamClientInterceptor):
    def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        return continuation(details._replace(metadata=bearer()), requests)


def code_of(call: Any, request: Any) -> str:
    try:
        answer = call(request, metadata=bearer(), timeout=10)
        list(answer) if hasattr(answer, "cancel") else answer.SerializeToString()
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def test_a_client_without_our_code_calls_every_method(api: Api) -> None:
    """What grpcurl does: everything it knows of the messages, it knows from the server."""
    channel = api.channel()
    database = ProtoReflectionDescriptorDatabase(grpc.intercept_channel(channel, _WithToken()))
    pool = descriptor_pool.DescriptorPool(database)
    called = 0
    for name in SERVICES:
        for method in pool.FindServiceByName(name).methods:
            proto = descriptor_pb2.MethodDescriptorProto()
            method.CopyToProto(proto)
            request = message_factory.GetMessageClass(method.input_type)()
            answer_type = message_factory.GetMessageClass(method.output_type)
            kind = channel.unary_stream if proto.server_streaming else channel.unary_unary
            call = kind(
                f"/{name}/{method.name}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=answer_type.FromString,
            )
            code = code_of(call, request)
            assert code in ("INVALID_ARGUMENT", "NOT_FOUND", "PERMISSION_DENIED", "OK"), method.name
            called += 1
    assert called == 23


def test_a_request_that_is_too_large_is_refused_unread(api: Api, client: Any) -> None:
    order = an_order(prompts=["x" * 500] * (MAX_MESSAGE_BYTES // 500))
    wrong = refusal(lambda: client.CreateAnalysis(pb.CreateAnalysisRequest(order=order)))
    assert wrong.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    # 60 MB that are 60 kB on their way.
    bomb = pb.CreateAnalysisRequest(order=an_order(prompts=["x" * 60_000_000]))
    wrong = refusal(lambda: client.CreateAnalysis(bomb, compression=grpc.Compression.Gzip, timeout=30))
    assert wrong.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert client.ListAnalyses(pb.ListAnalysesRequest()) is not None


@pytest.mark.parametrize(
    "wire",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\x00\x04\x00\x00\x00\x01" + b"\xaa" * 500,
        bytes(range(256)) * 40,
    ],
)
def test_a_connection_of_another_kind_harms_nobody(api: Api, client: Any, wire: bytes) -> None:
    with socket.create_connection(("127.0.0.1", api.port), timeout=5) as stranger:
        stranger.sendall(wire)
        # With no time to linger, the close is a reset.
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    assert client.ListAnalyses(pb.ListAnalysesRequest()) is not None


def test_a_client_that_pings_without_end_is_sent_away(api: Api, client: Any) -> None:
    accepted = client.CreateAnalysis(pb.CreateAnalysisRequest(order=an_order()))
    channel = api.channel(**{"keepalive_time_ms": 200, "http2.max_pings_without_data": 0})
    watching = AnalysisServiceStub(channel).WatchAnalysis
    wrong = refusal(lambda: watching(pb.WatchAnalysisRequest(id=accepted.id), metadata=bearer(), timeout=30))
    assert (wrong.code, wrong.message.lower()) == (grpc.StatusCode.UNAVAILABLE, "too many pings")


def test_a_caller_has_its_requests_a_second(tmp_path: Path) -> None:
    with serving(tmp_path / "state", rate_limit=5) as api:
        client = api.analyses()
        client.ListAnalyses(pb.ListAnalysesRequest())
        wrong = refusal(lambda: [client.ListAnalyses(pb.ListAnalysesRequest()) for _ in range(10)])
        assert (wrong.code, wrong.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "too-many-requests")
        assert 0 < wrong.details["RetryInfo"].retry_delay.ToMilliseconds() <= 1000
        assert wrong.details["QuotaFailure"].violations
        time.sleep(1.1)
        assert client.ListAnalyses(pb.ListAnalysesRequest()) is not None


def test_calls_are_measured(client: Any) -> None:
    def counted(method: str, code: str) -> float:
        labels = {"service": "pathserve.v1.AnalysisService", "method": method, "code": code}
        return REGISTRY.get_sample_value("grpc_request_duration_seconds_count", labels) or 0.0

    before = counted("GetAnalysis", "NOT_FOUND"), counted("ListAnalyses", "OK")
    refusal(lambda: client.GetAnalysis(pb.GetAnalysisRequest(id="none")))
    client.ListAnalyses(pb.ListAnalysesRequest())
    assert (counted("GetAnalysis", "NOT_FOUND"), counted("ListAnalyses", "OK")) == (before[0] + 1, before[1] + 1)


def test_a_taken_port_is_a_sentence(api: Api, tmp_path: Path) -> None:
    with (
        pytest.raises(InvalidSetting, match="PATHSERVE_GRPC_PORT"),
        serving(tmp_path / "state", grpc_port=api.port),
    ):
        pass


def test_tls_and_certificates_of_clients(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs", "Another Authority")
    server = ours.issue("server", tmp_path, name="localhost")
    known = ours.issue("client", tmp_path, name="lis.hospital")
    foreign = theirs.issue("client", tmp_path / "foreign", name="lis.hospital")
    tls = {"tls_certificate": server.certificate, "tls_key": server.key}
    roots = ours.certificate.read_bytes()

    def called(port: int, credentials: grpc.ChannelCredentials, metadata: Any = bearer()) -> grpc.StatusCode:
        with grpc.secure_channel(f"localhost:{port}", credentials, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            try:
                AnalysisServiceStub(channel).ListAnalyses(pb.ListAnalysesRequest(), metadata=metadata, timeout=5)
            except grpc.RpcError as error:
                return error.code()
        return grpc.StatusCode.OK

    with serving(tmp_path / "tls", **tls) as api:
        assert called(api.port, grpc.ssl_channel_credentials(roots)) is grpc.StatusCode.OK
        assert called(api.port, grpc.ssl_channel_credentials(theirs.certificate.read_bytes())) is not grpc.StatusCode.OK
        plain = AnalysisServiceStub(api.channel()).ListAnalyses
        assert refusal(lambda: plain(pb.ListAnalysesRequest(), metadata=bearer(), timeout=5)).code is (
            grpc.StatusCode.UNAVAILABLE
        )
    with serving(tmp_path / "mtls", tls_client_authorities=ours.certificate, **tls) as api:
        for shown, expected in ((known, True), (foreign, False), (None, False)):
            pair = () if shown is None else (shown.key.read_bytes(), shown.certificate.read_bytes())
            code = called(api.port, grpc.ssl_channel_credentials(roots, *pair))
            assert (code is grpc.StatusCode.OK) == expected
        # A certificate that is registered is a login; one that is not, is none.
        as_client = grpc.ssl_channel_credentials(roots, known.key.read_bytes(), known.certificate.read_bytes())
        assert called(api.port, as_client, None) is grpc.StatusCode.UNAUTHENTICATED
        register(api, known, frozenset({Scope.ANALYSES_READ}))
        assert called(api.port, as_client, None) is grpc.StatusCode.OK


def register(api: Api, shown: Issued, scopes: frozenset[Scope]) -> None:
    """Make a certificate the login of a client."""
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(shown.certificate.read_text())).hexdigest()
    engine = open_database(api.settings.ledger_url, api.state)
    Clients(Store(engine)).add(
        Client(id="lis", name="LIS", tenant="default", scopes=scopes, certificate_sha256=digest), "tests"
    )
    engine.dispose()


def test_the_process_that_answers_stays_light() -> None:
    heavy = "{'numpy', 'pydicom', 'tritonclient', 'dbos', 'highdicom'}"
    look = f"import sys, gateway.grpc.server; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_certificates_that_cannot_be_read_are_a_sentence(tmp_path: Path) -> None:
    with (
        pytest.raises(InvalidSetting, match="PATHSERVE_TLS_CERTIFICATE"),
        serving(tmp_path / "state", tls_certificate=tmp_path / "none.pem"),
    ):
        pass


@pytest.mark.parametrize(
    ("peer", "address"),
    [("ipv4:10.0.0.7:5000", "10.0.0.7"), ("ipv6:%5B::1%5D:5000", "::1"), ("ipv6:[fe80::1]:1", "fe80::1")],
)
def test_the_address_of_a_peer(peer: str, address: str) -> None:
    assert address_of(peer) == address
