"""docs/grpc.md says of every method what is so."""

import re
from pathlib import Path

from gateway.grpc.server import MAX_MESSAGE_BYTES
from tests.grpc.fuzz import STREAMS
from tests.grpc.test_access import CASES

PAGE = (Path(__file__).parents[2] / "docs" / "grpc.md").read_text(encoding="utf-8")


def test_every_method_is_named_with_its_scopes() -> None:
    rows = re.findall(r"^\| `(\w+)`( \(stream\))? \|.*?\| ((?:`[\w:]+` )+)\|$", PAGE, re.MULTILINE)
    told = {method: ({scope.strip("`") for scope in scopes.split()}, bool(stream)) for method, stream, scopes in rows}
    assert told == {case.method: ({scope.value for scope in case.scopes}, case.method in STREAMS) for case in CASES}


def test_the_limit_of_a_request_is_the_real_one() -> None:
    assert f"{MAX_MESSAGE_BYTES:,} bytes" in PAGE
