"""A PACS that misbehaves: each time a typed error, in bounded time, with nothing half-kept."""

import socket
import ssl
import struct
import subprocess
from pathlib import Path

import pytest

from gateway.archive.dicomweb import DicomWebArchive
from gateway.archive.dicomweb_http import Endpoint, Limits
from gateway.archive.protocol import SeriesEntry
from gateway.operations.errors import (
    ArchiveRefused,
    ArchiveUnavailable,
    PathserveError,
    SlideNotInArchive,
)
from tests.support.dicom import dicom_file
from tests.support.rogue_pacs import (
    MULTIPART,
    SERIES,
    SOP,
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
ENTRY = SeriesEntry(STUDY, SERIES, 1)
FILE = dicom_file()


def retrieving(status: int, content_type: str, body: bytes, **headers: str) -> Answer:
    return lambda request: request.answer(status, content_type, body, **headers)


def hang(request: Request) -> None:
    request.connection.settimeout(20)
    request.connection.recv(1)  # until the client gives up


def reset(request: Request) -> None:
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.connection.close()


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


def failed(reason: int) -> bytes:
    return (
        b'{"00081198": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["%s"]}, '
        b'"00081197": {"vr": "US", "Value": [%d]}}]}}' % (SOP.encode(), reason)
    )


def store(pacs: RoguePacs, folder: Path) -> None:
    result = folder / "result.dcm"
    result.write_bytes(FILE)
    with running(pacs):
        DicomWebArchive.from_address(pacs.address, LIMITS).store([result])


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        pytest.param(hang, ArchiveUnavailable, id="hangs"),
        pytest.param(reset, ArchiveUnavailable, id="resets"),
        pytest.param(retrieving(503, "", b""), ArchiveUnavailable, id="503"),
        pytest.param(retrieving(401, "", b""), ArchiveRefused, id="401"),
        pytest.param(retrieving(413, "", b""), ArchiveRefused, id="413"),
        pytest.param(retrieving(400, "", b""), ArchiveRefused, id="400"),
        pytest.param(retrieving(409, "", b""), ArchiveRefused, id="409-without-a-reason"),
        pytest.param(retrieving(307, "", b"", Location="http://127.0.0.1:1/"), ArchiveRefused, id="redirect"),
        pytest.param(
            retrieving(409, "application/dicom+json", failed(0x0110)), ArchiveRefused, id="processing-failure"
        ),
        pytest.param(retrieving(202, "application/dicom+json", failed(0x0122)), ArchiveRefused, id="202-but-failed"),
        pytest.param(retrieving(200, "application/dicom+json", failed(0xA900)), ArchiveRefused, id="200-but-failed"),
        pytest.param(retrieving(200, "application/dicom+json", failed(0xA700)), ArchiveUnavailable, id="pacs-full"),
    ],
)
def test_a_refused_result(answer: Answer, error: type[PathserveError], tmp_path: Path) -> None:
    with pytest.raises(error):
        store(RoguePacs(store=answer), tmp_path)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(retrieving(200, "application/dicom+json", b"{}"), id="stored"),
        pytest.param(retrieving(200, "application/dicom+xml", b"<NativeDicomModel/>"), id="answered-in-xml"),
        pytest.param(retrieving(202, "", b""), id="answered-with-nothing"),
        pytest.param(retrieving(409, "application/dicom+json", failed(0x0111)), id="there-already"),
    ],
)
def test_a_stored_result(answer: Answer, tmp_path: Path) -> None:
    pacs = RoguePacs(store=answer)
    store(pacs, tmp_path)
    assert pacs.asked("/instances") == 1  # it was looked for afterwards


def test_a_result_is_sent_as_it_is(tmp_path: Path) -> None:
    bodies: list[bytes] = []

    def keep(request: Request) -> None:
        bodies.append(request.body)
        request.answer(200, "application/dicom+json", b"{}")

    store(RoguePacs(store=keep), tmp_path)
    [body] = bodies
    edge = body.partition(b"\r\n")[0]
    assert body == edge + b"\r\nContent-Type: application/dicom\r\n\r\n" + FILE + b"\r\n" + edge + b"--\r\n"


def test_a_result_that_does_not_appear(tmp_path: Path) -> None:
    with pytest.raises(ArchiveUnavailable, match="does not list it"):
        store(RoguePacs(list_instances=dicom_json()), tmp_path)


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
