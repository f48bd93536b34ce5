"""A PACS that fails is left alone, and found again."""

import threading

import pytest
from prometheus_client import REGISTRY

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


def test_only_one_thread_is_the_probe(clock: Clock) -> None:
    breaker = Breaker(clock)
    for _ in range(5):
        breaker.failed()
    clock.now += 10
    admitted: list[int] = []

    def enter(number: int) -> None:
        try:
            breaker.admit()
            admitted.append(number)
        except ArchiveUnavailable:
            pass

    threads = [threading.Thread(target=enter, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(admitted) == 1


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
