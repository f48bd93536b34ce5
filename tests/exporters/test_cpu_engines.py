"""docs/results/cpu-engines: the page says what the JSON says, and no verdict there is better than its own figures."""

import json
from dataclasses import asdict

import pytest

from exporters.agreement import THRESHOLDS, label_failures
from tests.benchmarks.cpu_engines import CANDIDATES, block_of, page
from tests.conftest import ROOT
from training.files import sha256_file

pytestmark = pytest.mark.training

RESULTS = ROOT / "docs" / "results" / "cpu-engines.json"


@pytest.fixture(scope="module")
def document() -> dict:
    return json.loads(RESULTS.read_bytes())


def test_the_page_is_what_the_json_says(document: dict) -> None:
    assert RESULTS.with_suffix(".md").read_text(encoding="utf-8") == page(document)


def test_every_verdict_follows_from_its_figures(document: dict) -> None:
    assert document["tiles"] >= asdict(THRESHOLDS)["tiles"]
    for row in document["engines"]:
        failures = label_failures(row) + ([] if row["min_cosine"] >= THRESHOLDS.min_cosine else ["cosine"])
        assert row["passed"] == (not failures), row["name"]
        assert row["passed"] == (not row["failed_because"])
        # What passes, and what the target builds, was held to all tiles.
        if row["passed"] or row["precision"]:
            assert row["tiles"] == document["tiles"], row["name"]


def test_the_negative_control_is_refused(document: dict) -> None:
    (control,) = [row for row in document["engines"] if row["name"].startswith("control")]
    assert not control["passed"]


def test_the_figures_are_of_the_engine_that_is_served(document: dict) -> None:
    served = ROOT / "model_repository" / document["model"] / "1" / "model.onnx"
    assert document["reference_sha256"] == sha256_file(served)
    assert {row["precision"] for row in document["engines"]} >= {"fp32", "bf16", "int8"}


def test_blocks_are_counted_as_the_network_has_them() -> None:
    assert [block_of(place) for place in (0, 1, 2, 3, 5, 6, 47, 48)] == [0, 1, 1, 2, 2, 3, 16, 17]
    assert len({candidate.name for candidate in CANDIDATES}) == len(CANDIDATES)
