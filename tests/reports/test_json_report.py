import json
from dataclasses import replace

import jsonschema
import pytest
from pydantic import ValidationError

from gateway.domain.report import Report
from gateway.reports import from_json, report_schema, to_json


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = report_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("name", ["report", "exploratory", "two_slides"])
def test_round_trip_and_schema(name: str, validator, request: pytest.FixtureRequest) -> None:
    report: Report = request.getfixturevalue(name)
    data = to_json(report)
    assert from_json(data) == report
    assert to_json(from_json(data)) == data
    validator.validate(json.loads(data))


def test_a_slide_that_the_archive_does_not_know_is_valid(validator, two_slides: Report) -> None:
    slides = (*two_slides.slides[:2], replace(two_slides.slides[2], series=""))
    validator.validate(json.loads(to_json(replace(two_slides, slides=slides))))


def test_is_readable_utf8(report: Report) -> None:
    data = to_json(replace(report, statement="Mikroskopie, µm, 山田"))
    assert "Mikroskopie, µm, 山田".encode() in data
    assert data.startswith(b'{\n  "schema_version": "1"')
    assert data.endswith(b"}\n")


def test_time_is_utc_and_explicit(report: Report) -> None:
    assert json.loads(to_json(report))["issued"] == "2026-11-26T09:30:15.250000Z"


def test_schema_describes_itself() -> None:
    schema = report_schema()
    assert schema["$schema"].endswith("2020-12/schema")
    assert schema["$id"].startswith("urn:pathserve:")
    assert schema["title"] == "pathserve report"
    undescribed = [name for name, part in schema["$defs"].items() if not part.get("description")]
    assert undescribed == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("tissue", 0, "uncertain_share"), 1.2),
        (("tissue", 0, "classes", 0, "color"), "red"),
        (("tissue", 0, "classes", 0, "tiles"), -1),
        (("models", 0, "engine_sha256"), "abc"),
        (("slides", 0, "study"), "not-a-uid"),
        (("slides", 0, "series"), "not-a-uid"),
        (("state",), "signed by nobody"),
        (("surprise",), 1),
        (("schema_version",), "2"),
        (("slides", 0, "tissue_area_mm2"), -1),
        (("slides", 0, "level_mpp"), 0),
        (("tissue", 0, "classes", 0, "mean_probability"), 7),
        (("tissue", 0, "classes", 0, "evidence", 0, "x_um"), -1),
        (("order", "region"), {"x_um": 0, "y_um": 0, "width_um": -1, "height_um": 1}),
    ],
)
def test_schema_refuses(path: tuple[str | int, ...], value: object, validator, report: Report) -> None:
    document = json.loads(to_json(report))
    part = document
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    assert not validator.is_valid(document)


def test_schema_asks_for_every_field(validator, report: Report) -> None:
    document = json.loads(to_json(report))
    del document["exploratory"]
    assert not validator.is_valid(document)


def test_not_a_report_is_refused() -> None:
    with pytest.raises(ValidationError):
        from_json(b'{"analysis_id": 1}')


def test_nan_never_leaves(report: Report) -> None:
    result = replace(report.tissue[0], area_mm2=float("nan"))
    with pytest.raises(ValueError, match="JSON compliant"):
        to_json(replace(report, tissue=(result,)))
