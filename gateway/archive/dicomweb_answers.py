"""What an answer, or none, means: every failure of HTTP with a PACS as a typed error that says what to do."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from gateway.archive.dicomweb_multipart import first_part, media_type
from gateway.operations.errors import ArchiveRefused, ArchiveUnavailable
from gateway.operations.retry_after import retry_after_s

_CALLERS = (400, 404, 406, 409, 414, 415)
_EXPLANATION_BYTES, _EXPLANATION_S = 8192, 5.0
_CERTIFICATE_REFUSED = (
    "The PACS does not accept our client certificate, or misses one: check PATHSERVE_ARCHIVE_CERTIFICATE, its end of "
    "validity, and which authority the PACS asks for."
)


class Transient(ArchiveUnavailable):
    """Worth another try at once (after `after_s` seconds): no connection, a broken one, or a server error."""


def judge(response: httpx.Response, most_wait_s: float) -> None:
    """Return where the answer is the caller's to judge: 2xx, and the refusals that have a meaning in DICOMweb.

    The body of a 400 may have been read by then. A Retry-After (RFC 9110 10.2.3) of at most `most_wait_s` seconds is
    waited for; a longer one is left to whoever tries the whole operation again.
    Raises Transient, ArchiveUnavailable, ArchiveRefused.
    """
    status = response.status_code
    if status == 401:
        raise ArchiveRefused(
            "The PACS does not accept who we are (HTTP 401): correct the user name and password in its address, or the "
            "token or OAuth client in the settings PATHSERVE_ARCHIVE_…."
        )
    if status == 403:
        raise ArchiveRefused("The PACS does not allow this to the configured user (HTTP 403): grant it the right.")
    if status in (408, 429) or status >= 500:
        after_s = retry_after_s(response.headers.get("retry-after"))
        busy = status in (408, 429)
        what = f"The PACS is too busy (HTTP {status})" if busy else f"The PACS has an error of its own (HTTP {status})"
        what += ": try again later." if busy else ": see its log."
        if (busy and after_s is None) or (after_s or 0.0) > most_wait_s:
            raise ArchiveUnavailable(what, after_s or 0.0)
        raise Transient(what, after_s or 0.0)
    if 300 <= status < 400:
        raise ArchiveRefused(
            f"The PACS redirects elsewhere (HTTP {status}), which is never followed: configure its final address."
        )
    if status == 413:
        raise ArchiveRefused(
            "The PACS takes no object that large (HTTP 413): raise its limit, or that of the proxy before it (nginx: "
            "client_max_body_size)."
        )
    if not (200 <= status < 300 or status in _CALLERS):
        raise ArchiveRefused(f"The PACS refused the request (HTTP {status}).")
    if status == 400 and "html" in response.headers.get("content-type", ""):
        _explain(response)


def _explain(response: httpx.Response) -> None:
    """Raise ArchiveRefused where a proxy before the PACS says that it is TLS which is wrong (nginx answers 400)."""
    page = b""
    until = time.monotonic() + _EXPLANATION_S
    for piece in response.iter_bytes():
        page += piece
        if len(page) > _EXPLANATION_BYTES or time.monotonic() > until:
            return
    if b"SSL certificate" in page:
        raise ArchiveRefused(_CERTIFICATE_REFUSED)
    if b"plain HTTP request was sent to HTTPS" in page:
        raise ArchiveRefused(
            "The PACS speaks TLS at this loopback address: name its authority in PATHSERVE_ARCHIVE_AUTHORITIES."
        )


def dicom_in(response: httpx.Response, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The DICOM file within an answer, of one part or of several. Raises ArchiveRefused, MultipartError."""
    kind = media_type(response.headers.get("content-type", ""))
    if kind.name == "multipart/related" and kind.boundary:
        part = first_part(pieces, kind.boundary)
        kind, pieces = media_type(part.headers.get("content-type", "application/dicom")), part.body
    if kind.name not in ("application/dicom", "application/octet-stream"):
        raise ArchiveRefused(
            "The PACS did not answer with DICOM: check that the archive's address is that of DICOMweb."
        )
    return pieces


@contextmanager
def translated() -> Iterator[None]:
    """What httpx raises, as Transient, ArchiveUnavailable or ArchiveRefused."""
    try:
        yield
    except httpx.ConnectTimeout:
        raise Transient("The PACS cannot be reached in time: check that it runs and the network to it.") from None
    except httpx.ConnectError as error:
        raise _not_connected(str(error)) from None
    except httpx.TimeoutException:
        raise ArchiveUnavailable("The PACS stopped answering: try again when it is well.") from None
    except httpx.TransportError as error:
        if _is_about_our_certificate(str(error)):
            # With TLS 1.3 a client certificate is judged after the handshake, so that the first read fails.
            raise ArchiveRefused(_CERTIFICATE_REFUSED) from None
        raise Transient("The PACS broke the connection: see its log.") from None
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError):
        raise ArchiveRefused("The PACS answers in a way that cannot be read: check its address.") from None


def _not_connected(said: str) -> ArchiveUnavailable | ArchiveRefused:
    if "CERTIFICATE_VERIFY_FAILED" in said:
        if "ostname mismatch" in said or "IP address mismatch" in said:
            return ArchiveRefused(
                "The certificate of the PACS is that of another host: write the name in it into the archive's address."
            )
        if "has expired" in said:
            return ArchiveRefused("The certificate of the PACS has expired: have it renewed.")
        return ArchiveRefused(
            "The certificate of the PACS is not trusted: install its authority on this machine, or name it in "
            "PATHSERVE_ARCHIVE_AUTHORITIES."
        )
    if _is_about_our_certificate(said):
        return ArchiveRefused(_CERTIFICATE_REFUSED)
    if "PROTOCOL" in said or "WRONG_VERSION_NUMBER" in said:
        return ArchiveRefused(
            "The PACS does not speak TLS 1.2 or newer at this address: check the port, and have its TLS brought up to "
            "date."
        )
    return Transient("The PACS cannot be reached: check that it runs and the network to it.")


def _is_about_our_certificate(said: str) -> bool:
    """Whether OpenSSL tells of an alert (RFC 8446 6.2) that refuses a client certificate, or the want of one."""
    return "_ALERT_" in said and any(
        alert in said for alert in ("CERTIFICATE", "UNKNOWN_CA", "HANDSHAKE_FAILURE", "ACCESS_DENIED")
    )
