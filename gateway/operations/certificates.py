"""Until when a certificate is valid: what TLS does not tell of our own."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.x509 import load_pem_x509_certificate

from gateway.operations.doctor import Finding
from gateway.operations.errors import InvalidSetting

_LEAST = timedelta(days=14)


def valid_until(certificate: Path, setting: str) -> datetime:
    """The end of validity of the first certificate in the PEM file that a setting names. Raises InvalidSetting."""
    try:
        return load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    except OSError as error:
        raise InvalidSetting(
            f"The file that {setting} names cannot be read ({error.strerror}): check its name and mode."
        ) from None
    except ValueError:
        raise InvalidSetting(f"{setting} is not a certificate in PEM.") from None


def still_valid(name: str, certificate: Path, setting: str) -> Finding:
    """For `pathserve doctor`: whether the certificate lasts another two weeks. Raises InvalidSetting."""
    until = valid_until(certificate, setting)
    lasting = until - datetime.now(UTC) > _LEAST
    return name, lasting, f"ours is valid until {until:%Y-%m-%d}" + ("" if lasting else "; have it renewed")
