"""Webhooks: signed as Standard Webhooks says, to configured targets only, and every answer understood."""

import ssl
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gateway.delivery import WebhookTargets, send_webhook
from gateway.domain.delivery import Channel, Delivery, DeliveryState, target_name
from gateway.operations.errors import (
    DeliveryError,
    DeliveryRefused,
    DeliveryUnavailable,
    InvalidSetting,
    TargetNotAllowed,
)
from gateway.operations.settings import Settings
from tests.delivery.receiver import OLD_SECRET, SECRET, Receiver, running_receiver
from tests.support.certificates import Authority
from tests.support.orthanc import free_port

BODY = {"type": "analysis.completed", "timestamp": "2026-01-02T03:04:05+00:00", "data": {"analysis": "a-1", "ü": "é"}}


@pytest.fixture(scope="module")
def shared() -> Iterator[Receiver]:
    with running_receiver() as receiver:
        yield receiver


@pytest.fixture
def receiver(shared: Receiver) -> Receiver:
    shared.fail_with()
    return shared


def targets_of(*addresses: str, secrets: tuple[str, ...] = (SECRET,)) -> WebhookTargets:
    return WebhookTargets.from_settings(Settings(webhooks=addresses, webhook_secrets=secrets))


def delivery_to(address: str, identifier: str = "d-1") -> Delivery:
    now = datetime.now(UTC)
    return Delivery(
        number=1,
        id=identifier,
        tenant="default",
        analysis="a-1",
        revision=None,
        channel=Channel.WEBHOOK,
        target=target_name(address),
        event="analysis.completed",
        body=BODY,
        state=DeliveryState.PENDING,
        tries=1,
        replays=0,
        done=0,
        next=now,
        worker="w",
        reason=None,
        detail=None,
        created=now,
        settled=None,
    )


def test_it_arrives_signed_with_the_deliverys_id(receiver: Receiver) -> None:
    send_webhook(delivery_to(receiver.url, "d-signed"), targets_of(receiver.url))
    (taken,) = [each for each in receiver.received() if each["id"] == "d-signed"]
    assert taken["body"] == BODY
    assert taken["headers"]["content-type"] == "application/json"
    assert abs(int(taken["headers"]["webhook-timestamp"]) - time.time()) < 10
    assert receiver.refused() == 0


@pytest.mark.parametrize("secrets", [(OLD_SECRET, SECRET), (SECRET, OLD_SECRET)])
def test_while_a_secret_is_rotated_both_sign(receiver: Receiver, secrets: tuple[str, ...]) -> None:
    send_webhook(delivery_to(receiver.url), targets_of(receiver.url, secrets=secrets))
    assert len(receiver.received()[-1]["headers"]["webhook-signature"].split()) == 2


def test_a_wrong_secret_is_noticed_by_the_receiver(receiver: Receiver) -> None:
    with pytest.raises(DeliveryUnavailable, match="HTTP 401"):
        send_webhook(delivery_to(receiver.url), targets_of(receiver.url, secrets=(OLD_SECRET,)))


@pytest.mark.parametrize("status", [400, 401, 404, 408, 429, 500, 503])
def test_what_may_pass_is_tried_again(receiver: Receiver, status: int) -> None:
    receiver.fail_with(status)
    with pytest.raises(DeliveryUnavailable, match=f"HTTP {status}") as raised:
        send_webhook(delivery_to(receiver.url), targets_of(receiver.url))
    assert raised.value.retryable
    assert raised.value.after_s == 0


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("form", ["seconds", "date", "nonsense"])
def test_a_target_says_when_it_wants_to_be_asked_again(receiver: Receiver, status: int, form: str) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=120), usegmt=True)
    text, least, most = {"seconds": ("120", 120, 120), "date": (date, 110, 120), "nonsense": ("soon", 0, 0)}[form]
    receiver.fail_with({"status": status, "headers": {"retry-after": text}})
    with pytest.raises(DeliveryUnavailable) as raised:
        send_webhook(delivery_to(receiver.url), targets_of(receiver.url))
    assert least <= raised.value.after_s <= most


def test_gone_is_dead_at_once(receiver: Receiver) -> None:
    receiver.fail_with(410)
    with pytest.raises(DeliveryRefused, match="gone") as raised:
        send_webhook(delivery_to(receiver.url), targets_of(receiver.url))
    assert not raised.value.retryable


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_never_followed(receiver: Receiver, status: int) -> None:
    before = len(receiver.received())
    receiver.fail_with({"status": status, "headers": {"location": receiver.url}})
    with pytest.raises(DeliveryRefused, match="never followed"):
        send_webhook(delivery_to(receiver.url), targets_of(receiver.url))
    assert len(receiver.received()) == before + 1


