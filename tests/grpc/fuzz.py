"""Random and hostile requests to every method: only OK or a typed status may come back, and the server goes on.

`python -m tests.grpc.fuzz --cases 5000 --seed 1` makes a longer run than the suite's.
"""

import argparse
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

from gateway.grpc.proto.pathserve.v1 import analysis_service_pb2, catalog_service_pb2
from tests.grpc.conftest import Api, an_order, bearer, refusal_of, serving

METHODS = [
    method
    for file in (analysis_service_pb2, catalog_service_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
STREAMS = {"RunAnalysis", "WatchAnalysis", "GetReport", "GetArtifact"}
_TEXTS = (
    *(
        "",
        " ",
        "\x00",
        "\n",
        "'; DROP TABLE analyses; --",
        "../../etc/passwd",
        "%s%n",
        "é" * 70,
        "\U0001f9ec",
        "\u202e",
    ),
    *("A" * 300, "x" * 70_000, "tissue-classification", "HE", "1.2.3", "1." * 40, "NaN", "null", "application/json"),
    *("application/dicom", "report.json", "report.sr.dcm", "*", "\\", '"', "\ufffd", "-1", "1e999"),
)
_NUMBERS = (0, 1, 2, -1, 3, 50, 200, 2**31 - 1, -(2**31))
_LARGE = (2**53, 2**63 - 1, -(2**63))
_FLOATS = (0.0, -0.0, 1.5, -1.0, float("nan"), float("inf"), float("-inf"), 1e308, 5e-324)
_TYPED = {
    *("INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "ABORTED", "PERMISSION_DENIED", "UNAUTHENTICATED"),
    "RESOURCE_EXHAUSTED",
}
# A client that ends its own call sees these, whatever the server would have said.
_OWN_END = {"DEADLINE_EXCEEDED", "CANCELLED"}


class Fuzz:
    """Calls one server with what a seed gives. `ids`: analyses that are there."""

    def __init__(self, api: Api, seed: int) -> None:
        self._random = random.Random(seed)
        self._channel = api.channel()
        client = api.analyses()
        self._ids = [
            client.CreateAnalysis(analysis_service_pb2.CreateAnalysisRequest(order=an_order(f"1.4.{n}"))).id
            for n in range(5)
        ]

    def case(self) -> str:
        """Make one call and return the name of its status. Fails where that is none that a caller may be given."""
        method = self._random.choice(METHODS)
        raw = self._wire(method)
        name = f"/{method.containing_service.full_name}/{method.name}"
        streams = method.name in STREAMS
        call = (self._channel.unary_stream if streams else self._channel.unary_unary)(name)
        metadata = self._metadata()
        try:
            if streams:
                answers = call(raw, metadata=metadata, timeout=1)
                for _, _answer in zip(range(2), answers, strict=False):
                    pass
                answers.cancel()
            else:
                call(raw, metadata=metadata, timeout=20)
        except grpc.RpcError as error:
            told = refusal_of(error)
            if told.code.name in _OWN_END and streams:
                return told.code.name
            assert told.code.name in _TYPED, (method.name, raw[:200], told)
            # What is too large never reaches us: gRPC itself refuses it.
            assert told.details or told.code.name == "RESOURCE_EXHAUSTED", (method.name, raw[:200], told)
            assert "Traceback" not in told.message
            assert "gateway/" not in told.message
            return told.code.name
        return "OK"

    def _metadata(self) -> Any:
        if self._random.random() < 0.95:
            return bearer()
        text = self._random.choice(
            ("", "Bearer", "Bearer ", "Basic eDp5", "Bearer " + "x" * 3000, "the-key", "bearer the-key")
        )
        return self._random.choice((None, (("authorization", text),), bearer() + bearer(), bearer() + bearer("no")))

    def _wire(self, method: Any) -> bytes:
        raw: bytes = self._message(method.input_type, 0).SerializeToString()
        kind = self._random.random()
        if kind < 0.6:
            return raw
        if kind < 0.75:
            return self._random.randbytes(self._random.choice((1, 7, 100, 5000)))
        damaged = bytearray(raw or b"\x0a")
        for _ in range(self._random.randint(1, 5)):
            at = self._random.randrange(len(damaged))
            damaged[at] = self._random.randrange(256)
        return bytes(damaged if kind < 0.9 else damaged[: self._random.randrange(len(damaged) + 1)])

    def _message(self, kind: Any, depth: int) -> Any:
        message = GetMessageClass(kind)()
        if kind.name == "Order" and self._random.random() < 0.5:
            message.CopyFrom(an_order())
        for field in kind.fields:
            if self._random.random() < 0.35 or (depth > 6 and field.type == FieldDescriptor.TYPE_MESSAGE):
                continue
            if field.is_repeated:
                count = self._random.choice((1, 1, 2, 5, 120))
                values = [self._value(field, depth) for _ in range(count if depth < 3 else 1)]
                target = getattr(message, field.name)
                if field.message_type is not None and field.message_type.GetOptions().map_entry:
                    continue
                target.extend(values)
            elif field.type == FieldDescriptor.TYPE_MESSAGE:
                getattr(message, field.name).CopyFrom(self._value(field, depth))
            else:
                setattr(message, field.name, self._value(field, depth))
        return message

    def _value(self, field: Any, depth: int) -> Any:
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            return self._message(field.message_type, depth + 1)
        if field.type == FieldDescriptor.TYPE_STRING:
            return self._random.choice(self._ids if field.name == "id" and self._random.random() < 0.7 else _TEXTS)
        if field.type == FieldDescriptor.TYPE_DOUBLE:
            return self._random.choice(_FLOATS)
        if field.type == FieldDescriptor.TYPE_BOOL:
            return self._random.random() < 0.5
        if field.type == FieldDescriptor.TYPE_BYTES:
            return self._random.randbytes(self._random.choice((0, 3, 900)))
        return self._random.choice(_NUMBERS + (_LARGE if field.type == FieldDescriptor.TYPE_INT64 else ()))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder, "state")) as api:
        fuzz = Fuzz(api, asked.seed)
        ends = Counter(fuzz.case() for _ in range(asked.cases))
        assert api.analyses().ListAnalyses(analysis_service_pb2.ListAnalysesRequest()) is not None
    print(f"seed {asked.seed}: {asked.cases} calls in {time.monotonic() - began:.0f} s")
    for name, count in ends.most_common():
        print(f"{count:7} {name}")


if __name__ == "__main__":
    main()
