"""A PACS that fails is left alone, and found again."""

import math
import threading
import time
from contextlib import suppress

import pytest
from prometheus_client import REGISTRY

from gateway.analyses.worker.workflow import Retry
from gateway.archive.breaker import Breaker, breaker_of
from gateway.archive.dicomweb import DicomWebArchive
from gateway.archive.dicomweb_http import Limits
from gateway.operations.errors import ArchiveRefused, ArchiveUnavailable
from tests.support.rogue_answers import reset, retrieving
from tests.support.rogue_pacs import STUDY, Answer, RoguePacs, running

ONCE = Limits(attempts=1, connect_s=1, read_s=0.5)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def metric(name: str) -> float:
    return REGISTRY.get_sample_value(name) or 0.0


def fail(archive: DicomWebArchive, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(ArchiveUnavailable):
            archive.find_series(STUDY)


def test_five_failures_in_thirty_seconds_open_it(clock: Clock) -> None:
    breaker = Breaker(clock)
    for _ in range(5):
        breaker.admit()
        breaker.failed()
        clock.now += 7.4
    with pytest.raises(ArchiveUnavailable, match="left alone"):
        breaker.admit()


def test_failures_further_apart_do_not(clock: Clock) -> None:
    breaker = Breaker(clock)
    for _ in range(20):
        breaker.admit()
        breaker.failed()
        clock.now += 7.6


def test_one_probe_each_ten_seconds(clock: Clock) -> None:
    opens, is_open = metric("pacs_breaker_opens_total"), metric("pacs_breaker_open")
    breaker = Breaker(clock)
    for _ in range(5):
        breaker.failed()
    assert (metric("pacs_breaker_opens_total"), metric("pacs_breaker_open")) == (opens + 1, is_open + 1)
    admitted = []
    for second in range(36):
        clock.now = 100.0 + second
        try:
            breaker.admit()
        except ArchiveUnavailable:
            continue
        admitted.append(second)
        breaker.failed()
    assert admitted == [10, 20, 30]
    breaker.answered()
    breaker.admit()
    assert (metric("pacs_breaker_opens_total"), metric("pacs_breaker_open")) == (opens + 1, is_open)
    breaker.failed()  # the count began anew
    breaker.admit()


@pytest.mark.parametrize("finds_it_well", [False, True])
def test_of_many_at_once_one_is_the_probe_and_speaks_for_all(clock: Clock, *, finds_it_well: bool) -> None:
    breaker = Breaker(clock)
    for _ in range(5):
        breaker.failed()
    clock.now += 10
    sent: list[int] = []
    refused: list[float] = []

    def enter(number: int) -> None:
        try:
            breaker.admit()
        except ArchiveUnavailable as error:
            refused.append(error.after_s)
            return
        sent.append(number)
        time.sleep(0.1)
        probes.append(len(sent))
        if finds_it_well:
            breaker.answered()
        else:
            breaker.failed()

    probes: list[int] = []
    threads = [threading.Thread(target=enter, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert probes[0] == 1  # alone, until it was answered
    assert len(sent) == (16 if finds_it_well else 1)
    assert refused == ([] if finds_it_well else [10.0] * 15)


def test_a_probe_that_does_not_end_holds_up_the_others_for_a_moment_only(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.archive.breaker._PROBE_TAKES_S", 0.05)
    breaker = Breaker(clock)
    for _ in range(5):
        breaker.failed()
    clock.now += 10
    breaker.admit()
    with pytest.raises(ArchiveUnavailable, match="left alone"):
        breaker.admit()
    clock.now += 10
    breaker.admit()


@pytest.mark.parametrize("back_s", [0.5, 3.0, 9.0, 14.5, 19.0, 25.0, 29.9])
@pytest.mark.parametrize("retry", [Retry(), Retry(attempts=3, delay_s=12.0)])
@pytest.mark.parametrize("looked_at_each_s", [1.0, 4.0, 7.0, math.inf])
def test_a_pacs_that_is_back_before_the_last_try_fails_no_step(
    back_s: float, retry: Retry, looked_at_each_s: float, clock: Clock
) -> None:
    """Retries last 30 s and more; whoever else looks at the PACS meanwhile may take all the probes."""
    breaker = Breaker(clock)
    began, looked_at = clock.now, clock.now

    def ask() -> None:
        breaker.admit()
        if clock.now - began < back_s:
            breaker.failed()
            raise ArchiveUnavailable("The PACS cannot be reached.")
        breaker.answered()

    def sleep(seconds: float) -> None:
        nonlocal looked_at
        until = clock.now + seconds
        while looked_at + looked_at_each_s < until:
            clock.now = looked_at = looked_at + looked_at_each_s
            with suppress(ArchiveUnavailable):
                ask()
        clock.now = until

    for _ in range(4):
        breaker.failed()
    for attempt in range(1, 7):
        failure: ArchiveUnavailable | None = None
        try:
            ask()
        except ArchiveUnavailable as error:
            failure = error
        if failure is None:
            break
        assert retry.again(attempt, failure)
        sleep(retry.pause_s(attempt, failure.after_s))


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(retrieving(503, "text/html", b""), id="503"),
        pytest.param(reset, id="resets"),
        pytest.param(retrieving(429, "text/html", b""), id="429"),
    ],
)
def test_an_archive_is_left_alone_and_found_again(answer: Answer, clock: Clock) -> None:
    with running(RoguePacs(list_series=answer)) as pacs:
        archive = DicomWebArchive.from_address(pacs.address, ONCE, breaker=Breaker(clock))
        fail(archive, 5)
        assert len(pacs.requests) == 5
        fail(archive, 20)
        assert len(pacs.requests) == 5  # nothing was sent
        clock.now += 10
        fail(archive, 20)
        assert len(pacs.requests) == 6  # the probe
        clock.now += 10
        pacs.list_series = RoguePacs().list_series
        assert len(archive.find_series(STUDY)) == 1
        assert len(archive.find_series(STUDY)) == 1


def test_a_refusal_is_an_answer(clock: Clock) -> None:
    """A PACS that says no is well: the next order may be for what it allows."""
    with running(RoguePacs(list_series=retrieving(403, "text/plain", b""))) as pacs:
        archive = DicomWebArchive.from_address(pacs.address, ONCE, breaker=Breaker(clock))
        for _ in range(10):
            with pytest.raises(ArchiveRefused):
                archive.find_series(STUDY)
        assert len(pacs.requests) == 10


def test_archives_at_one_address_share_it() -> None:
    with running(RoguePacs(list_series=reset)) as pacs, running(RoguePacs()) as other:
        fail(DicomWebArchive.from_address(pacs.address, ONCE), 5)
        with pytest.raises(ArchiveUnavailable, match="left alone"):
            DicomWebArchive.from_address(pacs.address, ONCE).find_series(STUDY)
        assert len(DicomWebArchive.from_address(other.address, ONCE).find_series(STUDY)) == 1
        shared = breaker_of(DicomWebArchive.from_address(pacs.address).address)
        shared.answered()  # closed again, so that the gauge of this process is as it was
