"""`slide-classification` end to end: real encoder, small slide heads in a real Triton, a folder and a PACS."""

import json
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pydicom
import pytest

from gateway.analyses.batches import REQUEST_TILES
from gateway.domain.order import RegionUm
from gateway.operations.errors import ModelNotLoaded, ModelsUnfit, NoTissue
from gateway.operations.settings import Settings
from gateway.slides.phantom import write_phantom
from tests.e2e.conftest import Cli
from tests.support.analyzed import analyzed, report_in
from tests.support.bags import add_slide_head
from tests.support.dciodvfy import needs_dciodvfy, validate
from tests.support.gateway import Gateway, case_of, running_gateway
from tests.support.models import without_golden, without_slide_heads
from tests.support.orthanc import Orthanc
from tests.support.pathseg import write_pathseg
from tests.support.triton import held_triton, rows_computed

pytestmark = pytest.mark.triton

PROTOCOL = "slide-classification"
OF_THE_CASE = {"report.json", "report.html", "report.pdf", "report.sr.dcm", "thumbnail-1.jpg", "attention-map-1.png"}
DRAWN = {"slide-1.pm.dcm", "slide-1.geojson", "report.pdf.dcm", "report.ko.dcm"}
TILES = {f"top-tile-1-{rank}.jpg" for rank in range(1, 9)}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without golden answers, so that all rows that Triton computes are of tiles."""
    found = without_golden(Settings().model_repository, tmp_path_factory.mktemp("models") / "repository")
    add_slide_head(found)
    return write_pathseg(found)


@pytest.fixture(scope="module")
def cli(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """The command on a repository with a slide head, its Triton kept running."""
    state = tmp_path_factory.mktemp("state")
    with held_triton(Settings(state=state, model_repository=repository)):
        yield Cli(state, {"PATHSERVE_MODEL_REPOSITORY": str(repository)})


@pytest.fixture(scope="module")
def out(cli: Cli, cmu_slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    done = cli("analyze", "--protocol", PROTOCOL, "--slide", cmu_slide, "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_files_and_figures(cli: Cli, out: Path) -> None:
    assert {path.name for path in out.iterdir()} == OF_THE_CASE | DRAWN | TILES
    report = report_in(out)
    jsonschema.validate(report, json.loads(cli("schema", "report").stdout))
    assert report["schema_version"] == "1.8"
    assert [model["name"] for model in report["models"]] == ["tile_encoder", "slide_abmil"]
    [classes] = report["slide_classes"]
    assert sum(each["probability"] for each in classes["classes"]) == pytest.approx(1)
    assert classes["bag"] == classes["tiles"] == report["slides"][0]["tiles_read"]
    assert report["slides"][0]["quality"]["blurred_share"] < 0.05
    named = {item["file"] for item in (*report["objects"], *report["pictures"])}
    assert named == (OF_THE_CASE | DRAWN | TILES) - {"report.json"}
    assert report["exploratory"] is True, "the organ of the slide is not known"


@pytest.mark.validators
@needs_dciodvfy
def test_validator_finds_no_error(out: Path) -> None:
    assert {path.name: validate(path) for path in out.glob("*.dcm") if validate(path)} == {}


async def test_one_tile(cli: Cli, repository: Path, cmu_slide: Path, tmp_path: Path) -> None:
    region = RegionUm(x_um=560, y_um=790, width_um=20, height_um=20)
    report = await analyzed(PROTOCOL, repository, cli.state, cmu_slide, tmp_path, region=region)
    [classes] = report["slide_classes"]
    assert (classes["bag"], [tile["share"] for tile in classes["top_tiles"]]) == (1, [1.0])


async def test_no_tissue(cli: Cli, repository: Path, tmp_path: Path) -> None:
    write_phantom(tmp_path / "slide", kind="he", width_px=1024, height_px=1024, tissue=False)
    with pytest.raises(NoTissue):
        await analyzed(PROTOCOL, repository, cli.state, tmp_path / "slide", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


async def test_a_stain_that_the_head_is_not_for(cli: Cli, repository: Path, tmp_path: Path) -> None:
    write_phantom(tmp_path / "slide", kind="cytology", width_px=1024, height_px=1024)
    report = await analyzed(PROTOCOL, repository, cli.state, tmp_path / "slide", tmp_path / "out")
    assert "stain-outside" in {finding["code"]["code"] for finding in report["findings"]}
    assert not {path.name for path in (tmp_path / "out").iterdir()} & DRAWN


async def test_a_head_of_another_encoder(cli: Cli, repository: Path, cmu_slide: Path, tmp_path: Path) -> None:
    other = without_slide_heads(repository, tmp_path / "repository")
    add_slide_head(other, encoder={"model": "tile_encoder", "weights_sha256": "9" * 64})
    with pytest.raises(ModelsUnfit, match="slide_abmil version 1 was trained on another tile_encoder"):
        await analyzed(PROTOCOL, other, cli.state, cmu_slide, tmp_path / "out")
    with pytest.raises(ModelNotLoaded, match="no model slide_abmil"):
        await analyzed(
            PROTOCOL, without_slide_heads(repository, tmp_path / "none"), cli.state, cmu_slide, tmp_path / "out"
        )


async def test_what_objects_mean_to_the_answer(cli: Cli, repository: Path, cmu_slide: Path, tmp_path: Path) -> None:
    report = await analyzed(
        PROTOCOL,
        repository,
        cli.state,
        cmu_slide,
        tmp_path,
        prompts=("nucleus in the colon", "tissue-level glomerulus in kidney pathology"),
        region=RegionUm(x_um=500, y_um=1250, width_um=110, height_um=90),
        settings=(("explain.tiles", "2"), ("explain.repeats", "10")),
    )
    jsonschema.validate(report, json.loads(cli("schema", "report").stdout))
    explanation = report["slide_classes"][0]["explanation"]
    nucleus, glomerulus = explanation["objects"]
    assert explanation["tiles"] == nucleus["tiles"] == 2
    assert nucleus["importance"]["control"]["low"] < nucleus["importance"]["control"]["high"]
    assert glomerulus["importance"] is None
    assert {model["name"] for model in report["models"]} == {
        "tile_encoder", "pathseg_text", "pathseg_image", "pathseg_prompt", "pathseg", "slide_abmil"
    }  # fmt: skip
    assert "object-absent" in {finding["code"]["code"] for finding in report["findings"]}


@pytest.fixture(scope="module")
def gateway(cli: Cli, pacs: Orthanc) -> Iterator[Gateway]:
    with running_gateway(cli.state, pacs.address, **cli.environment) as gateway:
        yield gateway


@pytest.mark.pacs
def test_from_and_to_a_pacs_killed_in_the_middle_of_the_tiles(
    cli: Cli, gateway: Gateway, pacs: Orthanc, cmu_slide: Path, out: Path
) -> None:
    """Ordered over REST, kill -9 once tiles lie on disk; what is then reported is what a run in one go says."""
    before = rows_computed(cli.state, "tile_encoder")
    analysis = gateway.order(case_of(cmu_slide, stain=None), protocol=PROTOCOL)
    report = gateway.completed_after_a_kill(analysis, "tiles.bin", 1000)
    expected = report_in(out)
    assert report["slide_classes"] == expected["slide_classes"]
    assert report["slides"] == expected["slides"]
    # The batch that lay on disk is not computed again.
    tiles = report["slides"][0]["tiles_read"]
    assert rows_computed(cli.state, "tile_encoder") - before <= 2 * tiles - REQUEST_TILES
    study = pydicom.dcmread(next(cmu_slide.glob("*.dcm")), stop_before_pixels=True).StudyInstanceUID
    [found] = [each for each in pacs.get("/studies?expand") if each["MainDicomTags"]["StudyInstanceUID"] == study]
    shown = sorted(pacs.get(f"/series/{series}")["MainDicomTags"]["Modality"] for series in found["Series"])
    assert shown == ["DOC", "KO", "OT", "SM", "SR"]


def test_what_a_server_says_of_the_protocol(gateway: Gateway) -> None:
    items = gateway.request("GET", "/v1/protocols").json()["items"]
    [protocol] = [item for item in items if item["name"] == PROTOCOL]
    assert protocol["models"] == ["tile_encoder", "slide_abmil"]
    assert protocol["cards"]["slide_abmil"]["kind"] == "bag"
    ready = {item["name"] for item in gateway.request("GET", "/v1/models").json()["items"] if item["ready"]}
    assert {"tile_encoder", "slide_abmil", "tissue_classification"} <= ready
