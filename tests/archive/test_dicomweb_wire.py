"""Every phase of a conversation has its limit, also with a server that always sends one more byte."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from gateway.archive.cache import FrameCache
from gateway.archive.dicomweb import DicomWebArchive
from gateway.archive.dicomweb_http import Limits
from gateway.archive.protocol import SeriesEntry
from gateway.operations.errors import ArchiveUnavailable, Cancelled
from tests.support.dicom import dicom_file
from tests.support.rogue_answers import retrieving
from tests.support.rogue_pacs import SERIES, STUDY, Request, RoguePacs, running

LIMITS = Limits(connect_s=0.5, read_s=0.5, write_s=0.5, slowest_bytes_s=1e6, attempts=1, backoff_s=0.01)


@contextmanager
def serving(behave: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of a server that does this with each connection."""
    stop = threading.Event()
    accepted: list[socket.socket] = []

    def serve() -> None:
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            accepted.append(connection)
            with connection:
                try:
                    behave(connection)
                except OSError:
                    continue  # the client gave up, as it should

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"dicomweb://127.0.0.1:{listener.getsockname()[1]}/rs"
        finally:
            stop.set()
            for connection in accepted:
                connection.close()  # which ends what it does there
            thread.join()


def drip(connection: socket.socket, beginning: bytes = b"") -> None:
    connection.sendall(beginning)
    for _ in range(400):
        connection.sendall(b"x")
        time.sleep(0.05)


def drip_status_line(connection: socket.socket) -> None:
    connection.recv(4096)
    drip(connection)


def drip_head(connection: socket.socket) -> None:
    connection.recv(4096)
    drip(connection, b"HTTP/1.1 200 OK\r\nX-Long: ")


def endlessly_not_yet(connection: socket.socket) -> None:
    connection.recv(4096)
    for _ in range(400):
        connection.sendall(b"HTTP/1.1 102 Processing\r\n\r\n")
        time.sleep(0.05)


@pytest.mark.parametrize("behave", [drip_status_line, drip_head, endlessly_not_yet])
def test_an_answer_whose_head_never_ends(behave: Callable[[socket.socket], None]) -> None:
    began = time.monotonic()
    with serving(behave) as address, pytest.raises(ArchiveUnavailable, match="stopped answering"):
        DicomWebArchive.from_address(address, LIMITS).find_series(STUDY)
    assert time.monotonic() - began < 15  # it would have gone on for 20 s


def test_a_server_that_hardly_reads(tmp_path: Path) -> None:
    def sip(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        while connection.recv(1000):
            time.sleep(0.05)

    result = tmp_path / "result.dcm"
    result.write_bytes(dicom_file() + bytes(20_000_000))
    limits = Limits(write_s=0.5, slowest_bytes_s=1e9, attempts=1)
    began = time.monotonic()
    with serving(sip) as address:
        with pytest.raises(ArchiveUnavailable):
            DicomWebArchive.from_address(address, limits).store([result])
        assert time.monotonic() - began < 15


def test_retry_after_is_honoured() -> None:
    answers = iter([503, 429])

    def busy(request: Request) -> None:
        status = next(answers, None)
        if status is None:
            RoguePacs().list_series(request)
        else:
            request.answer(status, "text/plain", b"", Retry_After="1")

    began = time.monotonic()
    with running(RoguePacs(list_series=busy)) as pacs:
        DicomWebArchive.from_address(pacs.address, Limits(backoff_s=0.01)).find_series(STUDY)
    assert 2 <= time.monotonic() - began < 20


@pytest.mark.parametrize("after", ["3600", format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)])
@pytest.mark.parametrize("status", [429, 503])
def test_a_long_retry_after_is_left_to_the_next_try_of_the_whole(status: int, after: str) -> None:
    with running(RoguePacs(list_series=retrieving(status, "text/plain", b"", Retry_After=after))) as pacs:
        with pytest.raises(ArchiveUnavailable):
            DicomWebArchive.from_address(pacs.address, Limits(backoff_s=0.01)).find_series(STUDY)
        assert len(pacs.requests) == 1


@pytest.mark.parametrize("after", ["soon", "-1", "Thu, 99 Foo 2026", ""])
def test_a_retry_after_that_is_none(after: str) -> None:
    with running(RoguePacs(list_series=retrieving(503, "text/plain", b"", Retry_After=after))) as pacs:
        with pytest.raises(ArchiveUnavailable):
            DicomWebArchive.from_address(pacs.address, Limits(backoff_s=0.01)).find_series(STUDY)
        assert len(pacs.requests) == 3


def silent(connection: socket.socket) -> None:
    connection.recv(4096)
    connection.settimeout(20)
    connection.recv(1)  # until the client gives up


def silent_within_the_body(connection: socket.socket) -> None:
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/dicom+json\r\nContent-Length: 99\r\n\r\n[{")
    connection.settimeout(20)
    connection.recv(1)


@pytest.mark.parametrize("behave", [silent, silent_within_the_body])
def test_cancelled_while_the_server_is_silent(behave: Callable[[socket.socket], None], cache: FrameCache) -> None:
    """Nobody waits for a timeout that is cancelled."""
    began = time.monotonic()
    entry = SeriesEntry(STUDY, SERIES)

    def after(seconds: float) -> Callable[[], bool]:
        return lambda: time.monotonic() - began > seconds

    with serving(behave) as address:
        archive = DicomWebArchive.from_address(address)
        with pytest.raises(Cancelled):
            archive.find_series(STUDY, cancelled=after(0.3))
        with pytest.raises(Cancelled):
            archive.fetch(entry, cache, cancelled=after(1.0))
    assert time.monotonic() - began < 15
