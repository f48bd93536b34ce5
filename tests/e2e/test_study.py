"""A study of composed slides end to end: small engines in a real Triton, painted smears, folders of their reports."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.domain.bethesda import HSIL, NILM
from gateway.operations.settings import Settings
from gateway.slides.phantom_dicom import Identity
from gateway.slides.phantom_given import write_given
from tests.e2e.conftest import Cli
from tests.support.models import without_golden
from tests.support.screening import CERVIX, PAP, smear
from tests.support.screening_models import write_screening
from tests.support.triton import held_triton

pytestmark = pytest.mark.triton

FEW_CELLS = ("--set", "adequacy.min_cells=10")
NORMAL = tuple((NILM, 60.0 + 60 * place, 90.0) for place in range(4))
SLIDES = {"C1": ((HSIL, 120.0, 130.0), *NORMAL), "C2": NORMAL}


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """The command, its Triton kept running."""
    folder = tmp_path_factory.mktemp("study")
    models = write_screening(without_golden(Settings().model_repository, folder / "models"))
    with held_triton(Settings(state=folder / "state", model_repository=models)):
        yield Cli(folder / "state", {"PATHSERVE_MODEL_REPOSITORY": str(models)})


def write_slide(out: Path, accession: str) -> Path:
    image = smear(SLIDES[accession], size_um=400)
    identity = Identity(accession=accession, patient_id=f"P-{accession}").completed(accession, "cytology", PAP, CERVIX)
    write_given(
        out,
        lambda left, top, across, down: image[top : top + down, left : left + across],
        width_px=image.shape[1],
        height_px=image.shape[0],
        mpp=0.25,
        identity=identity,
        encoding="uncompressed",
    )
    return out


def test_composed_slides_from_registration_to_figures(cli: Cli, tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    at = ("--results", results)

    def study(*arguments: str | Path) -> str:
        done = cli("study", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    study("new", "painted", "--protocol", "cervical-screening", "--by", "A tester", "--composed", *FEW_CELLS)
    study("enrol", "painted", *SLIDES, "--centre", "painted", *at)
    for accession in SLIDES:
        slide = write_slide(tmp_path / accession, accession)
        done = cli(
            *("analyze", "--protocol", "cervical-screening", "--slide", slide, "--out", results / accession), *FEW_CELLS
        )
        assert done.returncode == 0, done.stderr
    (tmp_path / "reference.csv").write_text("accession,category\nC1,HSIL\nC2,NILM\n")
    study("join", "painted", tmp_path / "reference.csv")
    assert "**Composed centres**" in study("report", "painted", *at)
    study("report", "painted", "--out", tmp_path / "out", *at)
    document = json.loads((tmp_path / "out" / "study-report.json").read_text())
    assert document["look"] == 2
    assert [(case["outcome"], case["category"]) for case in document["cases"]] == [
        ("abnormal", "HSIL"),
        ("negative", "NILM"),
    ]
    assert document["pooled"]["auc"]["value"] == 1
    # An answer by other settings than were frozen is none.
    done = cli(
        *("analyze", "--protocol", "cervical-screening", "--slide", tmp_path / "C2", "--out", results / "C2"),
        *("--set", "adequacy.min_cells=11"),
    )
    assert done.returncode == 0, done.stderr
    refused = cli("study", "report", "painted", *at)
    assert refused.returncode == 1
    assert "C2: other settings" in refused.stderr