def test_a_target_that_is_down_or_silent_is_tried_again(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    down = f"http://127.0.0.1:{free_port()}/hook"
    with pytest.raises(DeliveryUnavailable, match="does not answer"):
        send_webhook(delivery_to(down), targets_of(down))
    monkeypatch.setattr("gateway.delivery.webhook.TIMEOUT_S", 0.3)
    receiver.fail_with({"status": 204, "sleep_s": 2})
    with pytest.raises(DeliveryUnavailable, match="does not answer"):
        send_webhook(delivery_to(receiver.url), targets_of(receiver.url))


def test_a_target_that_answers_drop_by_drop_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each drop comes in time, the answer does not."""
    monkeypatch.setattr("gateway.delivery.webhook.TIMEOUT_S", 0.5)
    done = threading.Event()

    class Dripping(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            for _ in range(300):
                if done.wait(0.1):
                    break
                self.wfile.write(b"H")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Dripping)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/hook"
    began = time.monotonic()
    try:
        with pytest.raises(DeliveryUnavailable, match="does not answer"):
            send_webhook(delivery_to(address), targets_of(address))
        assert time.monotonic() - began < 15.0
    finally:
        done.set()
        server.shutdown()
        server.server_close()


def test_a_certificate_that_nobody_trusts_is_told_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    class Taking(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.append(self.headers["webhook-id"])
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    authority = Authority(tmp_path / "authority")
    issued = authority.issue("server", tmp_path, name="localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.certificate, issued.key)
    with ThreadingHTTPServer(("127.0.0.1", 0), Taking) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"https://localhost:{server.server_port}/hook"
        with pytest.raises(DeliveryUnavailable, match="does not answer"):
            send_webhook(delivery_to(address, "d-tls"), targets_of(address))
        assert taken == []
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
        send_webhook(delivery_to(address, "d-tls"), targets_of(address))
        assert taken == ["d-tls"]
        server.shutdown()


def test_a_target_that_is_not_configured_any_more_is_not_called(receiver: Receiver) -> None:
    before = len(receiver.received())
    with pytest.raises(TargetNotAllowed, match="no longer"):
        send_webhook(delivery_to(receiver.url), targets_of(f"{receiver.url}/other"))
    assert len(receiver.received()) == before


def test_no_error_says_where_the_target_is() -> None:
    address = f"http://127.0.0.1:{free_port()}/secret-path"
    with pytest.raises(DeliveryError) as raised:
        send_webhook(delivery_to(address), targets_of(address))
    assert "secret" not in raised.value.detail
    assert "127" not in raised.value.detail
    assert "secret" not in target_name(address)
    assert "secret" not in repr(targets_of(address))
    assert SECRET not in repr(targets_of(address))


@pytest.mark.parametrize(
    ("webhooks", "secrets", "name"),
    [
        (("https://lis.example/hook",), (), "PATHSERVE_WEBHOOK_SECRETS"),
        (("http://lis.example/hook",), (SECRET,), "PATHSERVE_WEBHOOKS"),
        (("ftp://lis.example/hook",), (SECRET,), "PATHSERVE_WEBHOOKS"),
        (("https://user:password@lis.example/",), (SECRET,), "PATHSERVE_WEBHOOKS"),
        (("lis.example",), (SECRET,), "PATHSERVE_WEBHOOKS"),
        (("https://lis.example/hook",), ("whsec_c2hvcnQ=",), "PATHSERVE_WEBHOOK_SECRETS"),
        (("https://lis.example/hook",), ("whsec_%%%",), "PATHSERVE_WEBHOOK_SECRETS"),
        (("https://lis.example/hook",), (SECRET.removeprefix("whsec_"),), "PATHSERVE_WEBHOOK_SECRETS"),
        (("https://lis.example/hook",), ("",), "PATHSERVE_WEBHOOK_SECRETS"),
    ],
)
def test_wrong_settings_are_told_at_the_start(webhooks: tuple[str, ...], secrets: tuple[str, ...], name: str) -> None:
    with pytest.raises(InvalidSetting, match=name):
        targets_of(*webhooks, secrets=secrets)


def test_nobody_is_told_where_nothing_is_configured() -> None:
    assert targets_of(secrets=()).addresses == {}
