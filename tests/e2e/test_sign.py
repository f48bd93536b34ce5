"""A person signs, corrects and comments by the API: what the API, the PACS and the audit trail say afterwards."""

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import jsonschema
import pydicom
import pytest

from gateway.reports import report_schema
from tests.e2e.conftest import Cli
from tests.support.gateway import Gateway, case_of, eventually, running_gateway
from tests.support.oidc_issuer import AUDIENCE, Issuer
from tests.support.orthanc import Orthanc

pytestmark = [pytest.mark.pacs, pytest.mark.triton]

CARCINOMA = {"code": "35917007", "scheme": "SCT", "display": "Adenocarcinoma"}
ENCODINGS = ("application/json", "text/html", "application/dicom", "application/pdf")


@pytest.fixture(scope="module")
def gateway(cli: Cli, pacs: Orthanc, issuer: Issuer) -> Iterator[Gateway]:
    settings = {
        "PATHSERVE_OIDC_ISSUER": issuer.url,
        "PATHSERVE_OIDC_AUDIENCE": AUDIENCE,
        "PATHSERVE_TENANT": "north",
    }
    with running_gateway(cli.state, pacs.address, **cli.environment, **settings) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def analysis(gateway: Gateway, cmu_slide: Path) -> str:
    """A completed analysis that nobody has signed."""
    ordered = gateway.order(case_of(cmu_slide))
    gateway.completed(ordered)
    return ordered


@pytest.fixture(scope="module")
def person(issuer: Issuer) -> dict[str, str]:
    return {"Authorization": f"Bearer {issuer.token()}"}


def post(gateway: Gateway, analysis: str, what: str, body: Any, headers: dict[str, str]) -> Any:
    return gateway.request("POST", f"/v1/analyses/{analysis}/{what}", json=body, headers=headers)


def read(gateway: Gateway, analysis: str, media_type: str = "application/json", revision: int | None = None) -> bytes:
    query = "" if revision is None else f"?revision={revision}"
    path = f"/v1/analyses/{analysis}/report{query}"
    answer = gateway.request("GET", path, headers={"Accept": media_type})
    assert answer.status_code == 200, answer.text
    return answer.content


def document(gateway: Gateway, analysis: str, revision: int | None = None) -> pydicom.Dataset:
    return pydicom.dcmread(BytesIO(read(gateway, analysis, "application/dicom", revision)))


def test_a_signature_needs_a_persons_scope(gateway: Gateway, analysis: str, issuer: Issuer) -> None:
    reader = {"Authorization": f"Bearer {issuer.token(scope='analyses:read analyses:write')}"}
    for headers in ({}, reader):
        for what, body in (("sign", {}), ("amend", {"reason": "r", "text": "t"})):
            refused = post(gateway, analysis, what, body, headers)
            assert (refused.status_code, refused.json()["reason"]) == (403, "wrong-scope")
    assert json.loads(read(gateway, analysis))["revision"] == 1


