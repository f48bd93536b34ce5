"""A PACS that misbehaves while a slide is pulled: each time a typed error, in bounded time, with nothing half-kept."""

import gzip
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.archive.cache import FrameCache
from gateway.archive.dicomweb import DicomWebArchive
from gateway.archive.dicomweb_http import Limits
from gateway.archive.protocol import SeriesEntry
from gateway.operations.errors import (
    ArchiveRefused,
    ArchiveUnavailable,
    Cancelled,
    DiskFull,
    PathserveError,
    SlideNotInArchive,
)
from tests.support.dicom import dicom_file
from tests.support.disk import largest_file
from tests.support.rogue_answers import by_path, describing, hang, reset, retrieving
from tests.support.rogue_pacs import (
    BOUNDARY,
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

CACHE_BYTES = 2**30
LIMITS = Limits(connect_s=1, read_s=0.5, backoff_s=0.01, instance_bytes=200_000, visible_s=0.2)
ENTRY = SeriesEntry(STUDY, SERIES, 1)
FILE = dicom_file()


def hang_in_the_middle(request: Request) -> None:
    whole = multipart(FILE)
    request.answer(200, MULTIPART, whole[: len(whole) // 2], length=len(whole))
    hang(request)


def reset_in_the_middle(request: Request) -> None:
    whole = multipart(FILE)
    request.answer(200, MULTIPART, whole[: len(whole) // 2], length=len(whole))
    reset(request)


def drip(request: Request) -> None:
    request.answer(200, MULTIPART, b"", length=10_000)
    while True:
        request.wfile.write(b"x")
        time.sleep(0.05)


def until_closed(body: bytes) -> Answer:
    """A single part without Content-Length: only the end of the connection ends it."""

    def answer(request: Request) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/dicom\r\nConnection: close\r\n\r\n" + body)

    return answer


def fetch(pacs: RoguePacs, cache: Path, cancelled: Callable[[], bool] = lambda: False) -> bytes:
    """The one instance's bytes, as the archive brought them, without metadata to describe it."""
    pacs.retrieve = by_path(instance=pacs.retrieve)
    with running(pacs):
        archive = DicomWebArchive.from_address(pacs.address, LIMITS)
        [file] = archive.fetch(ENTRY, FrameCache(cache, CACHE_BYTES), cancelled=cancelled).files
        return file.read_bytes()


def files_in(folder: Path) -> list[str]:
    ours = {".lock", "series.json", "costs.json"}
    return [path.name for path in folder.rglob("*") if path.is_file() and path.name not in ours]


@pytest.mark.parametrize(
    ("retrieve", "error"),
    [
        pytest.param(hang, ArchiveUnavailable, id="hangs"),
        pytest.param(hang_in_the_middle, ArchiveUnavailable, id="hangs-in-the-middle"),
        pytest.param(drip, ArchiveUnavailable, id="one-byte-at-a-time"),
        pytest.param(reset, ArchiveUnavailable, id="resets"),
        pytest.param(reset_in_the_middle, ArchiveUnavailable, id="resets-in-the-middle"),
        pytest.param(retrieving(500, "text/plain", b""), ArchiveUnavailable, id="500"),
        pytest.param(retrieving(503, "text/html", b"<html>"), ArchiveUnavailable, id="503"),
        pytest.param(retrieving(429, "text/html", b"<html>"), ArchiveUnavailable, id="429"),
        pytest.param(retrieving(401, "text/plain", b""), ArchiveRefused, id="401"),
        pytest.param(retrieving(403, "text/plain", b""), ArchiveRefused, id="403"),
        pytest.param(retrieving(418, "text/plain", b""), ArchiveRefused, id="418"),
        pytest.param(retrieving(404, "text/plain", b""), SlideNotInArchive, id="404"),
        pytest.param(retrieving(204, "", b""), ArchiveRefused, id="204"),
        pytest.param(retrieving(406, "text/plain", b""), ArchiveRefused, id="no-known-form"),
        pytest.param(retrieving(200, "text/html", b"<html>log in</html>"), ArchiveRefused, id="html"),
        pytest.param(retrieving(200, "", FILE), ArchiveRefused, id="no-content-type"),
        pytest.param(retrieving(200, "application/json", b"[]"), ArchiveRefused, id="json"),
        pytest.param(retrieving(200, MULTIPART, multipart(FILE, end=b"")), ArchiveUnavailable, id="no-closing-edge"),
        pytest.param(retrieving(200, MULTIPART, multipart(FILE[:500], end=b"")), ArchiveUnavailable, id="half-a-part"),
        pytest.param(
            retrieving(200, MULTIPART, multipart(FILE, headers=b"Content-Length: 99999\r\n")),
            ArchiveUnavailable,
            id="part-shorter-than-it-says",
        ),
        pytest.param(retrieving(200, MULTIPART, b""), ArchiveUnavailable, id="empty-multipart"),
        pytest.param(retrieving(200, MULTIPART, f"--{BOUNDARY}--\r\n".encode()), ArchiveUnavailable, id="no-part"),
        pytest.param(retrieving(200, MULTIPART, multipart(b"not DICOM")), ArchiveRefused, id="not-dicom"),
        pytest.param(retrieving(200, MULTIPART, multipart(FILE[:300])), ArchiveRefused, id="half-a-header"),
        pytest.param(
            retrieving(200, MULTIPART, multipart(dicom_file(sop="2.25.9"))), ArchiveRefused, id="another-instance"
        ),
        pytest.param(
            retrieving(200, MULTIPART, multipart(dicom_file(study="2.25.9"))), ArchiveRefused, id="another-study"
        ),
        pytest.param(
            retrieving(200, MULTIPART, multipart(dicom_file(pixels=300_000))), ArchiveRefused, id="longer-than-allowed"
        ),
        pytest.param(
            retrieving(200, MULTIPART, gzip.compress(multipart(bytes(50_000_000))), Content_Encoding="gzip"),
            ArchiveRefused,
            id="compression-bomb",
        ),
        pytest.param(
            retrieving(200, MULTIPART, b"not gzip", Content_Encoding="gzip"), ArchiveRefused, id="broken-compression"
        ),
        pytest.param(until_closed(FILE[:-1]), ArchiveUnavailable, id="broken-off-single-part"),
    ],
)
def test_a_bad_answer(retrieve: Answer, error: type[PathserveError], tmp_path: Path) -> None:
    pacs = RoguePacs(retrieve=retrieve)
    began = time.monotonic()
    with pytest.raises(error) as caught:
        fetch(pacs, tmp_path)
    assert time.monotonic() - began < 15
    assert files_in(tmp_path) == []
    assert caught.value.detail.endswith((".", "!"))
    assert "secret" not in caught.value.detail
    assert "127.0.0.1" not in caught.value.detail


@pytest.mark.parametrize(
    "retrieve",
    [
        pytest.param(retrieving(200, MULTIPART, multipart(FILE)), id="as-the-standard-says"),
        pytest.param(retrieving(200, "application/dicom", FILE), id="single-part"),
        pytest.param(until_closed(FILE), id="single-part-until-closed"),
        pytest.param(
            retrieving(200, f"Multipart/Related; Boundary={BOUNDARY}", b"preamble\r\n" + multipart(FILE)),
            id="preamble-and-no-type",
        ),
        pytest.param(
            retrieving(
                200,
                f'multipart/related; type="application/dicom; transfer-syntax=1.2"; boundary="{BOUNDARY}"',
                multipart(FILE).replace(b"\r\n\r\n", b"\n\n", 1),
            ),
            id="quoted-boundary-and-bare-line-feeds",
        ),
        pytest.param(
            retrieving(200, MULTIPART, multipart(FILE, end=b"", headers=b"Content-Length: %d\r\n" % len(FILE))),
            id="no-closing-edge-but-a-length",
        ),
    ],
)
def test_an_odd_but_whole_answer(retrieve: Answer, tmp_path: Path) -> None:
    assert fetch(RoguePacs(retrieve=retrieve), tmp_path) == FILE


def test_a_large_instance_in_little_memory(tmp_path: Path) -> None:
    size = 100_000_000
    whole = multipart(FILE)
    split = whole.index(FILE) + len(FILE)

    def stream(request: Request) -> None:
        request.answer(200, MULTIPART, whole[:split], length=len(whole) + size)
        for _ in range(100):
            request.wfile.write(bytes(size // 100))
        request.wfile.write(whole[split:])

    with running(RoguePacs(retrieve=stream)) as pacs:
        archive = DicomWebArchive.from_address(pacs.address)
        tracemalloc.start()
        try:
            [file] = archive.fetch(ENTRY, FrameCache(tmp_path, CACHE_BYTES)).files
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert file.stat().st_size == len(FILE) + size
    assert peak < 10_000_000


def test_nothing_is_asked_for_compressed_or_transcoded(tmp_path: Path) -> None:
    pacs = RoguePacs(retrieve=retrieving(200, MULTIPART, multipart(FILE)))
    fetch(pacs, tmp_path)
    assert len(pacs.requests) >= 2
    assert {headers["Accept-Encoding"] for _, _, headers in pacs.requests} == {"identity"}
    [accept] = [headers["Accept"] for _, path, headers in pacs.requests if path.endswith(SOP)]
    assert "transfer-syntax=*" in accept


def test_the_form_that_the_pacs_takes_is_remembered(tmp_path: Path) -> None:
    def single_part_only(request: Request) -> None:
        if request.headers["Accept"].startswith("multipart"):
            request.answer(406, "", b"")
        else:
            request.answer(200, "application/dicom", dicom_file(sop=request.path.rpartition("/")[2]))

    sops = ["2.25.11", "2.25.12", "2.25.13"]
    listing = once_listed(dicom_json(*({"00080018": [sop]} for sop in sops)))
    with running(RoguePacs(retrieve=single_part_only, list_instances=listing)) as pacs:
        DicomWebArchive.from_address(pacs.address, LIMITS).fetch(ENTRY, FrameCache(tmp_path, CACHE_BYTES))
        assert [pacs.asked(sop) for sop in sops] == [2, 1, 1]


def test_a_server_error_that_passes(tmp_path: Path) -> None:
    answers = iter([reset, retrieving(503, "", b""), retrieving(200, MULTIPART, multipart(FILE))])
    pacs = RoguePacs(retrieve=lambda request: next(answers)(request))
    assert fetch(pacs, tmp_path) == FILE
    assert pacs.asked(SOP) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429])
def test_a_refusal_is_not_repeated(status: int, tmp_path: Path) -> None:
    pacs = RoguePacs(list_instances=retrieving(status, "text/plain", b""))
    with pytest.raises(PathserveError):
        fetch(pacs, tmp_path)
    assert len(pacs.requests) == 2  # metadata that there are none of, and the listing


def test_redirects_are_refused_and_credentials_stay(tmp_path: Path) -> None:
    with running(RoguePacs(retrieve=retrieving(200, MULTIPART, multipart(FILE)))) as elsewhere:
        target = f"http://127.0.0.1:{elsewhere.port}/dicom-web/studies/{STUDY}/series/{SERIES}/instances/{SOP}"
        redirect = retrieving(302, "", b"", Location=target)
        for pacs in (RoguePacs(retrieve=redirect), RoguePacs(list_instances=redirect)):
            with pytest.raises(ArchiveRefused, match="redirects"):
                fetch(pacs, tmp_path)
        assert elsewhere.requests == []
    assert files_in(tmp_path) == []


def test_urls_that_the_pacs_names_are_not_followed(tmp_path: Path) -> None:
    with running(RoguePacs()) as elsewhere:
        listing = dicom_json({"00080018": [SOP], "00081190": [f"http://127.0.0.1:{elsewhere.port}/dicom-web/x"]})
        pacs = RoguePacs(list_instances=once_listed(listing), retrieve=retrieving(200, MULTIPART, multipart(FILE)))
        assert fetch(pacs, tmp_path) == FILE
        assert elsewhere.requests == []


def test_the_environments_proxy_gets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(RoguePacs()) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{proxy.port}")
        assert fetch(RoguePacs(retrieve=retrieving(200, MULTIPART, multipart(FILE))), tmp_path) == FILE
        assert proxy.requests == []


@pytest.mark.parametrize("uid", ["../../../../escaped", "1.2/../../3", "/etc/passwd", "", "1." * 40 + "1", "1.2\n"])
def test_a_uid_that_is_none(uid: str, tmp_path: Path) -> None:
    pacs = RoguePacs(
        list_instances=once_listed(dicom_json({"00080018": [uid]})),
        list_series=once_listed(dicom_json({"0020000E": [uid], "00080060": ["SM"]})),
        retrieve=retrieving(200, MULTIPART, multipart(FILE)),
    )
    with running(pacs):
        archive = DicomWebArchive.from_address(pacs.address, LIMITS)
        with pytest.raises(ArchiveRefused):
            archive.find_series(STUDY)
        with pytest.raises(ArchiveRefused):
            archive.fetch(ENTRY, FrameCache(tmp_path / "cache", CACHE_BYTES))
    assert files_in(tmp_path) == []
    assert [path for path in tmp_path.iterdir() if path.name != "cache"] == []


@pytest.mark.parametrize("page", [1, 2, 500])
def test_pages_are_put_together(page: int, tmp_path: Path) -> None:
    sops = [f"2.25.{n}" for n in range(1, 6)]

    def paged(request: Request) -> None:
        offset = int(request.path.rpartition("offset=")[2])
        dicom_json(*({"00080018": [sop]} for sop in sops[offset : offset + page]))(request)

    pacs = RoguePacs(
        list_instances=paged,
        retrieve=lambda request: request.answer(
            200, "application/dicom", dicom_file(sop=request.path.rpartition("/")[2])
        ),
    )
    with running(pacs):
        fetched = DicomWebArchive.from_address(pacs.address, LIMITS).fetch(
            SeriesEntry(STUDY, SERIES, 5), FrameCache(tmp_path, CACHE_BYTES)
        )
    assert [file.stem for file in fetched.files] == sops


def test_offset_not_known_to_the_server(tmp_path: Path) -> None:
    pacs = RoguePacs(
        list_instances=dicom_json({"00080018": [SOP]}), retrieve=retrieving(200, MULTIPART, multipart(FILE))
    )
    assert fetch(pacs, tmp_path) == FILE


def test_a_series_that_is_still_arriving(tmp_path: Path) -> None:
    with running(RoguePacs()) as pacs, pytest.raises(ArchiveUnavailable, match="whole series"):
        DicomWebArchive.from_address(pacs.address, LIMITS).fetch(
            SeriesEntry(STUDY, SERIES, 2), FrameCache(tmp_path, CACHE_BYTES)
        )


def test_cancelled_in_the_middle(tmp_path: Path) -> None:
    asked = threading.Event()

    def slowly(request: Request) -> None:
        whole = multipart(FILE)
        request.answer(200, MULTIPART, whole[:1000], length=len(whole))
        asked.set()
        for start in range(1000, len(whole), 1000):
            request.wfile.write(whole[start : start + 1000])
            time.sleep(0.3)

    began = time.monotonic()
    with pytest.raises(Cancelled):
        fetch(RoguePacs(retrieve=slowly), tmp_path, cancelled=asked.is_set)
    assert time.monotonic() - began < 10
    assert files_in(tmp_path) == []


def test_two_fetches_of_one_series_share_the_work(tmp_path: Path) -> None:
    def slowly(request: Request) -> None:
        time.sleep(0.3)
        request.answer(200, MULTIPART, multipart(FILE))

    with running(RoguePacs(retrieve=by_path(metadata=describing(FILE), instance=slowly))) as pacs:
        archives = [DicomWebArchive.from_address(pacs.address, LIMITS) for _ in range(2)]
        threads = [
            threading.Thread(target=archive.fetch, args=(ENTRY, FrameCache(tmp_path, CACHE_BYTES)))
            for archive in archives
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert pacs.asked(SOP) == 1
    assert files_in(tmp_path) == [f"{SOP}.dcm"]


def test_disk_full(tmp_path: Path) -> None:
    pacs = RoguePacs(retrieve=retrieving(200, MULTIPART, multipart(FILE)))
    with largest_file(10_000), pytest.raises(DiskFull):
        fetch(pacs, tmp_path)
    assert files_in(tmp_path) == []
    assert fetch(pacs, tmp_path) == FILE
