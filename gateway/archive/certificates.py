"""Until when a certificate is valid: the one thing about X.509 (RFC 5280 4.1) that TLS does not tell of our own."""

import ssl
from datetime import UTC, datetime
from pathlib import Path

from gateway.operations.errors import InvalidSetting

_END = "-----END CERTIFICATE-----"
_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18


def valid_until(certificate: Path) -> datetime:
    """The end of validity of the first certificate in a PEM file. Raises InvalidSetting."""
    try:
        text = certificate.read_text("ascii", errors="replace")
    except OSError as error:
        raise InvalidSetting(
            f"The file that PATHSERVE_ARCHIVE_CERTIFICATE names cannot be read ({error.strerror}): check its name and "
            "mode."
        ) from None
    try:
        first = text[text.index("-----BEGIN CERTIFICATE-----") : text.index(_END) + len(_END)]
        return _not_after(ssl.PEM_cert_to_DER_cert(first))
    except (ValueError, IndexError):
        raise InvalidSetting("PATHSERVE_ARCHIVE_CERTIFICATE is not a certificate in PEM.") from None


def _not_after(der: bytes) -> datetime:
    [(_, certificate)] = _elements(der)
    fields = [(kind, value) for kind, value in _elements(_elements(certificate)[0][1]) if kind != _VERSION]
    _serial, _signature, _issuer, (kind, validity) = fields[:4]
    if kind != _SEQUENCE:
        raise ValueError("no validity")
    kind, moment = _elements(validity)[1]
    text = moment.decode("ascii")
    if kind == _UTC_TIME:
        # RFC 5280 4.1.2.5.1: years from 50 on are of the last century.
        text = ("19" if int(text[:2]) >= 50 else "20") + text
    elif kind != _GENERALIZED_TIME:
        raise ValueError("no time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _elements(der: bytes) -> list[tuple[int, bytes]]:
    """The elements (tag, content) one after the other in some DER (X.690). Raises ValueError, IndexError."""
    found, position = [], 0
    while position < len(der):
        tag, length = der[position], der[position + 1]
        position += 2
        if length >= 0x80:
            size = length - 0x80
            length = int.from_bytes(der[position : position + size], "big")
            position += size
        if position + length > len(der):
            raise ValueError("cut off")
        found.append((tag, der[position : position + length]))
        position += length
    return found
