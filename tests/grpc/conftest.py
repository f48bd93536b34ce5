"""The gRPC server in this process, over a real ledger, with real clients; no worker: tests move analyses themselves."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2 as details
from grpc_status import rpc_status

from gateway.analyses.ledger import Ledger
from gateway.analyses.service import Service
from gateway.grpc.proto.pathserve.v1 import order_pb2
from gateway.grpc.proto.pathserve.v1.analysis_service_pb2_grpc import AnalysisServiceStub
from gateway.grpc.proto.pathserve.v1.catalog_service_pb2_grpc import CatalogServiceStub
from gateway.grpc.server import open_grpc
from gateway.operations.auth import ApiKey, Authenticator
from gateway.operations.database import open_database
from gateway.operations.limits import RequestLimit
from gateway.operations.settings import Settings

KEY = "the-key"
Metadata = tuple[tuple[str, str], ...]


def bearer(token: str = KEY) -> Metadata:
    return (("authorization", f"Bearer {token}"),)


def an_order(study: str = "1.2.3", **more: Any) -> order_pb2.Order:
    """An order of one slide."""
    slide = order_pb2.Slide(study=study, series=[f"{study}.4"])
    specimen = order_pb2.Specimen(container="C-1", stain="HE", slides=[slide])
    return order_pb2.Order(protocol="tissue-classification", specimens=[specimen], **more)


@dataclass
class Refusal:
    """A call's error: its status code, sentence and details by type."""

    code: grpc.StatusCode
    message: str
    details: dict[str, Any]

    @property
    def reason(self) -> str:
        return str(self.details["ErrorInfo"].reason)


def refusal(call: Callable[[], Any]) -> Refusal:
    """The error that a call ends with; streams are read to their end."""
    try:
        answer = call()
        if not hasattr(answer, "DESCRIPTOR"):
            list(answer)
    except grpc.RpcError as error:
        return refusal_of(error)
    return pytest.fail("the call was not refused")


def refusal_of(error: Any) -> Refusal:
    status = rpc_status.from_call(error)
    found: dict[str, Any] = {}
    for packed in status.details if status is not None else ():
        kind = packed.TypeName().rpartition(".")[2]
        found[kind] = getattr(details, kind)()
        assert packed.Unpack(found[kind])
    return Refusal(error.code(), error.details(), found)


@dataclass
class Api:
    """A running server, and stubs that call it with the server's key."""

    port: int
    state: Path
    ledger: Ledger
    settings: Settings
    ready: list[bool] = field(default_factory=lambda: [True])
    channels: list[grpc.Channel] = field(default_factory=list)

    def channel(self, **options: int) -> grpc.Channel:
        """A connection of its own."""
        made = grpc.insecure_channel(
            f"127.0.0.1:{self.port}",
            options=[("grpc.use_local_subchannel_pool", 1), *((f"grpc.{name}", n) for name, n in options.items())],
        )
        self.channels.append(made)
        return made

    def analyses(self, token: str | None = KEY) -> Any:
        return Signed(AnalysisServiceStub(self.channel()), token)

    def catalogue(self, token: str | None = KEY) -> Any:
        return Signed(CatalogServiceStub(self.channel()), token)


class Signed:
    """A stub whose calls carry a token, and end within ten seconds unless told otherwise."""

    def __init__(self, stub: Any, token: str | None) -> None:
        self._stub = stub
        self._metadata = None if token is None else bearer(token)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._stub, name)
        return lambda request, **more: method(request, **({"metadata": self._metadata, "timeout": 10} | more))


@contextmanager
def serving(state: Path, **settings: Any) -> Iterator[Api]:
    """A server over a ledger of its own."""
    known = Settings(
        state=state,
        model_repository=Path(__file__).parents[2] / "model_repository",
        **{"grpc_port": 0, "rate_limit": 100_000, "login_limit": 100_000} | settings,
    )
    ledger = Ledger.open(known.ledger_url, state)
    engine = open_database(known.ledger_url, state)
    authenticator = Authenticator(known, engine, ApiKey.of(KEY))
    ready = [True]
    limit = RequestLimit(known.rate_limit)
    with open_grpc(known, "127.0.0.1", Service(known, ledger), authenticator, limit, lambda: ready[0]) as port:
        api = Api(port, state, ledger, known, ready)
        try:
            yield api
        finally:
            for channel in api.channels:
                channel.close()
    engine.dispose()
    ledger.close()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving(tmp_path_factory.mktemp("grpc") / "state") as running:
        yield running


@pytest.fixture(scope="module")
def client(api: Api) -> Any:
    return api.analyses()
