"""Watching an analysis and running one: every event once and in order, and a call's end reaches what it started."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from gateway.analyses.ledger.queries import AnalysisQuery
from gateway.domain.analysis import State
from gateway.grpc.proto.pathserve.v1 import analysis_pb2
from gateway.grpc.proto.pathserve.v1 import analysis_service_pb2 as pb
from gateway.grpc.proto.pathserve.v1.analysis_service_pb2_grpc import AnalysisServiceStub
from gateway.operations.errors import StateError
from tests.grpc.conftest import Api, an_order, bearer, refusal, refusal_of, serving
from tests.support.gateway import eventually
from tests.support.postgres import running_postgres


@pytest.fixture
def accepted(client: Any) -> str:
    return str(client.CreateAnalysis(pb.CreateAnalysisRequest(order=an_order())).id)


def states(events: list[analysis_pb2.Event]) -> list[str]:
    return [event.data["state"] for event in events if event.kind == "state"]


def test_events_come_once_in_order_and_end_with_the_analysis(client: Any, accepted: str) -> None:
    watching = client.WatchAnalysis(pb.WatchAnalysisRequest(id=accepted))
    first = next(watching)
    assert (first.seq, first.kind, first.data["state"]) == (1, "state", "accepted")
    began = time.monotonic()
    client.CancelAnalysis(pb.CancelAnalysisRequest(id=accepted))
    rest = list(watching)
    assert time.monotonic() - began < 10  # told, and not found at the look that comes after 15 s
    assert states(rest) == ["cancelled"]
    assert [each.seq for each in (first, *rest)] == list(range(1, len(rest) + 2))
    assert [each.seq for each in client.WatchAnalysis(pb.WatchAnalysisRequest(id=accepted, after=1))] == [2]
    assert list(client.WatchAnalysis(pb.WatchAnalysisRequest(id=accepted, after=99))) == []
    assert (
        refusal(lambda: client.WatchAnalysis(pb.WatchAnalysisRequest(id=accepted, after=-1))).reason == "invalid-order"
    )


def test_an_analysis_that_began_anew_is_followed_to_its_last_end(client: Any, accepted: str) -> None:
    client.CancelAnalysis(pb.CancelAnalysisRequest(id=accepted))
    client.RetryAnalysis(pb.RetryAnalysisRequest(id=accepted))
    client.CancelAnalysis(pb.CancelAnalysisRequest(id=accepted))
    assert states(list(client.WatchAnalysis(pb.WatchAnalysisRequest(id=accepted)))) == [
        "accepted", "cancelled", "accepted", "cancelled",
    ]  # fmt: skip


def test_cancelling_a_watch_ends_the_stream_only(client: Any, accepted: str, api: Api) -> None:
    watching = client.WatchAnalysis(pb.WatchAnalysisRequest(id=accepted))
    next(watching)
    watching.cancel()
    late = refusal(lambda: client.WatchAnalysis(pb.WatchAnalysisRequest(id=accepted), timeout=0.5))
    assert late.code is grpc.StatusCode.DEADLINE_EXCEEDED
    time.sleep(0.5)
    assert api.ledger.get(accepted).analysis.state is State.ACCEPTED


def test_a_run_gives_the_analysis_its_events_and_its_end(client: Any) -> None:
    running = client.RunAnalysis(pb.RunAnalysisRequest(order=an_order(), request_id="run-1"))
    first = next(running).analysis
    assert first.state == analysis_pb2.STATE_ACCEPTED
    assert first.order == an_order(priority=first.priority)
    assert next(running).event.seq == 1
    client.CancelAnalysis(pb.CancelAnalysisRequest(id=first.id))
    *events, last = list(running)
    assert states([each.event for each in events]) == ["cancelled"]
    assert (last.analysis.id, last.analysis.state) == (first.id, analysis_pb2.STATE_CANCELLED)


@pytest.mark.parametrize("end", ["cancelled", "deadline", "connection"])
def test_a_run_ends_with_its_call(api: Api, end: str) -> None:
    channel = api.channel()
    stub = AnalysisServiceStub(channel)
    timeout = 1.0 if end == "deadline" else 120.0
    running = stub.RunAnalysis(pb.RunAnalysisRequest(order=an_order()), metadata=bearer(), timeout=timeout)
    analysis_id = next(running).analysis.id
    if end == "cancelled":
        running.cancel()
    elif end == "connection":
        channel.close()
    eventually(lambda: api.ledger.get(analysis_id).analysis.state is State.CANCELLED, "it is cancelled")


def test_a_run_that_ends_while_it_is_being_accepted_leaves_nothing(api: Api) -> None:
    """The order may be on disk before anybody can be told its id: it is cancelled nevertheless."""
    before = {record.analysis.id for record in api.ledger.page("default", AnalysisQuery(), 200).items}
    stub = AnalysisServiceStub(api.channel())
    refusal(lambda: stub.GetAnalysis(pb.GetAnalysisRequest(), metadata=bearer()))  # from here on it is connected
    for number in range(20):
        running = stub.RunAnalysis(pb.RunAnalysisRequest(order=an_order(f"1.9.{number}")), metadata=bearer())
        time.sleep(number * 0.001)
        running.cancel()

    def unfinished() -> bool:
        records = api.ledger.page("default", AnalysisQuery(), 200).items
        return not any(each.analysis.id not in before and not each.analysis.state.final for each in records)

    eventually(unfinished, "every accepted order is cancelled")


def a_run_that_ends(api: Api, monkeypatch: pytest.MonkeyPatch, tries: list[Exception]) -> str:
    """The id of a run whose caller is gone, and whose cancellation fails by each of `tries`, which it uses up."""
    cancel = api.ledger.cancel

    def failing(*arguments: Any) -> Any:
        if tries:
            raise tries.pop(0)
        return cancel(*arguments)

    monkeypatch.setattr(api.ledger, "cancel", failing)
    running = AnalysisServiceStub(api.channel()).RunAnalysis(
        pb.RunAnalysisRequest(order=an_order()), metadata=bearer(), timeout=30
    )
    analysis_id = next(running).analysis.id
    running.cancel()
    return str(analysis_id)


def test_a_cancellation_that_fails_is_tried_again(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[Exception] = [StateError("cannot be used now"), ValueError("a defect")]
    analysis_id = a_run_that_ends(api, monkeypatch, tries)
    eventually(lambda: api.ledger.get(analysis_id).analysis.state is State.CANCELLED, "it is cancelled")
    assert not tries


def test_a_server_that_stops_tries_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancellation that failed, and waits long for its next try."""
    monkeypatch.setattr("gateway.grpc.follow._CANCEL_PAUSE_S", 600.0)
    tries: list[Exception] = [StateError("cannot be used now")]
    with serving(tmp_path / "state") as api:
        analysis_id = a_run_that_ends(api, monkeypatch, tries)
        eventually(lambda: not tries, "it was tried")
        assert api.ledger.get(analysis_id).analysis.state is State.ACCEPTED
    with serving(tmp_path / "state") as api:
        assert api.ledger.get(analysis_id).analysis.state is State.CANCELLED


