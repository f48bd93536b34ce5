"""The whole way with a real PACS: slides from the PACS, order over REST, every object back in the PACS."""

import json
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from gateway.archive import open_archive
from gateway.archive.cache import FrameCache
from gateway.archive.costs import Costs, Sample
from gateway.archive.partial import PartialInstance
from gateway.domain.uids import derive_uid
from gateway.slides.phantom import Identity, write_phantom
from tests.e2e.conftest import Cli
from tests.support.gateway import Gateway, case_of, running_gateway
from tests.support.orthanc import Orthanc

pytestmark = [pytest.mark.pacs, pytest.mark.triton]

OWN = {"analysis_id", "issued", "order"}
"""What two reports of one slide may differ in."""

DRAWN = ("ANN", "OT", "SEG")
"""The modalities of what is drawn on a slide; OT is the heat map's."""


@pytest.fixture(scope="module")
def gateway(cli: Cli, pacs: Orthanc) -> Iterator[Gateway]:
    with running_gateway(cli.state, pacs.address, **cli.environment) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def slide(cmu_slide: Path) -> pydicom.Dataset:
    return pydicom.dcmread(next(cmu_slide.glob("*.dcm")), stop_before_pixels=True)


@pytest.fixture(scope="module")
def analysis(gateway: Gateway, cmu_slide: Path) -> str:
    """A completed analysis of the slide in the PACS."""
    ordered = gateway.order(case_of(cmu_slide, stain=None))
    gateway.completed(ordered)
    return ordered


def own_things_dropped(report: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report.items() if key not in OWN}


def objects_of(gateway: Gateway, analysis: str) -> dict[str, bytes]:
    """The analysis's DICOM objects, by SOP instance UID, as the API gives them."""
    items = gateway.request("GET", f"/v1/analyses/{analysis}/artifacts").json()["items"]
    files = [
        gateway.request("GET", item["href"]).content for item in items if item["media_type"] == "application/dicom"
    ]
    return {pydicom.dcmread(BytesIO(file), stop_before_pixels=True).SOPInstanceUID: file for file in files}


def shown(pacs: Orthanc, study: str) -> list[str]:
    """The modalities of the series that the PACS shows in a study."""
    [found] = [each for each in pacs.get("/studies?expand") if each["MainDicomTags"]["StudyInstanceUID"] == study]
    return sorted(pacs.get(f"/series/{series}")["MainDicomTags"]["Modality"] for series in found["Series"])


def test_every_object_lies_in_the_pacs_byte_for_byte(gateway: Gateway, pacs: Orthanc, analysis: str) -> None:
    objects = objects_of(gateway, analysis)
    assert len(objects) == 6
    assert {sop: pacs.file(sop) == file for sop, file in objects.items()} == dict.fromkeys(objects, True)


def test_the_pacs_shows_them_in_the_slides_study(pacs: Orthanc, slide: pydicom.Dataset, analysis: str) -> None:
    assert shown(pacs, slide.StudyInstanceUID) == sorted([*DRAWN, "DOC", "KO", "SM", "SR"])
    assert pacs.instances("SR") == [derive_uid(analysis, f"sr/{slide.StudyInstanceUID}")]


@pytest.mark.parametrize(
    ("media_type", "begins"),
    [("application/dicom", b"\0" * 128 + b"DICM"), ("application/pdf", b"%PDF-"), ("text/html", b"<!DOCTYPE html>")],
)
def test_the_report_is_given_in_every_encoding(gateway: Gateway, analysis: str, media_type: str, begins: bytes) -> None:
    given = gateway.request("GET", f"/v1/analyses/{analysis}/report", headers={"Accept": media_type})
    assert (given.status_code, given.headers["content-type"].partition(";")[0]) == (200, media_type)
    assert given.content.startswith(begins)


def test_two_studies_and_a_wrong_stain(gateway: Gateway, pacs: Orthanc, tmp_path: Path) -> None:
    """A case of two slides in two studies of one patient, one of them stained for another purpose."""
    studies = ["2.25.8001", "2.25.8002"]
    for number, study in enumerate(studies):
        identity = Identity(study_uid=study, container=f"C-{number}")
        write_phantom(tmp_path / study, width_px=1024, height_px=1024, seed=number, stains=(), identity=identity)
        pacs.upload(tmp_path / study)
    case = case_of(*(tmp_path / study for study in studies), stain=None)
    stained = [specimen | {"stain": stain} for specimen, stain in zip(case["specimens"], ("HE", "PAP"), strict=True)]
    analysis = gateway.order(case, specimens=stained)
    gateway.completed(analysis)
    assert shown(pacs, studies[0]) == sorted([*DRAWN, "DOC", "KO", "SM", "SR"])
    assert shown(pacs, studies[1]) == ["SM", "SR"]
    report = gateway.report(analysis)
    [finding] = [each for each in report["findings"] if each["code"]["code"] == "stain-outside"]
    assert finding["series"] == report["slides"][1]["series"]
    # What was stored can be taken away, so that others find the PACS as they expect it.
    for sop in objects_of(gateway, analysis):
        pacs.delete(sop)


def test_the_report_is_the_one_from_a_folder(
    gateway: Gateway, analysis: str, cli: Cli, cmu_slide: Path, tmp_path: Path
) -> None:
    done = cli("analyze", "--protocol", "tissue-classification", "--slide", cmu_slide, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    from_folder = json.loads((tmp_path / "report.json").read_text())
    from_pacs = gateway.report(analysis)
    assert from_pacs["analysis_id"] == analysis
    assert own_things_dropped(from_pacs) == own_things_dropped(from_folder)


def test_a_slide_of_which_only_tissue_was_pulled_gives_the_same_report(
    gateway: Gateway, cli: Cli, pacs: Orthanc, tmp_path: Path
) -> None:
    slide = tmp_path / "slide"
    write_phantom(slide, width_px=3072, height_px=3072, seed=9, coverage=0.1)
    pacs.upload(slide)
    header = pydicom.dcmread(next(slide.glob("*.dcm")), stop_before_pixels=True)
    # As if whole instances had been slow to come from this PACS and frames quick, so that frames are asked for.
    cache = FrameCache(gateway.state / "cache", 2**30).of_archive(open_archive(pacs.address).address)
    now = time.time()
    slow = Sample(frames=False, instance_bytes=1e6, sent_bytes=1e6, wait_s=0.01, seconds=60.0, at=now)
    quick = Sample(frames=True, instance_bytes=1e6, sent_bytes=1e5, wait_s=0.01, seconds=0.02, at=now)
    cache.mkdir(parents=True, exist_ok=True)
    Costs((slow, quick)).write(cache / "costs.json")

    analysis = gateway.order(case_of(slide, stain=None))
    gateway.completed(analysis)
    parts = [PartialInstance(head) for head in (cache / header.StudyInstanceUID).rglob("*.header.dcm")]
    fetched_F = np.concatenate([part.extents()[:, 0] >= 0 for part in parts])
    assert 0 < fetched_F.mean() < 0.6
    pulled = sum(part.frames_file.stat().st_size for part in parts if part.frames_file.exists())
    assert pulled < 0.8 * sum(path.stat().st_size for path in slide.glob("level-*.dcm"))

    done = cli("analyze", "--protocol", "tissue-classification", "--slide", slide, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    from_folder = json.loads((tmp_path / "out" / "report.json").read_text())
    from_pacs = gateway.report(analysis)
    assert own_things_dropped(from_pacs) == own_things_dropped(from_folder)
    for sop in objects_of(gateway, analysis):
        pacs.delete(sop)


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
