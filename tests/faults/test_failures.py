"""An analysis that cannot be done ends `failed` with its reason: no report, nothing stored in the PACS."""

import io
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pydicom
import pytest

from gateway.operations.settings import Settings
from gateway.slides.phantom import write_phantom
from tests.e2e.conftest import Cli
from tests.support.dicom import dicom_file
from tests.support.gateway import (
    Case,
    Gateway,
    case_of,
    case_without_slides,
    eventually,
    running_gateway,
    study_in,
)
from tests.support.models import without_slide_heads
from tests.support.orthanc import Orthanc, free_port
from tests.support.rogue_answers import by_path
from tests.support.rogue_pacs import Answer, Request, RoguePacs, dicom_json, once_listed, running

pytestmark = [pytest.mark.pacs, pytest.mark.triton]

QUICK = {"PATHSERVE_RETRY_ATTEMPTS": "2", "PATHSERVE_RETRY_DELAY_S": "0.1"}


@pytest.fixture(scope="module")
def gateway(pacs: Orthanc, models: Path, state: Path) -> Iterator[Gateway]:
    with running_gateway(state, pacs.address, PATHSERVE_MODEL_REPOSITORY=str(models), **QUICK) as gateway:
        yield gateway


def assert_failed(gateway: Gateway, analysis: str, reason: str) -> None:
    """Failed with this reason and a sentence; no report by any way."""
    shown = gateway.finish(analysis)
    assert (shown["state"], shown["failure"]["reason"]) == ("failed", reason), shown
    detail = shown["failure"]["detail"]
    assert detail.endswith(".")
    assert not [word for word in ("Traceback", "/", "127.0.0.1", "TEST^") if word in detail], detail
    assert gateway.request("GET", f"/v1/analyses/{analysis}/artifacts").json()["items"] == []
    answer = gateway.request("GET", f"/v1/analyses/{analysis}/report")
    assert answer.status_code == 409
    assert answer.json()["reason"] == reason
    left = [path.name for path in (gateway.state / "analyses").rglob("report*") if analysis in str(path)]
    assert left == []


def nobody() -> str:
    """An address that nobody listens on."""
    return f"127.0.0.1:{free_port()}"


def uploaded(pacs: Orthanc, folder: Path) -> Case:
    pacs.upload(folder)
    return case_of(folder)


def phantom(folder: Path, seed: int, **more: object) -> Path:
    write_phantom(folder, kind="he", width_px=1024, height_px=1024, seed=seed, **more)
    return folder


def test_a_study_that_is_not_there(gateway: Gateway, pacs: Orthanc) -> None:
    assert_failed(gateway, gateway.order(case_without_slides("2.25.404")), "slide-not-in-archive")
    assert pacs.instances("SR") == []


def test_a_series_that_is_not_there(gateway: Gateway, pacs: Orthanc, tmp_path: Path) -> None:
    study = study_in(uploaded(pacs, phantom(tmp_path, seed=31)))
    assert_failed(gateway, gateway.order(case_without_slides(study, ["2.25.404"])), "slide-not-in-archive")
    assert pacs.instances("SR") == []


def test_no_tissue(gateway: Gateway, pacs: Orthanc, tmp_path: Path) -> None:
    case = uploaded(pacs, phantom(tmp_path, seed=32, tissue=False))
    assert_failed(gateway, gateway.order(case), "no-tissue")
    assert pacs.instances("SR") == []


def test_too_coarse(gateway: Gateway, pacs: Orthanc, tmp_path: Path) -> None:
    case = uploaded(pacs, phantom(tmp_path, seed=33, mpp=2.0))
    assert_failed(gateway, gateway.order(case), "resolution-too-coarse")
    assert pacs.instances("SR") == []


def test_a_label_only(gateway: Gateway, pacs: Orthanc, cmu_slide: Path, tmp_path: Path) -> None:
    for path in cmu_slide.glob("*.dcm"):
        dataset = pydicom.dcmread(path)
        if "LABEL" in dataset.ImageType:
            dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID = (
                "2.25.41",
                "2.25.42",
                "2.25.43",
            )
            dataset.file_meta.MediaStorageSOPInstanceUID = "2.25.43"
            dataset.save_as(tmp_path / "label.dcm")
    assert_failed(gateway, gateway.order(uploaded(pacs, tmp_path)), "no-volume-image")
    assert pacs.instances("SR") == []


