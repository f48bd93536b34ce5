"""What the process that answers requests takes from its child, and what it says where there is no answer."""

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from structlog.testing import capture_logs

from gateway.analyses import segment_child, segment_process
from gateway.analyses.ledger.choices import Choices
from gateway.analyses.segment_form import EXAMPLE, SegmentBody
from gateway.analyses.segment_process import SegmentProcess
from gateway.analyses.segment_wire import HEAD, Errand, body_of, framed
from gateway.domain.segment import SegmentAnswer
from gateway.operations import codec
from gateway.operations.errors import (
    Cancelled,
    Forbidden,
    InferenceUnavailable,
    NotFound,
    PathserveError,
    SlideError,
    Unauthenticated,
    come_again_s,
)
from gateway.operations.settings import Settings

ASK = replace(SegmentBody(**EXAMPLE).domain(), prompts=())
ANSWER = SegmentAnswer(study=ASK.study, series=ASK.series, region=ASK.region, models=(), findings=(), masks=())

SECRETS: Any = {"api_key": "the-key", "webhook_secrets": ("a-secret",), "database_url": "postgresql://us:word@there/x"}

CHILD = """
import os, struct, sys
os.write(1, bytes(12))
for name in ("settings", "errand"):
    number, size = struct.unpack(">QI", sys.stdin.buffer.read(12))
    open(os.path.join({told!r}, name), "wb").write(sys.stdin.buffer.read(size))
os.write(1, {answer!r})
sys.stdin.buffer.read()
"""


def child_that(runs: str, told: Path, monkeypatch: pytest.MonkeyPatch) -> SegmentProcess:
    monkeypatch.setattr(segment_process, "_PROGRAM", (sys.executable, "-c", runs))
    return SegmentProcess(Settings(state=told, **SECRETS), Choices)


def child_that_answers(sent: bytes, told: Path, monkeypatch: pytest.MonkeyPatch) -> SegmentProcess:
    return child_that(CHILD.format(answer=sent, told=str(told)), told, monkeypatch)


@pytest.mark.parametrize(
    "sent",
    [
        HEAD.pack(1, 2**32 - 1) + bytes(2**14),
        framed(1, body_of(replace(ANSWER, series="1.2.3"))),
        framed(1, b"E{}"),
        framed(1, b""),
    ],
)
async def test_what_is_no_answer_to_the_ask_ends_the_child_and_is_the_slide_s_fault_the_second_time(
    sent: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = child_that_answers(sent, tmp_path, monkeypatch)
    with pytest.raises(InferenceUnavailable, match="ended while"):
        await process.answer(ASK)
    assert process.pid is None
    with pytest.raises(SlideError) as again:
        await process.answer(ASK)
    assert come_again_s(again.value) is None
    await process.close()


async def test_an_answer_to_the_ask_is_taken_of_a_child_that_has_no_key_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = child_that_answers(framed(1, body_of(ANSWER)), tmp_path, monkeypatch)
    assert await process.answer(ASK) == ANSWER
    await process.close()
    settings = pickle.loads((tmp_path / "settings").read_bytes())
    assert {name: getattr(settings, name) for name in SECRETS} == {
        "api_key": None,
        "webhook_secrets": (),
        "database_url": None,
    }
    assert settings.state == tmp_path
    assert not any(secret in (tmp_path / "settings").read_bytes() for secret in (b"the-key", b"a-secret", b"word"))


async def test_no_pause_without_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = InferenceUnavailable("Later.")
    endless.after_s = float("inf")
    process = child_that_answers(framed(1, body_of(endless)), tmp_path, monkeypatch)
    with pytest.raises(InferenceUnavailable) as told:
        await process.answer(ASK)
    assert told.value.after_s == 0.0
    await process.close()


@pytest.mark.parametrize("error", [Forbidden, Unauthenticated, NotFound, Cancelled, PathserveError])
async def test_what_the_child_may_not_say_is_told_as_unforeseen(
    error: type[PathserveError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = child_that_answers(framed(1, body_of(error("Words of a slide's making."))), tmp_path, monkeypatch)
    with pytest.raises(PathserveError, match=r"^The region could not be segmented\.") as told:
        await process.answer(ASK)
    assert type(told.value) is PathserveError
    await process.close()


async def test_what_the_child_may_not_say_is_in_its_log(tmp_path: Path) -> None:
    """Such as a setting with which no archive can be asked."""
    child = segment_child._Child(Settings(state=tmp_path, archive="folder:~no-such-user/x"), answers=-1)
    with capture_logs() as logs:
        body = await child._answer(codec.dumps(Errand(ASK, Choices())).encode())
    assert json.loads(body[1:])["reason"] == "invalid-setting"
    [line] = logs
    assert line["detail"].startswith("The archive's folder begins with ~")


async def test_a_child_that_cannot_start_is_no_slide_s_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = child_that("raise SystemExit(3)", tmp_path, monkeypatch)
    for _ in range(3):
        with pytest.raises(InferenceUnavailable, match="before it had started"):
            await process.answer(ASK)
    await process.close()


STARTS = """
import asyncio, sys, time
from pathlib import Path
from gateway.analyses import segment_process
from gateway.operations.settings import Settings

async def start():
    segment_process._PROGRAM = (sys.executable, "-c", "import time; time.sleep(60)")
    child = await segment_process._Child.start(Settings(state=Path({state!r})))
    print(child.pid, flush=True)
    time.sleep(60)

asyncio.run(start())
"""


def test_no_child_outlives_a_server_that_is_killed(tmp_path: Path) -> None:
    script = STARTS.format(state=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        child = psutil.Process(int(server.stdout.readline()))
        server.kill()
    child.wait(60)
