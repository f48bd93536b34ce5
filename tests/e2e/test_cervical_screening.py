"""`cervical-screening` end to end: small engines in a real Triton, painted smears, a phantom, a folder and a PACS."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pydicom
import pytest
from prometheus_client import REGISTRY

from gateway.domain.bethesda import HSIL, NILM
from gateway.operations.errors import ResolutionTooCoarse
from gateway.operations.settings import Settings
from gateway.slides.phantom import write_phantom
from tests.e2e.conftest import Cli
from tests.support.analyzed import analyzed, report_in
from tests.support.bags import OnnxEngine
from tests.support.dciodvfy import needs_dciodvfy, validate
from tests.support.gateway import Gateway, case_of, running_gateway
from tests.support.models import without_golden
from tests.support.orthanc import Orthanc
from tests.support.screening import CERVIX, screened, screening, smear, write_smear
from tests.support.screening_models import BIASES, TEMPERATURE, write_screening
from tests.support.triton import held_triton, rows_computed

pytestmark = pytest.mark.triton

FEW_CELLS = ("adequacy.min_cells", "10")
CELLS = ((HSIL, 120.0, 130.0), *((NILM, 60.0 + 60 * place, 90.0) for place in range(4)))
OF_THE_CASE = {"report.json", "report.html", "report.pdf", "report.pdf.dcm", "report.sr.dcm", "report.ko.dcm"}
DRAWN = {"cells-1.ann.dcm", "cells-1.pm.dcm"}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without golden answers, so that all rows that Triton computes are of slides."""
    return write_screening(without_golden(Settings().model_repository, tmp_path_factory.mktemp("models") / "models"))


