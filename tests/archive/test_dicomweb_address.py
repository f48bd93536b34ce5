"""Archive addresses of DICOMweb."""

import pytest

from gateway.archive.dicomweb import DicomWebArchive
from gateway.archive.dicomweb_http import Endpoint
from gateway.operations.errors import InvalidSetting


@pytest.mark.parametrize(
    ("address", "url", "user", "password"),
    [
        ("dicomweb://pacs.example/dicom-web", "https://pacs.example/dicom-web", None, ""),
        ("dicomweb://pacs.example:8443/rs/", "https://pacs.example:8443/rs", None, ""),
        ("dicomweb://me:p%40ss%3A%2Fw@pacs.example/rs", "https://pacs.example/rs", "me", "p@ss:/w"),
        ("dicomweb://me@pacs.example/rs", "https://pacs.example/rs", "me", ""),
        ("dicomweb://127.0.0.1:8042/dicom-web", "http://127.0.0.1:8042/dicom-web", None, ""),
        ("dicomweb://127.9.9.9/rs", "http://127.9.9.9/rs", None, ""),
        ("dicomweb://localhost:8042/rs", "http://localhost:8042/rs", None, ""),
        ("dicomweb://[::1]:8042/rs", "http://[::1]:8042/rs", None, ""),
        ("dicomweb://[2001:db8::1]/rs", "https://[2001:db8::1]/rs", None, ""),
        ("dicomweb://localhost.evil.example/rs", "https://localhost.evil.example/rs", None, ""),
        ("dicomweb://127.0.0.1.evil.example/rs", "https://127.0.0.1.evil.example/rs", None, ""),
        ("dicomweb://pacs.example", "https://pacs.example", None, ""),
    ],
)
def test_addresses(address: str, url: str, user: str | None, password: str) -> None:
    assert Endpoint.from_address(address) == Endpoint(url, user, password)


@pytest.mark.parametrize(
    "address",
    [
        "dicomweb://",
        "dicomweb:///rs",
        "dicomweb://user:hidden-word@/rs",
        "dicomweb://user:hidden-word@pacs.example:port/rs",
        "dicomweb://user:hidden-word@pacs.example:99999/rs",
        "dicomweb://user:hidden-word@pacs.example/rs?key=value",
        "dicomweb://user:hidden-word@pacs.example/rs#part",
        "dicomweb://user:hidden-word@[::1/rs",
        "dicomweb://pacs.example/r\ns",
        "http://pacs.example/rs",
        "",
    ],
)
def test_wrong_addresses(address: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        DicomWebArchive.from_address(address)
    assert "hidden-word" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_credentials_are_not_shown() -> None:
    archive = DicomWebArchive.from_address("dicomweb://me:hidden-word@pacs.example:8443/rs")
    assert archive.address == "dicomweb://pacs.example:8443/rs"
    assert "hidden-word" not in repr(Endpoint.from_address("dicomweb://me:hidden-word@pacs.example:8443/rs"))
