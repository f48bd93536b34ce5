"""Storing in a PACS that refuses, alters, loses or mixes up what it is given."""

import io
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from prometheus_client import REGISTRY

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
        store(RoguePacs(store=answer, retrieve=GIVEN_BACK, list_instances=dicom_json()), tmp_path)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(retrieving(200, "application/dicom+json", b"{}"), id="stored"),
        pytest.param(retrieving(200, "application/dicom+xml", b"<NativeDicomModel/>"), id="answered-in-xml"),
        pytest.param(retrieving(202, "", b""), id="answered-with-nothing"),
        pytest.param(retrieving(409, "application/dicom+json", failed(0x0111)), id="there-already"),
        pytest.param(retrieving(409, "application/dicom+json", failed(0xB00B)), id="there-already-in-other-words"),
        pytest.param(retrieving(409, "", b""), id="there-already-without-a-reason"),
    ],
)
def test_a_stored_result(answer: Answer, tmp_path: Path) -> None:
    pacs = RoguePacs(store=answer, retrieve=GIVEN_BACK)
    store(pacs, tmp_path)
    assert pacs.asked("/instances?") >= 1  # it was looked for afterwards
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


def changed(change: Callable[[pydicom.Dataset], None]) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(FILE))
    change(dataset)
    out = io.BytesIO()
    dataset.save_as(out)
    return out.getvalue()


def name_its_sender(dataset: pydicom.Dataset) -> None:
    dataset.file_meta.SourceApplicationEntityTitle = "PACS"


def rename_the_patient(dataset: pydicom.Dataset) -> None:
    dataset.PatientName = "OTHER^NAME"


def rename_the_patient_and_say_so(dataset: pydicom.Dataset) -> None:
    before, record = pydicom.Dataset(), pydicom.Dataset()
    before.PatientName = dataset.PatientName
    record.ModifiedAttributesSequence = [before]
    dataset.OriginalAttributesSequence = [record]
    rename_the_patient(dataset)


def another_one(dataset: pydicom.Dataset) -> None:
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "2.25.9"


@pytest.mark.parametrize(
    "given_back",
    [
        pytest.param(retrieving(200, "application/dicom", FILE), id="in-a-single-part"),
        pytest.param(retrieving(200, MULTIPART, multipart(changed(name_its_sender))), id="with-its-own-file-meta"),
    ],
)
def test_an_object_that_comes_back(given_back: Answer, tmp_path: Path) -> None:
    store(RoguePacs(retrieve=given_back), tmp_path)


def test_coerced_attributes_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = REGISTRY.get_sample_value("pacs_results_altered_total") or 0.0
    given_back = retrieving(200, MULTIPART, multipart(changed(rename_the_patient_and_say_so)))
    store(RoguePacs(retrieve=given_back), tmp_path)
    assert REGISTRY.get_sample_value("pacs_results_altered_total") == before + 1
    assert "PatientName of result.dcm" in caplog.text
    assert "OTHER" not in caplog.text


@pytest.mark.parametrize("reason", [0xB000, 0xB006, 0xB007])
def test_warnings_are_counted(reason: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = REGISTRY.get_sample_value("pacs_results_altered_total") or 0.0
    body = json.dumps({"00081199": {"vr": "SQ", "Value": [{"00081196": {"vr": "US", "Value": [reason]}}]}})
    answer = retrieving(200, "application/dicom+json", body.encode())
    store(RoguePacs(store=answer, retrieve=GIVEN_BACK), tmp_path)
    assert REGISTRY.get_sample_value("pacs_results_altered_total") == before + 1
    assert f"warning reason {reason}" in caplog.text


@pytest.mark.parametrize(
    ("given_back", "error", "says"),
    [
        pytest.param(
            retrieving(200, MULTIPART, multipart(changed(rename_the_patient))),
            ArchiveRefused,
            r"result\.dcm is not what was sent \(it differs in PatientName\)",
            id="another-patient",
        ),
        pytest.param(
            retrieving(200, MULTIPART, multipart(changed(another_one))), ArchiveRefused, "differs in SOP", id="another"
        ),
        pytest.param(
            retrieving(200, MULTIPART, multipart(FILE[:-1] + b"?")), ArchiveRefused, "PixelData", id="a-byte-changed"
        ),
        pytest.param(retrieving(200, MULTIPART, multipart(FILE[:-2])), ArchiveRefused, "not what was sent", id="cut"),
        pytest.param(retrieving(200, MULTIPART, multipart(FILE[:200])), ArchiveRefused, "not what was sent", id="head"),
        pytest.param(retrieving(200, MULTIPART, multipart(b"")), ArchiveRefused, "not what was sent", id="nothing"),
        pytest.param(
            retrieving(200, MULTIPART, multipart(FILE, end=b"")), ArchiveUnavailable, "broke off", id="broken-off"
        ),
        pytest.param(retrieving(200, "text/html", b"<html>"), ArchiveRefused, "did not answer with DICOM", id="html"),
        pytest.param(retrieving(404, "", b""), ArchiveUnavailable, "does not give it back", id="not-there"),
        pytest.param(retrieving(403, "", b""), ArchiveRefused, "HTTP 403", id="not-allowed"),
        pytest.param(retrieving(406, "", b""), ArchiveRefused, "in any form", id="in-no-form"),
        pytest.param(hang, ArchiveUnavailable, "stopped answering", id="hangs"),
        pytest.param(
            retrieving(200, MULTIPART, multipart(FILE + bytes(2_000_000))), ArchiveRefused, "more than", id="endless"
        ),
    ],
)
def test_an_object_that_does_not_come_back(
    given_back: Answer, error: type[PathserveError], says: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=says) as caught:
        store(RoguePacs(retrieve=given_back), tmp_path)
    assert "OTHER" not in caught.value.detail


def test_a_large_object_is_compared_in_little_memory(tmp_path: Path) -> None:
    size = 60_000_000
    result = tmp_path / "result.dcm"
    result.write_bytes(FILE + bytes(size))

    def take(request: Request) -> None:
        request.answer(200, "application/dicom+json", b"{}")

    def stream(request: Request) -> None:
        request.answer(200, "application/dicom", FILE, length=len(FILE) + size)
        for _ in range(60):
            request.wfile.write(bytes(size // 60))

    with running(RoguePacs(store=take, retrieve=stream)) as pacs:
        archive = DicomWebArchive.from_address(pacs.address)
        tracemalloc.start()
        try:
            archive.store([result])
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < size + 30_000_000  # the test's own server holds what it was sent


def test_objects_are_stored_in_their_order_and_the_first_trouble_ends_it(tmp_path: Path) -> None:
    files = []
    for number in range(4):
        files.append(tmp_path / f"result-{number}.dcm")
        files[-1].write_bytes(dicom_file(sop=f"2.25.5{number}"))
    seen: list[bytes] = []

    def take(request: Request) -> None:
        seen.append(request.body)
        request.answer(200 if len(seen) < 3 else 400, "application/dicom+json", b"{}")

    def give(request: Request) -> None:
        request.answer(200, "application/dicom", dicom_file(sop=request.path.rpartition("/")[2]))

    def listing(request: Request) -> None:
        dicom_json({"00080018": [request.path.rpartition("=")[2]]})(request)

    with running(RoguePacs(store=take, retrieve=give, list_instances=listing)) as pacs, pytest.raises(ArchiveRefused):
        DicomWebArchive.from_address(pacs.address, LIMITS).store(files)
    assert [body.count(file.read_bytes()) for body, file in zip(seen, files, strict=False)] == [1, 1, 1]