def test_two_hundred_streams_at_once(api: Api) -> None:
    client = api.analyses()
    ids = [client.CreateAnalysis(pb.CreateAnalysisRequest(order=an_order(f"1.6.{n}"))).id for n in range(20)]
    stub = AnalysisServiceStub(api.channel())
    streams = [
        stub.WatchAnalysis(pb.WatchAnalysisRequest(id=ids[n % 20]), metadata=bearer(), timeout=90) for n in range(200)
    ]
    for stream in streams:
        assert next(stream).seq == 1
    began = time.monotonic()
    client.GetAnalysis(pb.GetAnalysisRequest(id=ids[0]))
    assert time.monotonic() - began < 10, "other calls wait for the streams"
    ends: list[float] = []
    for analysis_id in ids:
        client.CancelAnalysis(pb.CancelAnalysisRequest(id=analysis_id))
    began = time.monotonic()
    for stream in streams:
        assert states(list(stream)) == ["cancelled"]
        ends.append(time.monotonic() - began)
    assert max(ends) < 14  # told, as above


def test_streams_outlive_a_database_that_is_down(tmp_path: Path) -> None:
    with running_postgres() as postgres, serving(tmp_path / "state", database_url=postgres.new_database()) as api:
        client = api.analyses()
        running = client.RunAnalysis(pb.RunAnalysisRequest(order=an_order()), timeout=60)
        analysis_id = next(running).analysis.id
        assert next(running).event.seq == 1
        ended = client.RunAnalysis(pb.RunAnalysisRequest(order=an_order()), timeout=60)
        ended_id = next(ended).analysis.id
        postgres.stop()
        ended.cancel()
        wrong = refusal(lambda: client.CreateAnalysis(pb.CreateAnalysisRequest(order=an_order()), timeout=30))
        assert (wrong.code, wrong.reason) == (grpc.StatusCode.UNAVAILABLE, "database-unavailable")
        assert wrong.details["RetryInfo"].retry_delay.seconds > 0
        postgres.start()
        eventually(lambda: not refused(client, analysis_id), "it answers again")
        client.CancelAnalysis(pb.CancelAnalysisRequest(id=analysis_id))
        *events, last = list(running)
        assert states([each.event for each in events]) == ["cancelled"]
        assert last.analysis.state == analysis_pb2.STATE_CANCELLED
        eventually(lambda: api.ledger.get(ended_id).analysis.state is State.CANCELLED, "the ended call's is cancelled")


def refused(client: Any, analysis_id: str) -> bool:
    try:
        client.GetAnalysis(pb.GetAnalysisRequest(id=analysis_id))
    except grpc.RpcError:
        return True
    return False


def test_a_server_that_stops_ends_its_streams_and_no_analysis(tmp_path: Path) -> None:
    told: list[grpc.RpcError] = []

    def read(stream: Iterator[Any]) -> None:
        try:
            list(stream)
        except grpc.RpcError as error:
            told.append(error)

    with serving(tmp_path / "state") as api:
        channel = grpc.insecure_channel(f"127.0.0.1:{api.port}")  # that stays open longer than the server
        stub = AnalysisServiceStub(channel)
        running = stub.RunAnalysis(pb.RunAnalysisRequest(order=an_order()), metadata=bearer())
        analysis_id = next(running).analysis.id
        watching = stub.WatchAnalysis(pb.WatchAnalysisRequest(id=analysis_id), metadata=bearer())
        next(watching)  # it has begun: a call that comes while the server stops is not answered at all
        readers = [threading.Thread(target=read, args=(stream,)) for stream in (running, watching)]
        for reader in readers:
            reader.start()
        began = time.monotonic()
    assert time.monotonic() - began < 15
    for reader in readers:
        reader.join()
    channel.close()
    assert [refusal_of(error).code for error in told] == [grpc.StatusCode.UNAVAILABLE] * 2
    assert {refusal_of(error).reason for error in told} == {"state-busy"}
    with serving(tmp_path / "state") as api:
        assert api.ledger.get(analysis_id).analysis.state is State.ACCEPTED