def test_signed_then_corrected(
    gateway: Gateway, pacs: Orthanc, cli: Cli, analysis: str, person: dict[str, str]
) -> None:
    first = {media_type: read(gateway, analysis, media_type) for media_type in ENCODINGS}
    signed = post(gateway, analysis, "sign", {"revision": 1, "comment": "Agrees with the microscope."}, person)
    assert signed.status_code == 201, signed.text
    assert (signed.json()["number"], signed.json()["state"], signed.json()["by_name"]) == (
        2,
        "final",
        "Dr. Anna Example",
    )

    # At once, in every encoding.
    report = json.loads(read(gateway, analysis))
    jsonschema.validate(report, report_schema())
    assert (report["state"], report["revision"], report["supersedes"]) == ("final", 2, 1)
    assert report["signature"]["name"] == "Dr. Anna Example"
    assert b"Final: signed by Dr. Anna Example (north)" in read(gateway, analysis, "text/html")
    assert document(gateway, analysis).VerificationFlag == "VERIFIED"
    assert read(gateway, analysis, "application/pdf").startswith(b"%PDF-")
    assert post(gateway, analysis, "sign", {}, person).status_code == 409
    assert post(gateway, analysis, "amend", {"revision": 1, "reason": "r", "text": "t"}, person).status_code == 412

    correction = {"revision": 2, "reason": "A second reading", "text": "Stroma is tumour.", "findings": [CARCINOMA]}
    amended = post(gateway, analysis, "amend", correction, person)
    assert (amended.status_code, amended.json()["number"], amended.json()["state"]) == (201, 3, "amended")
    report = json.loads(read(gateway, analysis))
    [amendment] = report["amendments"]
    assert amendment["amendment"] == {key: correction[key] for key in ("reason", "text", "findings")}
    before, now = document(gateway, analysis, 2), document(gateway, analysis)
    [study] = now.PredecessorDocumentsSequence
    assert study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == before.SOPInstanceUID

    # What was before stays as it was.
    assert {media_type: read(gateway, analysis, media_type, 1) for media_type in ENCODINGS} == first
    listed = gateway.request("GET", f"/v1/analyses/{analysis}/revisions").json()["items"]
    assert [(each["number"], each["state"]) for each in listed] == [(1, "preliminary"), (2, "final"), (3, "amended")]
    documents = {document(gateway, analysis, number).SOPInstanceUID for number in (1, 2, 3)}
    assert len(documents) == 3

    # In the PACS: each revision's documents, what is drawn once.
    eventually(lambda: set(pacs.instances("SR")) == documents, "the PACS has every revision's report")
    eventually(lambda: len(pacs.instances("KO")) == len(pacs.instances("DOC")) == 3, "and what goes with it")
    assert [len(pacs.instances(modality)) for modality in ("SEG", "ANN", "OT")] == [1, 1, 1]
    done = cli("audit", "export")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    mine = [each for each in records if each["entity"] == analysis]
    changes = [
        each["subtype"] for each in mine if each["subtype"] in ("report-made", "report-signed", "report-amended")
    ]
    assert changes == ["report-made", "report-signed", "report-amended"]
    [signing] = [each for each in mine if each["subtype"] == "report-signed"]
    assert signing["actor_kind"] == "person"
    assert cli("audit", "verify").returncode == 0


def test_feedback_is_kept_as_training_signal(
    gateway: Gateway, cli: Cli, analysis: str, person: dict[str, str], cmu_slide: Path
) -> None:
    header = pydicom.dcmread(next(cmu_slide.glob("*.dcm")), stop_before_pixels=True)
    series = header.SeriesInstanceUID
    said = {"verdict": "amend", "finding": CARCINOMA, "series": series, "comment": f"{header.PatientName} again"}
    given = post(gateway, analysis, "feedback", said, person)
    assert given.status_code == 201, given.text
    assert post(gateway, analysis, "feedback", said | {"series": "2.25.404"}, person).status_code == 400
    [kept] = gateway.request("GET", f"/v1/analyses/{analysis}/feedback").json()["items"]
    assert (kept["verdict"], kept["finding"], kept["comment"]) == ("amend", CARCINOMA, said["comment"])
    done = cli("feedback", "export")
    assert done.returncode == 0, done.stderr
    [line] = [json.loads(line) for line in done.stdout.splitlines()]
    assert (line["analysis"], line["verdict"], line["series"]) == (analysis, "amend", [series])
    assert {model["name"] for model in line["models"]} == {"tile_encoder", "tissue_head", "tissue_classification"}
    assert not [word for word in (header.PatientID, str(header.PatientName), "again") if str(word) in done.stdout]


def test_what_has_no_report_is_not_signed(gateway: Gateway, cmu_slide: Path, person: dict[str, str]) -> None:
    case = case_of(cmu_slide) | {"accession": "ANOTHER"}
    held = gateway.order(case)
    gateway.wait_for(held, "held-identity")
    for what, body in (("sign", {}), ("amend", {"reason": "r", "text": "t"}), ("feedback", {"verdict": "agree"})):
        assert post(gateway, held, what, body, person).status_code == 409
    gateway.request("DELETE", f"/v1/analyses/{held}")
