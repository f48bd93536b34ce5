"""Which hosts may be called: names, ports, schemes, and the addresses behind the names."""

import socket
import threading
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import httpx
import pytest

from gateway.operations.auth import fetch
from gateway.operations.errors import TargetNotAllowed
from gateway.operations.outbound import authority, check_outbound, guard, is_loopback

PUBLIC = "93.184.215.14"


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The addresses that names lead to; a name that is not here does not exist."""
    known: dict[str, list[str]] = {}
    real = socket.getaddrinfo

    def look_up(host: Any, port: Any, *more: Any, **options: Any) -> Any:
        host = host.decode() if isinstance(host, bytes) else host
        if host in known:
            return [entry for address in known[host] for entry in real(address, port, *more, **options)]
        if all(each in "0123456789.:abcdef" for each in str(host)) or host == "localhost":
            return real(host, port, *more, **options)
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return known


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://hooks.example.org/a?b=c", "hooks.example.org"),
        ("https://HOOKS.example.org./a", "Hooks.Example.ORG"),
        ("https://hooks.example.org:8443/a", "hooks.example.org"),
        ("https://hooks.example.org:8443/a", "hooks.example.org:8443"),
        ("https://hooks.example.org/a", "hooks.example.org:443"),
        ("https://pacs.hospital.internal/a", "pacs.hospital.internal"),
        ("https://10.1.2.3/a", "10.1.2.3"),
        ("https://[2001:db8::7]:8443/", "[2001:db8::7]:8443"),
        ("https://[2001:db8::7]/", "2001:db8::7"),
        ("http://127.0.0.1:8080/", "127.0.0.1:8080"),
        ("http://localhost/", "localhost"),
        ("http://[::1]:9/", "[::1]"),
        ("https://not-there-today.example.org/", "not-there-today.example.org"),
    ],
)
def test_hosts_that_may_be_called(names: dict[str, list[str]], url: str, allowed: str) -> None:
    names["hooks.example.org"] = [PUBLIC]
    names["pacs.hospital.internal"] = ["10.0.0.5", "fd12:3456::1"]
    check_outbound(url, ["another.example.org", allowed])


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example.org/",
        "https://hooks.example.org.evil.example.org/",
        "https://evil.example.org/https://hooks.example.org",
        "https://hooks.example.org:8443/",
        "https://hooks.example.org@evil.example.org/",
        "https://user:password@hooks.example.org/",
        "https://evil.example.org#hooks.example.org",
        "https://evil.example.org\\@hooks.example.org/",
        "https://hooks.example.org\t.evil.example.org/",
        "https://hooks.example.org:99999/",
        "http://hooks.example.org/",
        "ftp://hooks.example.org/",
        "file:///etc/passwd",
        "gopher://hooks.example.org/",
        "//hooks.example.org/",
        "hooks.example.org",
        "",
        "https://",
        "https://[::1",
        "https://127.0.0.1/",
        "https://2130706433/",
        "https://0x7f000001/",
    ],
)
def test_hosts_that_are_not_on_the_list(names: dict[str, list[str]], url: str) -> None:
    names["hooks.example.org"] = names["evil.example.org"] = [PUBLIC]
    with pytest.raises(TargetNotAllowed) as refused:
        check_outbound(url, ["hooks.example.org:443"])
    assert "example" not in refused.value.detail


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "169.254.1.1",
        "fe80::1",
        "fd00:ec2::254",
        "100.100.100.200",
        "0.0.0.0",
        "::",
        "127.0.0.1",
        "127.9.9.9",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::1",
        "224.0.0.1",
        "ff02::1",
        "255.255.255.255",
    ],
)
def test_addresses_that_no_name_may_lead_to(names: dict[str, list[str]], address: str) -> None:
    names["hooks.example.org"] = [PUBLIC, address]
    with pytest.raises(TargetNotAllowed, match="address"):
        check_outbound("https://hooks.example.org/", ["hooks.example.org"])


def test_metadata_services_are_not_called_even_where_listed(names: dict[str, list[str]]) -> None:
    for url in ("https://169.254.169.254/", "https://[fd00:ec2::254]/", "https://[::ffff:169.254.169.254]/"):
        with pytest.raises(TargetNotAllowed):
            check_outbound(url, [authority(url)])


class _Recorder(BaseHTTPRequestHandler):
    seen: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.seen.append(self.path)
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def inside() -> Iterator[int]:
    """The port of a server of our own machine that nobody outside should reach through us."""
    _Recorder.seen.clear()
    with HTTPServer(("127.0.0.1", 0), _Recorder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


async def test_a_name_that_changes_its_mind(names: dict[str, list[str]], inside: int) -> None:
    """DNS rebinding: a public address when it is looked at, our own when it is called."""
    names["hooks.example.org"] = [PUBLIC]
    url = f"https://hooks.example.org:{inside}/secret"
    check_outbound(url, ["hooks.example.org"])
    names["hooks.example.org"] = ["127.0.0.1"]
    async with httpx.AsyncClient(trust_env=False) as client:
        with pytest.raises(TargetNotAllowed):
            await client.get(url, extensions={"trace": guard(url)})
        # In the clear, to see what was sent: nothing at all.
        with pytest.raises(TargetNotAllowed):
            await client.get(url.replace("https", "http"), extensions={"trace": guard(url)})
        assert _Recorder.seen == []
        own = f"http://127.0.0.1:{inside}/own"
        assert (await client.get(own, extensions={"trace": guard(own)})).status_code == 204
    assert _Recorder.seen == ["/own"]


def test_the_same_of_what_an_identity_provider_names(
    names: dict[str, list[str]], inside: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    names["keys.example.org"] = [PUBLIC]
    real = fetch.check_outbound

    def looked_at(url: str, allowed: Iterable[str]) -> None:
        real(url, allowed)
        names["keys.example.org"] = ["127.0.0.1"]

    monkeypatch.setattr(fetch, "check_outbound", looked_at)
    url = f"https://keys.example.org:{inside}/keys"
    with pytest.raises(TargetNotAllowed):
        fetch.get_json(url, ["keys.example.org"])
    assert _Recorder.seen == []


def test_authority() -> None:
    assert authority("https://Hooks.example.org/a") == "hooks.example.org:443"
    assert authority("http://[::1]:8080") == "[::1]:8080"
    with pytest.raises(TargetNotAllowed):
        authority("https:///a")


def test_loopback() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.1.2.3", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.example.org", "")))
