"""A PACS that misbehaves: each time a typed error, in bounded time, with nothing half-kept."""

import ssl
import subprocess
from pathlib import Path

import pytest

from gateway.archive.dicomweb import DicomWebArchive
from gateway.archive.dicomweb_http import Endpoint, Limits
from gateway.operations.errors import (
    ArchiveRefused,
    ArchiveUnavailable,
    PathserveError,
    SlideNotInArchive,
)
from tests.support.dicom import dicom_file
from tests.support.rogue_answers import hang, reset, retrieving
from tests.support.rogue_pacs import (
    MULTIPART,
    SERIES,
    STUDY,
    Answer,
    Request,
    RoguePacs,
    dicom_json,
    multipart,
    once_listed,
    running,
)

LIMITS = Limits(connect_s=1, read_s=0.5, backoff_s=0.01, instance_bytes=200_000, visible_s=0.2)
FILE = dicom_file()


@pytest.mark.parametrize(
    ("listing", "error"),
    [
        pytest.param(hang, ArchiveUnavailable, id="hangs"),
        pytest.param(reset, ArchiveUnavailable, id="resets"),
        pytest.param(retrieving(200, "text/html", b"<html>"), ArchiveRefused, id="html"),
        pytest.param(retrieving(200, "application/dicom+json", b'[{"0008'), ArchiveRefused, id="half-a-document"),
        pytest.param(retrieving(200, "application/dicom+json", b"[" * 200_000), ArchiveRefused, id="deeply-nested"),
        pytest.param(retrieving(200, "application/dicom+json", b'{"a": 1}'), ArchiveRefused, id="no-array"),
        pytest.param(retrieving(200, "application/dicom+json", b"[1]"), ArchiveRefused, id="no-data-sets"),
        pytest.param(retrieving(200, "application/dicom+json", b"[]"), SlideNotInArchive, id="nothing-found"),
        pytest.param(retrieving(204, "", b""), SlideNotInArchive, id="204"),
        pytest.param(retrieving(404, "text/html", b"<html>"), SlideNotInArchive, id="404"),
        pytest.param(once_listed(dicom_json({"0020000E": [SERIES]})), SlideNotInArchive, id="no-modality"),
    ],
)
def test_a_bad_listing(listing: Answer, error: type[PathserveError]) -> None:
    with running(RoguePacs(list_series=listing)) as pacs, pytest.raises(error):
        DicomWebArchive.from_address(pacs.address, LIMITS).find_series(STUDY)


def test_a_listing_without_end() -> None:
    def endless(request: Request) -> None:
        offset = int(request.path.rpartition("offset=")[2])
        dicom_json(*({"0020000E": [f"2.25.{offset + n}"]} for n in range(500)))(request)

    with running(RoguePacs(list_series=endless)) as pacs, pytest.raises(ArchiveRefused, match="more objects"):
        DicomWebArchive.from_address(pacs.address, Limits(instances=2000)).find_series(STUDY)
    assert len(pacs.requests) < 10


def test_a_certificate_that_nobody_vouches_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {key} -out {certificate} "
        "-days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost".split(),
        check=True,
        capture_output=True,
    )
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(certificate, key)
    with running(RoguePacs(retrieve=retrieving(200, MULTIPART, multipart(FILE))), server_side) as pacs:
        endpoint = Endpoint(f"https://localhost:{pacs.port}/dicom-web", "pacs", "secret")
        with pytest.raises(ArchiveRefused, match="certificate"):
            DicomWebArchive(endpoint, LIMITS).probe()
        assert pacs.requests == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        DicomWebArchive(endpoint, LIMITS).probe()
        assert len(pacs.requests) == 1
