"""The whole way with a real PACS: slide from the PACS, order over REST, report back in the PACS."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest

from gateway.domain.uids import derive_uid
from tests.e2e.conftest import Cli
from tests.support.gateway import Gateway, running_gateway
from tests.support.orthanc import Orthanc, running_orthanc

pytestmark = [pytest.mark.pacs, pytest.mark.triton]

OWN = {"analysis_id", "issued", "order"}
"""What two reports of one slide may differ in at the top level; UIDs and file digests below it are dropped too."""


@pytest.fixture(scope="module")
def pacs(cmu_slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path_factory.mktemp("pacs")) as server:
        server.upload(cmu_slide)
        yield server


@pytest.fixture(scope="module")
def gateway(cli: Cli, pacs: Orthanc) -> Iterator[Gateway]:
    with running_gateway(cli.state, pacs.address, **cli.environment) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def slide(cmu_slide: Path) -> pydicom.Dataset:
    return pydicom.dcmread(next(cmu_slide.glob("*.dcm")), stop_before_pixels=True)


@pytest.fixture(scope="module")
def analysis(gateway: Gateway, slide: pydicom.Dataset) -> str:
    """A completed analysis of the slide in the PACS."""
    patient = {"id": slide.PatientID}
    specimens = [{"slides": [{"study": slide.StudyInstanceUID, "series": [slide.SeriesInstanceUID]}]}]
    ordered = gateway.order(
        slide.StudyInstanceUID, patient=patient, accession=slide.AccessionNumber, specimens=specimens
    )
    shown = gateway.finish(ordered)
    assert shown["state"] == "completed", shown
    return ordered


def own_things_dropped(report: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report.items() if key not in OWN}


def test_one_structured_report_lies_in_the_pacs(
    gateway: Gateway, pacs: Orthanc, slide: pydicom.Dataset, analysis: str
) -> None:
    sop = derive_uid(analysis, f"sr/{slide.StudyInstanceUID}")
    assert pacs.instances("SR") == [sop]
    given = gateway.request("GET", f"/v1/analyses/{analysis}/report", headers={"Accept": "application/dicom"})
    assert given.status_code == 200
    assert pacs.file(sop) == given.content


def test_the_pacs_shows_it_in_the_slides_study(pacs: Orthanc, slide: pydicom.Dataset, analysis: str) -> None:
    [study] = pacs.get("/studies?expand")
    assert study["MainDicomTags"]["StudyInstanceUID"] == slide.StudyInstanceUID
    modalities = sorted(pacs.get(f"/series/{series}")["MainDicomTags"]["Modality"] for series in study["Series"])
    assert modalities == ["SM", "SR"]


def test_the_report_is_the_one_from_a_folder(
    gateway: Gateway, analysis: str, cli: Cli, cmu_slide: Path, tmp_path: Path
) -> None:
    done = cli("analyze", "--protocol", "tissue-classification", "--slide", cmu_slide, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    from_folder = json.loads((tmp_path / "report.json").read_text())
    from_pacs = gateway.request("GET", f"/v1/analyses/{analysis}/report").json()
    assert from_pacs["analysis_id"] == analysis
    assert own_things_dropped(from_pacs) == own_things_dropped(from_folder)


def test_steps_are_told(gateway: Gateway, analysis: str) -> None:
    finished = [step for step, status in gateway.steps(analysis) if status == "finished"]
    assert finished == ["fetch", "infer", "report", "deliver"]


def test_analyze_from_the_pacs_stores_nothing(
    cli: Cli, pacs: Orthanc, slide: pydicom.Dataset, analysis: str, tmp_path: Path
) -> None:
    before = pacs.instances()
    done = cli(
        "analyze", "--protocol", "tissue-classification", "--archive", pacs.address,
        "--study", slide.StudyInstanceUID, "--series", slide.SeriesInstanceUID, "--out", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "report.json").read_text())["tissue"]
    assert pacs.instances() == before


def test_logs_hold_no_patient_and_no_password(gateway: Gateway, pacs: Orthanc, slide: pydicom.Dataset) -> None:
    logs = [gateway.log, *(gateway.state / "logs").rglob("*")]
    text = "".join(path.read_text(errors="replace") for path in logs if path.is_file())
    assert text
    secrets = [str(slide.PatientName), slide.PatientID, slide.AccessionNumber, slide.StudyInstanceUID]
    secrets += [pacs.password, pacs.address]
    assert [secret for secret in secrets if secret in text] == []
