"""Orders by gRPC for tests of more than gRPC: as a LIS places them, again and again until they are answered."""

from typing import Any

import grpc

from gateway.grpc.proto.pathserve.v1 import order_pb2
from gateway.grpc.proto.pathserve.v1.analysis_service_pb2 import CreateAnalysisRequest
from gateway.grpc.proto.pathserve.v1.analysis_service_pb2_grpc import AnalysisServiceStub
from tests.support.gateway import KEY, Case

# What is down for a moment says one of these; anything else is a fault that no LIS could mend.
_PASSES = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}


def order_from(case: Case, priority: str = "ROUTINE") -> order_pb2.Order:
    """The order of a case, as `case_of` gives it."""
    return order_pb2.Order(
        protocol="tissue-classification",
        priority=order_pb2.Priority.Value(f"PRIORITY_{priority}"),
        accession=case.get("accession"),
        patient=order_pb2.Patient(**case["patient"]),
        specimens=[order_pb2.Specimen(**specimen) for specimen in case["specimens"]],
    )


def placed(channel: grpc.Channel, case: Case, key: str, priority: str = "ROUTINE") -> str | None:
    """The analysis of an order with this request id; None where it is to be sent again."""
    request = CreateAnalysisRequest(order=order_from(case, priority), request_id=key)
    metadata: Any = (("authorization", f"Bearer {KEY}"),)
    try:
        return str(AnalysisServiceStub(channel).CreateAnalysis(request, metadata=metadata, timeout=15).id)
    except grpc.RpcError as error:
        if error.code() in _PASSES:
            return None
        raise