def test_a_header_without_what_a_slide_needs(gateway: Gateway, pacs: Orthanc, tmp_path: Path) -> None:
    (tmp_path / "poor.dcm").write_bytes(dicom_file("2.25.51", "2.25.52", "2.25.53"))
    analysis = gateway.order(uploaded(pacs, tmp_path))
    reason = gateway.finish(analysis)["failure"]["reason"]
    assert reason in ("invalid-slide", "no-volume-image", "missing-pixel-spacing")
    assert_failed(gateway, analysis, reason)
    assert pacs.instances("SR") == []


def test_one_slide_of_two_is_not_there(gateway: Gateway, pacs: Orthanc, tmp_path: Path) -> None:
    """What is there is read, and the report says what is not."""
    case = uploaded(pacs, phantom(tmp_path, seed=34))
    study = study_in(case)
    slides = [{"study": study, "series": []}, {"study": "2.25.404", "series": []}]
    [specimen] = case["specimens"]
    analysis = gateway.order(case, specimens=[specimen | {"slides": slides}])
    assert gateway.finish(analysis)["state"] == "completed"
    report = gateway.request("GET", f"/v1/analyses/{analysis}/report").json()
    assert {slide["study"]: slide["read"] for slide in report["slides"]} == {study: True, "2.25.404": False}
    [stored] = pacs.instances("SR")
    pacs.delete(stored)


def test_cancelled_in_the_middle(gateway: Gateway, pacs: Orthanc, case: Case) -> None:
    analysis = gateway.order(case)
    gateway.wait_for_step(analysis, "infer", "started")
    assert gateway.request("DELETE", f"/v1/analyses/{analysis}").status_code == 202
    assert gateway.finish(analysis, 20)["state"] == "cancelled"
    assert gateway.request("GET", f"/v1/analyses/{analysis}/report").status_code == 409
    assert "deliver" not in {step for step, _ in gateway.steps(analysis)}
    assert pacs.instances("SR") == []


def pacs_with(folder: Path) -> RoguePacs:
    """A server that gives the slide in a folder, and whose other answers a test may replace."""
    files = {path.stem: path.read_bytes() for path in folder.glob("*.dcm")}
    header = pydicom.dcmread(next(folder.glob("*.dcm")), stop_before_pixels=True)
    return RoguePacs(
        list_series=once_listed(dicom_json({"0020000E": [header.SeriesInstanceUID], "00080060": ["SM"]})),
        list_instances=once_listed(dicom_json(*({"00080018": [sop]} for sop in files))),
        retrieve=by_path(
            instance=lambda request: request.answer(200, "application/dicom", files[request.path.rpartition("/")[2]])
        ),
    )


def taking(server: RoguePacs, slide: Path) -> list[str]:
    """Let the server take what it is sent, and give it back: the SOP instance UIDs that it is sent, in order."""
    files = {path.stem: path.read_bytes() for path in slide.glob("*.dcm")}
    taken: list[str] = []
    list_slide = server.list_instances

    def take(request: Request) -> None:
        data = request.body.partition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0]
        sop = str(pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True).SOPInstanceUID)
        taken.append(sop)
        files[sop] = data
        request.answer(200, "application/dicom+json", b"[{}]")

    def list_taken(request: Request) -> None:
        asked = parse_qs(urlsplit(request.path).query).get("SOPInstanceUID", [""])[0]
        answer = once_listed(dicom_json({"00080018": [asked]})) if asked in files else list_slide
        answer(request)

    server.store, server.list_instances = take, list_taken
    server.retrieve = by_path(
        instance=lambda request: request.answer(200, "application/dicom", files[request.path.rpartition("/")[2]])
    )
    return taken


