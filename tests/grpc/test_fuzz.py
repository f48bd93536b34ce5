"""Hostile requests to every method, by a seed that is printed where one fails."""

from collections import Counter

from gateway.grpc.proto.pathserve.v1 import analysis_service_pb2 as pb
from tests.grpc.conftest import Api
from tests.grpc.fuzz import Fuzz

SEED = 20261126
CASES = 320


def test_hostile_requests_get_typed_answers(api: Api) -> None:
    fuzz = Fuzz(api, SEED)
    ends: Counter[str] = Counter()
    for number in range(CASES):
        try:
            ends[fuzz.case()] += 1
        except AssertionError as error:
            raise AssertionError(f"case {number} of seed {SEED}: {error}") from error
    # The cases reach behind the front door, and the server lives.
    assert ends["OK"] > CASES / 20
    assert len(ends) >= 4
    assert api.analyses().ListAnalyses(pb.ListAnalysesRequest()).items
