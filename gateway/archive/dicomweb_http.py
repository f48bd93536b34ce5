"""HTTP with one DICOMweb server: its address, the limits, and every failure as a typed error in bounded time."""

import json
import logging
import random
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import unquote, urlsplit

import httpx

from gateway.archive.breaker import Breaker
from gateway.archive.dicomweb_answers import Transient, judge, translated
from gateway.archive.dicomweb_auth import Credentials
from gateway.archive.dicomweb_wire import Limits, Wire, never
from gateway.archive.metrics import PACS_REQUEST_SECONDS
from gateway.domain.uids import is_uid
from gateway.operations.errors import ArchiveRefused, ArchiveUnavailable, Cancelled, InvalidSetting
from gateway.operations.outbound import is_loopback

__all__ = [
    "DICOM_JSON",
    "Endpoint",
    "Limits",
    "Session",
    "Transient",
    "all_pages",
    "matches",
    "never",
    "text",
    "values",
]

_log = logging.getLogger(__name__)

DICOM_JSON = "application/dicom+json"
_SCHEME = "dicomweb://"
_MODALITY, _SERIES_INSTANCES = "00080060", "00201209"
_PAGE = 500
# A PACS may read or write a whole instance, of gigabytes, before it begins to answer.
_PREPARED, _PATIENCE = {"frames", "head", "retrieve", "store", "verify"}, 3.0
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the server is: base URL without a closing slash, and a user for basic authentication where it has one."""

    url: str
    user: str | None = None
    password: str = field(default="", repr=False)

    @classmethod
    def from_address(cls, address: str, *, tls: bool = False) -> Self:
        """The endpoint of `dicomweb://[USER:PASSWORD@]HOST[:PORT]/PATH`.

        Plain HTTP is spoken on loopback, unless `tls`; TLS everywhere else. Raises InvalidSetting.
        """
        wrong = InvalidSetting(
            "The archive address is not valid: write dicomweb://[USER:PASSWORD@]HOST[:PORT]/PATH, "
            "with special characters in USER and PASSWORD percent-encoded."
        )
        try:
            parts = urlsplit(address)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise wrong from None
        if not address.startswith(_SCHEME) or not host or parts.query or parts.fragment or not address.isprintable():
            raise wrong
        authority = f"[{host}]" if ":" in host else host
        if port is not None:
            authority += f":{port}"
        scheme = "http" if is_loopback(host) and not tls else "https"
        return cls(
            url=f"{scheme}://{authority}{parts.path.rstrip('/')}",
            user=None if parts.username is None else unquote(parts.username),
            password=unquote(parts.password or ""),
        )

    @property
    def address(self) -> str:
        """The address without credentials."""
        return _SCHEME + self.url.partition("://")[2]


class Session:
    """One conversation with the server; close it (context manager) when the operation is over.

    Credentials go to this server only: no URL that the server names is ever followed (see `Wire` for the rest).
    """

    def __init__(
        self,
        endpoint: Endpoint,
        limits: Limits,
        tls: ssl.SSLContext,
        credentials: Credentials,
        breaker: Breaker,
        cancelled: Callable[[], bool] = never,
    ) -> None:
        self.limits = limits
        self.cancelled = cancelled
        self._url = endpoint.url
        self._credentials = credentials
        self._breaker = breaker
        self._wire = Wire(limits, tls, cancelled)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wire.__exit__(kind, error, trace)

    def check_cancelled(self) -> None:
        """Raise Cancelled where the caller has given up."""
        if self.cancelled():
            raise Cancelled("The analysis was cancelled.")

    def repeated(self, work: Callable[[], _T]) -> _T:
        """The result of `work`, tried again after Transient failures, with growing, jittered pauses.

        `work` has to be safe to repeat: all that we send is (searches, retrievals, and storing, which is by UID).
        """
        for tried in range(self.limits.attempts - 1):
            try:
                return work()
            except Transient as error:
                # Jitter keeps many workers from coming back in the same instant.
                pause_s = self.limits.backoff_s * 2**tried * random.uniform(0.5, 1.5)  # noqa: S311
                self._pause(max(pause_s, error.after_s))
        return work()

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.check_cancelled()
            time.sleep(min(left, 0.2))

    @contextmanager
    def request(
        self,
        operation: str,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        params: Sequence[tuple[str, str]] = (),
        content: Iterable[bytes] | None = None,
        content_bytes: int = 0,
    ) -> Iterator[httpx.Response]:
        """One answer, its body unread. Status 2xx, 400, 404, 406, 409, 414 and 415 are the caller's to judge.

        A refused access token is renewed once, and the request sent again: `content` has to give its bytes anew each
        time that it is iterated. Raises Transient, ArchiveUnavailable, ArchiveRefused, also for what goes wrong while
        the caller reads.
        """
        began = time.monotonic()
        try:
            for last in (False, True):
                shown = self._credentials.authorization()
                sent = dict(headers) if shown is None else {**headers, "Authorization": shown}
                self._breaker.admit()
                with (
                    self._failures_counted(),
                    translated(),
                    self._wire.answer(
                        method,
                        self._url + path,
                        headers=sent,
                        params=params,
                        content=content,
                        content_bytes=content_bytes,
                        patience=_PATIENCE if operation in _PREPARED else 1.0,
                    ) as response,
                ):
                    if response.status_code != 401 or last:
                        judge(response, self.limits.retry_after_s)
                        self._breaker.answered()
                        yield response
                        return
                    self._breaker.answered()
                if not self._credentials.renew(shown):
                    judge(response, self.limits.retry_after_s)
        finally:
            seconds = time.monotonic() - began
            PACS_REQUEST_SECONDS.labels(operation).observe(seconds)
            _log.debug("%s %s took %.3f s", operation, path, seconds)

    @contextmanager
    def _failures_counted(self) -> Iterator[None]:
        try:
            yield
        except ArchiveUnavailable:
            self.check_cancelled()  # which cuts the connection, and is no fault of the server
            self._breaker.failed()
            raise
        except ArchiveRefused:
            self._breaker.answered()
            raise

    def pieces(self, response: httpx.Response, most: int) -> Iterator[bytes]:
        """The body of an answer in pieces; bounded in size, in silence, and in slowness.

        Raises Cancelled, ArchiveRefused (too long), ArchiveUnavailable (too slow).
        """
        began = time.monotonic()
        size = 0
        for piece in response.iter_bytes():
            self.check_cancelled()
            size += len(piece)
            if size > most:
                raise ArchiveRefused("The PACS sends more than a slide or a listing can hold: check its address.")
            if time.monotonic() - began > self.limits.read_s + size / self.limits.slowest_bytes_s:
                raise ArchiveUnavailable("The PACS sends too slowly: check the network between it and this server.")
            yield piece

    def listing(self, operation: str, path: str, params: Sequence[tuple[str, str]] = ()) -> list[dict[str, Any]] | None:
        """The answer to a search (QIDO-RS, PS3.18 10.6): its matches in DICOM JSON; None where it says 404.

        Raises ArchiveUnavailable, ArchiveRefused.
        """
        return self.repeated(lambda: self._listing(operation, path, params))

    def _listing(self, operation: str, path: str, params: Sequence[tuple[str, str]]) -> list[dict[str, Any]] | None:
        with self.request(operation, "GET", path, headers={"Accept": DICOM_JSON}, params=params) as response:
            if response.status_code == 404:
                return None
            if response.status_code == 204:
                return []
            if response.status_code != 200:
                raise ArchiveRefused(
                    f"The PACS refused a search (HTTP {response.status_code}): see its address and its manual."
                )
            return matches(self.body(response))

    def body(self, response: httpx.Response) -> bytes:
        """The whole body of a short answer. Raises as `pieces`."""
        return b"".join(self.pieces(response, self.limits.answer_bytes))


def matches(body: bytes) -> list[dict[str, Any]]:
    """The data sets of a DICOM JSON array (PS3.18 F.2). Raises ArchiveRefused."""
    try:
        found = json.loads(body) if body.strip() else []
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(match, dict) for match in found):
        raise ArchiveRefused("The PACS did not answer in DICOM JSON: check that its address is that of DICOMweb.")
    return found


def all_pages(
    session: Session, path: str, key: str, params: Sequence[tuple[str, str]] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """All matches of a search by their UID, page after page. Raises ArchiveRefused where a UID is not one."""
    seen: set[str] = set()
    # The parameter is repeated: servers ignore a list whose comma is percent-encoded.
    include = [*params, ("includefield", _MODALITY), ("includefield", _SERIES_INSTANCES)]
    offset = 0
    while True:
        page = session.listing("find", path, [*include, ("limit", str(_PAGE)), ("offset", str(offset))]) or []
        fresh = [(uid, match) for match in page if (uid := text(match, key) or "") not in seen]
        for uid, match in fresh:
            # It becomes a path and a URL: a UID is the only thing it may be.
            if not is_uid(uid):
                raise ArchiveRefused("The PACS lists an object whose UID is not valid: correct it in the PACS.")
            seen.add(uid)
            yield uid, match
        # Servers cut pages at limits of their own, and some know no offset: only a page without news is the last.
        if not fresh:
            return
        offset += len(page)
        if offset > session.limits.instances:
            raise ArchiveRefused("The PACS lists more objects than a slide has: check the order and the PACS.")


def values(dataset: Mapping[str, Any], tag: str) -> list[Any]:
    """The values of one attribute of a DICOM JSON data set; empty where it is absent or malformed."""
    element = dataset.get(tag)
    found = element.get("Value") if isinstance(element, dict) else None
    return found if isinstance(found, list) else []


def text(dataset: Mapping[str, Any], tag: str) -> str | None:
    """The first value of one attribute of a DICOM JSON data set where that is text."""
    found = values(dataset, tag)
    return found[0] if found and isinstance(found[0], str) else None
