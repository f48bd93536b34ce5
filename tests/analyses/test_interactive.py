"""The requests' own loop: its child ends while nobody asks, nothing begins once it stops, and one request that is given
up costs the others nothing."""

import asyncio
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.analyses import interactive, segment_process
from gateway.analyses.interactive import Interactive
from gateway.analyses.ledger.choices import Choices
from gateway.analyses.segment_form import EXAMPLE, SegmentBody
from gateway.analyses.segment_process import SegmentProcess
from gateway.operations.errors import Cancelled, PathserveError, SlideNotInArchive, StateBusy
from gateway.operations.settings import Settings
from tests.support.gateway import eventually

ASK = SegmentBody(**EXAMPLE).domain()


def begin(answering: Interactive, note: Callable[[PathserveError | None], None] = lambda error: None) -> Any:
    return answering.begin(ASK, "person:one", lambda: None, note)


def test_idleness_ends_the_child_and_a_failure_at_that_not_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = threading.Semaphore(0)

    async def answer(self: SegmentProcess, ask: Any) -> str:
        return "an answer"

    async def close(self: SegmentProcess) -> None:
        closed.release()
        raise OSError

    monkeypatch.setattr(SegmentProcess, "answer", answer)
    monkeypatch.setattr(SegmentProcess, "close", close)
    monkeypatch.setattr(interactive, "IDLE_S", 0.0)
    monkeypatch.setattr(interactive, "_LOOK_S", 0.02)
    answering = Interactive(Settings(state=tmp_path), Choices)
    for _ in range(2):
        assert begin(answering).result(10) == "an answer"
        assert closed.acquire(timeout=10)
    answering.close()
    answering.stop()
    assert answering._thread is not None
    assert not answering._thread.is_alive()
    with pytest.raises(StateBusy):
        begin(answering)


def test_what_is_being_answered_when_it_stops_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = threading.Event()

    async def answer(self: SegmentProcess, ask: Any) -> None:
        began.set()
        await asyncio.sleep(60)

    monkeypatch.setattr(SegmentProcess, "answer", answer)
    answering = Interactive(Settings(state=tmp_path), Choices)
    waiting = begin(answering)
    assert began.wait(10)
    answering.stop()
    with pytest.raises(StateBusy):
        waiting.result(10)
    answering.close()


def test_what_one_request_is_given_up_for_no_other_has_to_pay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bound, most = segment_process.bound_to_parent, 3 * 2**30

    def with_less_memory() -> None:
        bound()
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))

    monkeypatch.setattr(segment_process, "bound_to_parent", with_less_memory)
    monkeypatch.setattr(interactive, "AT_ONCE", 1)
    monkeypatch.setattr(interactive, "_LOOK_S", 0.05)
    monkeypatch.setenv("pathserve_api_key", "the-key")
    noted: list[type] = []
    with socket.create_server(("127.0.0.1", 0)) as pacs:
        pacs.settimeout(60)
        settings = Settings(state=tmp_path, archive=f"dicomweb://127.0.0.1:{pacs.getsockname()[1]}/")
        answering = Interactive(settings, Choices)
        first, second, third = (begin(answering, lambda error: noted.append(type(error))) for _ in range(3))
        with pacs.accept()[0]:  # and no answer
            pid = answering._process.pid
            assert pid is not None
            assert b"pathserve_api_key" not in Path(f"/proc/{pid}/environ").read_bytes()
            assert resource.prlimit(pid, resource.RLIMIT_DATA) == (most, most)
            first.cancel()
            # It has ended in the child, which goes on with the next.
            with pacs.accept()[0]:
                assert answering._process.pid == pid
                # Where a word does not end it, the child is; whoever waits has another.
                monkeypatch.setattr(segment_process, "_GRACE_S", 0.2)
                os.kill(pid, signal.SIGSTOP)
                second.cancel()
                with pacs.accept()[0] as opened:
                    assert answering._process.pid not in (pid, None)
                    opened.recv(2**16)
                    head = "HTTP/1.1 200 OK\r\nContent-Type: application/dicom+json\r\nContent-Length: 2\r\n\r\n"
                    opened.sendall(f"{head}[]".encode())
                    with pytest.raises(SlideNotInArchive):
                        third.result(30)
        # It is ended by the end of its requests, and well, once it has been idle.
        with capture_logs() as logs:
            monkeypatch.setattr(interactive, "IDLE_S", 0.0)
            eventually(lambda: "the process of regions has ended" in [line["event"] for line in logs], "it has ended")
        assert [line["exit_status"] for line in logs] == [0]
        assert answering._process.pid is None
        answering.close()
    assert noted == [Cancelled, Cancelled, SlideNotInArchive]
