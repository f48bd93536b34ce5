"""The API's description: valid, current, with examples that work; and the process that serves it stays light."""

import html
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from gateway.analyses.ledger import Ledger
from gateway.domain.principal import Scope
from gateway.http.openapi import document
from tests.http.conftest import ORDER, Hand, audited, calling_as, principal

KEPT = Path(__file__).resolve().parents[2] / "docs" / "openapi.json"
HEAVY = ("dbos", "wsidicom", "pydicom", "highdicom", "cv2", "simplejpeg", "imagecodecs", "tritonclient", "numpy")


def test_the_description_is_valid_openapi_3_1() -> None:
    described = json.loads(document())
    assert described["openapi"].startswith("3.1")
    validate(described)


def test_the_kept_description_is_current() -> None:
    assert KEPT.read_text() == document(), "run: python -m gateway.http.openapi > docs/openapi.json"


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    """Method, path and description of all operations."""
    paths = json.loads(document())["paths"]
    return [(method, path, operation) for path, methods in paths.items() for method, operation in methods.items()]


def test_only_health_and_the_token_endpoint_are_open_and_each_other_names_its_scope() -> None:
    security = {(method, path): operation["security"] for method, path, operation in operations()}
    unlocked = {path for (_, path), needed in security.items() if needed == []}
    assert unlocked == {"/livez", "/readyz", "/oauth/token"}
    known = {scope.value for scope in Scope}
    for where, needed in security.items():
        if needed:
            [[scope]] = [each["bearer"] for each in needed]
            assert scope in known, where


async def test_without_its_scope_an_operation_is_refused(state: Path, ledger: Ledger) -> None:
    tried = 0
    for method, path, operation in operations():
        if operation["security"] == []:
            continue
        [[needed]] = [each["bearer"] for each in operation["security"]]
        others = principal(*(scope for scope in Scope if scope not in (Scope(needed), Scope.ADMIN)))
        async with calling_as(state, ledger, others) as client:
            answer = await client.request(method, filled(path, "a"), json=example_of(operation))
        assert (answer.status_code, answer.json()["reason"]) == (403, "wrong-scope"), (path, answer.text)
        tried += 1
        refusals = [each for each in audited(ledger) if each["subtype"] == "access-refused"]
        assert len(refusals) == tried
        assert (refusals[-1]["outcome"], refusals[-1]["actor"]) == ("4", others.subject)
        assert refusals[-1]["detail"]["scope"] == needed
    assert tried >= 20


async def test_every_example_of_a_body_is_taken(state: Path, ledger: Ledger, hand: Hand) -> None:
    tried = 0
    everything = principal(*Scope)
    async with calling_as(state, ledger, everything) as client:
        for method, path, operation in operations():
            for value in examples_of(operation):
                created = await client.post("/v1/analyses", json=ORDER)
                analysis_id = created.json()["id"]
                if path.endswith("/release"):
                    hand.hold(analysis_id)
                elif path.endswith("/feedback"):
                    hand.complete(analysis_id)
                elif path.endswith(("/sign", "/amend")):
                    continue  # they need the files of a real report: tests/e2e/test_sign.py
                elif path == "/v1/segment":
                    continue  # it needs a slide and the models: test_segment.py
                answer = await client.request(method, filled(path, analysis_id), json=value)
                assert answer.status_code < 300, (path, answer.text)
                assert f"{answer.status_code}" in operation["responses"], path
                tried += 1
    assert tried >= 5


def test_every_operation_with_a_body_or_an_answer_in_json_has_an_example() -> None:
    schemas = json.loads(document())["components"]["schemas"]
    for method, path, operation in operations():
        for status, answer in operation["responses"].items():
            if status.startswith("2") and "application/json" in answer.get("content", {}) and path != "/oauth/token":
                named = answer["content"]["application/json"].get("schema", {}).get("$ref", "").rpartition("/")[2]
                if named:
                    assert schemas[named].get("examples"), (method, path, status)
        if "requestBody" in operation and path != "/oauth/token":
            assert examples_of(operation), (method, path)


def test_the_examples_fit_their_schemas() -> None:
    schemas = json.loads(document())["components"]["schemas"]
    tried = 0
    for schema in schemas.values():
        checker = Draft202012Validator(schema | {"components": {"schemas": schemas}})
        for example in schema.get("examples", []):
            assert [error.message for error in checker.iter_errors(example)] == []
            tried += 1
    assert tried >= 15


async def test_the_description_and_the_page_need_a_token_and_load_nothing(
    client: httpx.AsyncClient, stranger: httpx.AsyncClient
) -> None:
    page = await client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for text in ("<script", "http://", "src=", "<link", "@import"):
        assert text not in page.text
    described = json.loads(document())
    for path in described["paths"]:
        assert html.escape(path) in page.text
    assert (await client.get("/openapi.json")).json() == described


def filled(path: str, analysis_id: str) -> str:
    return path.replace("{analysis_id}", analysis_id).replace("{name}", "report.json")


def examples_of(operation: dict[str, Any]) -> list[Any]:
    content = operation.get("requestBody", {}).get("content", {})
    return [each["value"] for each in content.get("application/json", {}).get("examples", {}).values()]


def example_of(operation: dict[str, Any]) -> Any:
    return next(iter(examples_of(operation)), None)


def test_the_serving_process_loads_no_decoder_and_no_workflow_engine() -> None:
    code = f"import sys, gateway.http.serve; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
