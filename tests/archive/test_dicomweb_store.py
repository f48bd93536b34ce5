"""Storing in a PACS that refuses, alters, loses or mixes up what it is given."""

from pathlib import Path

import pytest

from gateway.archive.dicomweb import DicomWebArchive
from gateway.archive.dicomweb_http import Limits
from gateway.operations.errors import ArchiveRefused, ArchiveUnavailable, PathserveError
from tests.support.dicom import dicom_file
from tests.support.rogue_answers import hang, reset, retrieving
from tests.support.rogue_pacs import MULTIPART, SOP, Answer, Request, RoguePacs, dicom_json, multipart, running

LIMITS = Limits(connect_s=1, read_s=0.5, write_s=0.5, backoff_s=0.01, instance_bytes=200_000, visible_s=0.2)
FILE = dicom_file()
GIVEN_BACK = retrieving(200, MULTIPART, multipart(FILE))


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
        store(RoguePacs(store=answer, retrieve=GIVEN_BACK), tmp_path)


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
    pacs = RoguePacs(store=answer, retrieve=GIVEN_BACK)
    store(pacs, tmp_path)
    assert pacs.asked("/instances?") == 1  # it was looked for afterwards
    assert pacs.asked(f"/instances/{SOP}") == 1  # and read back


def test_a_result_is_sent_as_it_is(tmp_path: Path) -> None:
    bodies: list[bytes] = []

    def keep(request: Request) -> None:
        bodies.append(request.body)
        request.answer(200, "application/dicom+json", b"{}")

    store(RoguePacs(store=keep, retrieve=GIVEN_BACK), tmp_path)
    [body] = bodies
    edge = body.partition(b"\r\n")[0]
    assert body == edge + b"\r\nContent-Type: application/dicom\r\n\r\n" + FILE + b"\r\n" + edge + b"--\r\n"


def test_a_result_that_does_not_appear(tmp_path: Path) -> None:
    with pytest.raises(ArchiveUnavailable, match="does not list it"):
        store(RoguePacs(list_instances=dicom_json()), tmp_path)
