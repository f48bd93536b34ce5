"""The API's description: valid, current, with examples that work; and the process that serves it stays light."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from gateway.http.openapi import document

KEPT = Path(__file__).resolve().parents[2] / "docs" / "openapi.json"
HEAVY = ("dbos", "wsidicom", "pydicom", "highdicom", "cv2", "simplejpeg", "imagecodecs", "tritonclient", "numpy")


def test_the_description_is_valid_openapi_3_1() -> None:
    described = json.loads(document())
    assert described["openapi"].startswith("3.1")
    validate(described)


def test_the_kept_description_is_current() -> None:
    assert KEPT.read_text() == document(), "run: python -m gateway.http.openapi > docs/openapi.json"


def test_only_health_is_open() -> None:
    described = json.loads(document())
    unlocked = {
        path
        for path, operations in described["paths"].items()
        for operation in operations.values()
        if operation["security"] == []
    }
    assert unlocked == {"/livez", "/readyz"}


async def test_the_examples_work(client: httpx.AsyncClient) -> None:
    described = json.loads(document())
    tried = 0
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            body: dict[str, Any] = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            for example in body.get("examples", {}).values():
                answer = await client.request(method, path, json=example["value"])
                assert f"{answer.status_code}" in operation["responses"], answer.text
                assert answer.status_code < 300
                tried += 1
    assert tried >= 1
    for example in described["components"]["schemas"]["OrderBody"]["examples"]:
        assert (await client.post("/v1/analyses", json=example)).status_code == 202


def test_the_examples_fit_their_schemas() -> None:
    described = json.loads(document())
    schemas = described["components"]["schemas"]
    tried = 0
    for schema in schemas.values():
        checker = Draft202012Validator(schema | {"components": {"schemas": schemas}})
        for example in schema.get("examples", []):
            assert [error.message for error in checker.iter_errors(example)] == []
            tried += 1
    assert tried >= 5


def test_the_serving_process_loads_no_decoder_and_no_workflow_engine() -> None:
    code = f"import sys, gateway.http.serve; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
