"""The right patient, in a real PACS: what does not agree is held, and nothing of it leaves before a person says so."""

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest

from gateway.slides.phantom import Identity, write_phantom
from tests.e2e.conftest import Cli
from tests.support.gateway import Case, Gateway, case_of, running_gateway
from tests.support.oidc_issuer import AUDIENCE, Issuer
from tests.support.orthanc import Orthanc, running_orthanc

pytestmark = [pytest.mark.pacs, pytest.mark.triton]

ANNA = Identity(study_uid="2.25.9101", patient_id="PAT-ANNA", accession="ACC-ANNA", container="CONT-ANNA")
BERTA = Identity(study_uid="2.25.9102", patient_id="PAT-BERTA", accession="ACC-BERTA", container="CONT-BERTA")
VALUES = [value for one in (ANNA, BERTA) for value in (one.patient_id, one.accession, one.container)]
IDENTIFIERS = ["accession number", "container identifier", "patient id"]


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path_factory.mktemp("pacs")) as server:
        yield server


@pytest.fixture(scope="module")
def cases(pacs: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Case]:
    """Two patients' cases, a small slide each, in the PACS."""
    folder = tmp_path_factory.mktemp("slides")
    for seed, identity in enumerate((ANNA, BERTA)):
        write_phantom(folder / identity.patient_id, width_px=1024, height_px=1024, seed=seed, identity=identity)
        pacs.upload(folder / identity.patient_id)
    return case_of(folder / ANNA.patient_id), case_of(folder / BERTA.patient_id)


@pytest.fixture(scope="module")
def gateway(cli: Cli, pacs: Orthanc, issuer: Issuer) -> Iterator[Gateway]:
    settings = {
        "PATHSERVE_OIDC_ISSUER": issuer.url,
        "PATHSERVE_OIDC_AUDIENCE": AUDIENCE,
        "PATHSERVE_TENANT": "north",
        "PATHSERVE_DELIVERY_DELAY_S": "0.2",
    }
    with running_gateway(cli.state, pacs.address, **cli.environment, **settings) as gateway:
        yield gateway


@pytest.fixture
def person(issuer: Issuer) -> dict[str, str]:
    return {"Authorization": f"Bearer {issuer.token()}"}


def release(gateway: Gateway, analysis: str, headers: dict[str, str] | None = None) -> Any:
    body = {"reason": "The labels were printed twice; checked against the request form."}
    return gateway.request("POST", f"/v1/analyses/{analysis}/release", json=body, headers=headers or {})


def audited(cli: Cli, analysis: str) -> list[dict[str, Any]]:
    done = cli("audit", "export")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    return [record for record in records if record["entity"] == analysis]


def swapped(one: Case, other: Case) -> Case:
    """One patient's order that names the other one's slide."""
    [specimen], [wrong] = one["specimens"], other["specimens"]
    return one | {"specimens": [specimen | {"slides": wrong["slides"]}]}


def test_two_swapped_slides_are_held_and_nothing_of_them_leaves(
    gateway: Gateway, pacs: Orthanc, cli: Cli, cases: tuple[Case, Case], person: dict[str, str]
) -> None:
    anna, berta = cases
    analyses = [gateway.order(swapped(anna, berta)), gateway.order(swapped(berta, anna))]
    before = pacs.instances()
    for analysis in analyses:
        shown = gateway.wait_for(analysis, "held-identity")
        assert sorted(each["attribute"] for each in shown["held"]) == IDENTIFIERS
        assert {each["problem"] for each in shown["held"]} == {"differs"}
        assert not [value for value in VALUES if value in json.dumps(shown["held"])]
        assert gateway.request("GET", f"/v1/analyses/{analysis}/report").status_code == 409
        assert gateway.request("GET", f"/v1/analyses/{analysis}/artifacts").json()["items"] == []
        [record] = [each for each in audited(cli, analysis) if each["subtype"] == "analysis-held"]
        assert record["detail"]["attributes"] == IDENTIFIERS
        assert not [value for value in VALUES if value in json.dumps(record)]
    assert not [path for path in (gateway.state / "cache").rglob("*.frames") if path.stat().st_size]

    refused = release(gateway, analyses[0])
    assert (refused.status_code, refused.json()["reason"]) == (403, "wrong-scope")
    assert gateway.show(analyses[0])["state"] == "held-identity"
    released = release(gateway, analyses[0], person)
    assert released.status_code == 202, released.text
    gateway.completed(analyses[0])
    assert len(pacs.instances("SR")) == 1
    subtypes = [each["subtype"] for each in audited(cli, analyses[0])]
    assert subtypes.index("analysis-held") < subtypes.index("analysis-released") < subtypes.index("report-made")

    assert gateway.request("DELETE", f"/v1/analyses/{analyses[1]}").status_code == 200
    assert gateway.show(analyses[1])["state"] == "cancelled"
    left = set(pacs.instances()) - set(before)
    reports = [pydicom.dcmread(path) for path in (gateway.state / "analyses" / analyses[0]).rglob("*.dcm")]
    assert left <= {str(report.SOPInstanceUID) for report in reports}
    for sop in left:
        pacs.delete(sop)


@pytest.mark.parametrize("missing", ["patient", "accession", "container"])
def test_what_the_order_does_not_say_is_held(gateway: Gateway, cases: tuple[Case, Case], missing: str) -> None:
    order = {key: value for key, value in cases[0].items() if key != missing}
    if missing == "container":
        [specimen] = order["specimens"]
        order["specimens"] = [{key: value for key, value in specimen.items() if key != missing}]
    analysis = gateway.order(order)
    [difference] = gateway.wait_for(analysis, "held-identity")["held"]
    assert difference["attribute"].startswith(missing)
    assert difference["problem"] == "not-in-order"
    gateway.request("DELETE", f"/v1/analyses/{analysis}")


def test_a_header_that_the_pacs_corrects_before_the_report_leaves(
    gateway: Gateway, pacs: Orthanc, person: dict[str, str], tmp_path: Path
) -> None:
    """The slide was fetched as one patient's, and is another's by the time the report would be stored."""
    identity = Identity(study_uid="2.25.9103", patient_id="PAT-CLARA", accession="ACC-CLARA", container="CONT-CLARA")
    write_phantom(tmp_path, width_px=3072, height_px=3072, seed=3, identity=identity)
    pacs.upload(tmp_path)
    case = case_of(tmp_path)
    analysis = gateway.order(case)
    gateway.wait_for_step(analysis, "fetch", "finished")
    for path in tmp_path.glob("*.dcm"):
        corrected = pydicom.dcmread(path)
        corrected.PatientID = "PAT-DORA"
        corrected.save_as(path)
    pacs.replace(tmp_path)
    shown = gateway.wait_for(analysis, "held-identity", 90)
    assert [each["attribute"] for each in shown["held"]] == ["patient id"]
    assert pacs.instances("SR") == []
    gateway.wait_for_step(analysis, "report", "finished")

    # Whoever releases it does not make the objects those of the slide's new patient.
    assert release(gateway, analysis, person).status_code == 202
    gateway.completed(analysis)
    deliveries = gateway.request("GET", f"/v1/analyses/{analysis}/deliveries").json()["items"]
    assert [(each["state"], each["reason"]) for each in deliveries] == [("dead", "identity-mismatch")]
    assert pacs.instances("SR") == []
    again = gateway.order(case_of(tmp_path))
    gateway.completed(again)
    [stored] = pacs.instances("SR")
    assert pydicom.dcmread(BytesIO(pacs.file(stored))).PatientID == "PAT-DORA"