def test_the_pacs_refuses_the_report(gateway: Gateway, cmu_slide: Path) -> None:
    """The report is there and says so; that it is not in the PACS is a dead letter, until the PACS is mended."""
    gateway.stop()  # the last test of it: another takes its place, beside the same Triton
    failure = {"00081155": {"vr": "UI", "Value": ["1.2"]}, "00081197": {"vr": "US", "Value": [0x0110]}}
    refusal = json.dumps({"00081198": {"vr": "SQ", "Value": [failure]}}).encode()
    server = pacs_with(cmu_slide)
    server.store = lambda request: request.answer(409, "application/dicom+json", refusal)
    with running(server), running_gateway(gateway.state, server.address, **gateway.settings) as gateway:

        def stow() -> dict[str, object]:
            [row] = gateway.request("GET", f"/v1/analyses/{analysis}/deliveries").json()["items"]
            return dict(row)

        analysis = gateway.order(case_of(cmu_slide))
        assert gateway.finish(analysis)["state"] == "completed"
        assert gateway.request("GET", f"/v1/analyses/{analysis}/report").status_code == 200
        assert sum(method == "POST" for method, _, _ in server.requests) == 1
        dead = stow()
        assert (dead["state"], dead["reason"], dead["done"]) == ("dead", "archive-refused", 0)
        assert "failure reason 272" in str(dead["detail"])
        assert [each["id"] for each in listed(gateway, "--dead")] == [dead["id"]]

        taken = taking(server, cmu_slide)
        deliveries(gateway, "replay", "--all-dead")
        eventually(lambda: stow()["state"] == "delivered", "the replayed delivery arrives")
        assert len(taken) == len(set(taken)) > 0
        made = gateway.state / "analyses" / analysis / "artifacts"
        assert set(taken) == {
            str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in made.glob("*.dcm")
        }
        assert listed(gateway, "--dead") == []


def deliveries(gateway: Gateway, *words: str) -> str:
    """What `pathserve deliveries …` prints on the gateway's state folder."""
    done = Cli(gateway.state)("deliveries", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def listed(gateway: Gateway, *words: str) -> list[dict[str, object]]:
    return list(json.loads(deliveries(gateway, "list", "--json", *words))["items"])


def test_neither_pacs_nor_triton_serve(cmu_slide: Path, tmp_path: Path) -> None:
    def answering(status: int, body: bytes) -> Answer:
        return lambda request: request.answer(status, "text/html", body)

    settings = {"PATHSERVE_TRITON_URL": nobody(), "PATHSERVE_RETRY_ATTEMPTS": "1"}
    with ExitStack() as server:
        pacs = server.enter_context(running(pacs_with(cmu_slide)))
        with running_gateway(tmp_path / "state", pacs.address, ready=False, **settings) as gateway:
            # Triton is waited for while all else is asked; nothing more is wanted of this slide from the archive.
            waiting = gateway.order(case_of(cmu_slide))
            gateway.wait_for_step(waiting, "fetch", "finished")
            for answer, reason in [
                (answering(401, b""), "archive-refused"),
                (answering(403, b""), "archive-refused"),
                (answering(200, b"<html>Log in</html>"), "archive-refused"),
                (answering(404, b"<html>Not here</html>"), "slide-not-in-archive"),
                (answering(500, b""), "archive-unavailable"),
            ]:
                pacs.list_series = answer
                assert_failed(gateway, gateway.order(case_without_slides("2.25.1")), reason)
            server.close()
            assert_failed(gateway, gateway.order(case_without_slides("2.25.1")), "archive-unavailable")
            assert_failed(gateway, waiting, "inference-unavailable")
            assert {method for method, _, _ in pacs.requests} == {"GET"}
            gateway.kill()  # all was seen; a good end would wait some seconds for the Triton that is not there


def test_the_model_is_not_there(pacs: Orthanc, case: Case, tmp_path: Path) -> None:
    repository = without_slide_heads(Settings().model_repository, tmp_path / "models")
    shutil.rmtree(repository / "tissue_classification")
    with running_gateway(
        tmp_path / "state", pacs.address, ready=False, PATHSERVE_MODEL_REPOSITORY=str(repository), **QUICK
    ) as gateway:
        assert_failed(gateway, gateway.order(case), "model-not-loaded")
        assert gateway.request("GET", "/readyz").status_code == 503
    assert pacs.instances("SR") == []