@pytest.fixture(scope="module")
def cli(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """The command, its Triton kept running."""
    state = tmp_path_factory.mktemp("state")
    with held_triton(Settings(state=state, model_repository=repository)):
        yield Cli(state, {"PATHSERVE_MODEL_REPOSITORY": str(repository)})


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smear with one cell of HSIL."""
    return write_smear(tmp_path_factory.mktemp("slide"), smear(CELLS, size_um=400), root="one")


@pytest.fixture(scope="module")
def out(cli: Cli, slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    done = cli(
        *("analyze", "--protocol", "cervical-screening", "--slide", slide, "--out", folder),
        *("--set", "=".join(FEW_CELLS)),
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_files_and_what_the_report_says(cli: Cli, out: Path) -> None:
    files = {path.name for path in out.iterdir()}
    assert files >= OF_THE_CASE | DRAWN | {"thumbnail-1.jpg", "cell-map-1.png"}
    assert {f"cell-1-{rank}.jpg" for rank in range(1, 6)} <= files
    report = report_in(out)
    jsonschema.validate(report, json.loads(cli("schema", "report").stdout))
    assert report["category"]["label"] == "HSIL"
    assert sum(report["probabilities"].values()) == pytest.approx(1)
    assert report["probabilities"] == report["probabilities_unadapted"]
    assert report["schema_version"] == "1.8"
    assert report["logits"] == report["logits_unadapted"]
    calibrated = np.exp(np.array(list(report["logits"].values())) / TEMPERATURE + BIASES)
    assert calibrated / calibrated.sum() == pytest.approx(list(report["probabilities"].values()))
    assert report["adequacy"]["code"] == "125152006"
    assert report["adaptation"]["verdict"] == "not commissioned"
    assert report["operating_point"] == {"name": "95 % sensitivity", "abnormal_from": 0.3}
    assert [model["name"] for model in report["models"]] == ["smartccs_detect", "smartccs_embed", "smartccs_slide"]
    [setting] = [each for each in report["findings"] if each["code"]["code"] == "setting-changed"]
    assert "adequacy.min_cells" in setting["text"]
    named = {item["file"] for item in (*report["objects"], *report["pictures"])}
    assert named == files - {"report.json"}


def test_every_cell_is_an_annotation(out: Path) -> None:
    annotations = pydicom.dcmread(out / "cells-1.ann.dcm")
    groups = annotations.AnnotationGroupSequence
    assert sum(int(group.NumberOfAnnotations) for group in groups) == len(CELLS)


@pytest.mark.validators
@needs_dciodvfy
def test_validator_finds_no_error(out: Path) -> None:
    assert {path.name: validate(path) for path in out.glob("*.dcm") if validate(path)} == {}


async def screened_alone(repository: Path, state: Path, slide: Path, out: Path, **settings: str) -> dict[str, Any]:
    """The report of an analysis without a server."""
    given = dict([FEW_CELLS]) | {key.replace("__", "."): value for key, value in settings.items()}
    return await analyzed("cervical-screening", repository, state, slide, out, settings=tuple(given.items()))


async def test_triton_says_of_a_phantom_what_its_networks_say(cli: Cli, repository: Path, tmp_path: Path) -> None:
    """The same cells, and probabilities within 1e-4 of the same networks run without it."""
    slide = tmp_path / "slide"
    write_phantom(slide, kind="cytology", width_px=3000, height_px=2600, mpp=0.25, organ=CERVIX, seed=4)
    report = await screened_alone(repository, cli.state, slide, tmp_path / "out", adequacy__max_obscured="1")
    with screening(slide, repository, tmp_path / "task", adequacy__max_obscured="1") as task:
        expected = await screened(task, OnnxEngine(repository))
    assert expected.screening is not None
    [found] = report["screenings"]
    assert found["detected"] == list(expected.screening.detected)
    assert sum(found["detected"]) > 10
    np.testing.assert_allclose(
        [each["probability"] for each in found["classes"]],
        [each.probability for each in expected.screening.classes],
        atol=1e-4,
    )
    assert [cell["x_um"] for cell in found["gallery"]] == pytest.approx(
        [cell.x_um for cell in expected.screening.gallery], abs=0.01
    )


def counted(outcome: str) -> float:
    labels = {"outcome": outcome, "site_verdict": "not commissioned"}
    return REGISTRY.get_sample_value("screenings_total", labels) or 0.0


async def test_every_slide_of_a_case_is_there_the_last_one_too(cli: Cli, repository: Path, tmp_path: Path) -> None:
    for number, cells in enumerate(([], CELLS[1:], CELLS)):
        write_smear(tmp_path / "case" / f"{number}", smear(cells, size_um=300), root=f"case {number}")
    kinds = ("no_cells", "negative", "abnormal")
    before = list(map(counted, kinds))
    report = await screened_alone(repository, cli.state, tmp_path / "case", tmp_path / "out")
    assert [after - old for after, old in zip(map(counted, kinds), before, strict=True)] == [1, 1, 1]
    assert len(report["slides"]) == len(report["screenings"]) == 3
    said = sorted((sum(result["detected"]), tuple(result["categories"])) for result in report["screenings"])
    assert said == [(0, ()), (4, (NILM,)), (5, (HSIL,))]
    assert report["category"]["label"] == "HSIL"


async def test_an_all_white_slide_has_a_report(cli: Cli, repository: Path, tmp_path: Path) -> None:
    white = write_smear(tmp_path / "slide", np.full((1200, 1300, 3), 255, np.uint8), root="white")
    report = await screened_alone(repository, cli.state, white, tmp_path / "out")
    assert report["category"] is None
    assert report["probabilities"] is None
    assert [reason["code"] for reason in report["adequacy"]["reasons"]] == ["unsatisfactory-empty"]


async def test_an_he_slide_gets_no_category_and_nothing_drawn(
    cli: Cli, repository: Path, cmu_slide: Path, tmp_path: Path
) -> None:
    report = await screened_alone(repository, cli.state, cmu_slide, tmp_path)
    assert report["category"] is None
    codes = {finding["code"]["code"] for finding in report["findings"]}
    assert {"specimen-not-cervical", "stain-outside", "stain-not-papanicolaou"} <= codes
    assert not {path.name for path in tmp_path.iterdir()} & DRAWN


async def test_too_coarse_a_slide_is_refused(cli: Cli, repository: Path, tmp_path: Path) -> None:
    coarse = write_smear(tmp_path / "slide", smear([], size_um=600, mpp=1.0), mpp=1.0, root="coarse")
    with pytest.raises(ResolutionTooCoarse):
        await screened_alone(repository, cli.state, coarse, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.fixture(scope="module")
def gateway(cli: Cli, pacs: Orthanc) -> Iterator[Gateway]:
    with running_gateway(cli.state, pacs.address, **cli.environment) as gateway:
        yield gateway


@pytest.mark.pacs
async def test_from_a_pacs_killed_in_the_middle_of_the_windows(
    cli: Cli, repository: Path, gateway: Gateway, pacs: Orthanc, tmp_path: Path
) -> None:
    """Ordered over REST, kill -9 once windows lie on disk; what is then reported is what a run in one go says."""
    slide = write_smear(tmp_path / "slide", smear(CELLS, size_um=1200), root="killed")
    pacs.upload(slide)
    before = rows_computed(cli.state, "smartccs_detect")
    analysis = gateway.order(case_of(slide, stain=None), protocol="cervical-screening")
    report = gateway.completed_after_a_kill(analysis, "windows.bin", 30_000)
    computed = rows_computed(cli.state, "smartccs_detect") - before
    settings = {"adequacy.min_cells": "8000"}
    expected = await screened_alone(repository, cli.state, slide, tmp_path / "out", **settings)
    [found], [whole] = report["screenings"], expected["screenings"]
    assert found["adequacy"] == whole["adequacy"]
    assert found["detected"] == whole["detected"] == [4, 0, 0, 1, 0, 0]
    assert report["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-6)
    assert report["category"] is None
    assert report["adequacy"]["code"] == "125154007"
    windows = rows_computed(cli.state, "smartccs_detect") - before - computed
    assert computed <= 2 * windows - 8, "what lay on disk is not computed again"
