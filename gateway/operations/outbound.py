"""Which hosts we call: those that the settings name, and no others (against server-side request forgery).

A name that is allowed may still lead somewhere else (a changed DNS entry): the addresses behind it are checked too,
before a call by `check_outbound`, and on the connection itself by `guard`.
"""

import ipaddress
import socket
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any
from urllib.parse import SplitResult, urlsplit

from gateway.operations.errors import TargetNotAllowed

_CONNECTED = "connection.connect_tcp.complete"
_PORTS = {"https": 443, "http": 80}
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Where clouds tell a machine its secrets, besides the link-local 169.254.169.254: AWS over IPv6, Alibaba, Oracle.
_METADATA = frozenset(map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200", "192.0.0.192")))


def is_loopback(host: str) -> bool:
    """True for this machine's own addresses: what is sent there is not seen on any network."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def authority(url: str) -> str:
    """`HOST:PORT` of an address, as an entry of an allow-list. Raises TargetNotAllowed where it is no address."""
    parts = _split(url)
    return _joined(str(parts.hostname), parts.port or _PORTS[parts.scheme])


def check_outbound(url: str, allowed: Iterable[str]) -> None:
    """Refuse to call `url` unless its host is in `allowed` (`HOST` for any port, or `HOST:PORT`).

    TLS, or plain HTTP on loopback; no user in the address. Of the addresses that its name leads to, none may be
    link-local, a cloud's metadata service or no host's at all; loopback is only for a host that is written so.
    A name that leads nowhere now is not refused: the call itself fails, and may be tried again.
    Raises TargetNotAllowed.
    """
    parts = _split(url)
    host, port = str(parts.hostname), parts.port or _PORTS[parts.scheme]
    names = {host, f"[{host}]", _joined(host, port)}
    if names.isdisjoint(entry.lower().rstrip(".") for entry in allowed):
        raise TargetNotAllowed(
            "The target's host is not one that may be called: add it to PATHSERVE_OUTBOUND_HOSTS if it should be."
        )
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return
    for *_, address in found:
        _check_address(str(address[0]), host)


def guard(url: str) -> Callable[[str, Mapping[str, Any]], Coroutine[Any, Any, None]]:
    """The `trace` extension of an httpx.AsyncClient's request: nothing is sent to an address that is not allowed.

    A name may lead elsewhere by the time of the connection. The request then raises TargetNotAllowed.
    """
    host = str(_split(url).hostname)

    async def trace(event: str, info: Mapping[str, Any]) -> None:
        if event == _CONNECTED:
            try:
                _check_peer(info["return_value"], host)
            except TargetNotAllowed:
                await info["return_value"].aclose()
                raise

    return trace


def _check_peer(stream: Any, host: str) -> None:
    _check_address(str(stream.get_extra_info("server_addr")[0]), host)


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or not url.isascii() or not url.isprintable() or "\\" in url or " " in url:
        raise TargetNotAllowed("The target is no address of the form https://HOST[:PORT]/PATH.")
    if parts.username is not None or parts.password is not None:
        raise TargetNotAllowed("The target's address holds a user name, which may not be sent there: remove it.")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
        raise TargetNotAllowed("The target would be called in the clear: write https:// (http:// on loopback only).")
    return parts._replace(netloc=_joined(host.rstrip("."), parts.port or _PORTS[parts.scheme]))


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _check_address(text: str, host: str) -> None:
    address = _inner(ipaddress.ip_address(text.partition("%")[0]))
    if address.is_loopback:
        wrong = not is_loopback(host)
    else:
        wrong = address.is_link_local or address.is_multicast or address.is_unspecified or address.is_reserved
    if wrong or address in _METADATA:
        raise TargetNotAllowed(
            "The target's name leads to an address that is never called (link-local, metadata, loopback): correct its "
            "DNS entry, or write a loopback address as such."
        )


def _inner(address: _Address) -> _Address:
    """The IPv4 address that an IPv6 address stands for, where it does (RFC 4291 2.5.5.2, 3056, 6052)."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address.sixtofour or address
    return address
