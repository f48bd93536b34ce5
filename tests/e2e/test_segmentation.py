"""`segmentation` end to end: the released networks in a real Triton, by the command."""

import json
from pathlib import Path

import jsonschema
import pydicom
import pytest

from tests.e2e.conftest import Cli
from tests.support.analyzed import report_in
from tests.support.dciodvfy import needs_dciodvfy, validate

pytestmark = pytest.mark.triton

TUMOR, NUCLEI = "tissue-level tumor in lymph node pathology", "nuclei-level epithelial in colon pathology"
MODELS = ["pathseg", "pathseg_image", "pathseg_prompt", "pathseg_text"]
REGION = "400,500,300,300"


@pytest.fixture(scope="module")
def out(cli: Cli, cmu_slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    prompts = ("--prompt", TUMOR, "--prompt", NUCLEI)
    done = cli(
        "analyze", "--protocol", "segmentation", *prompts, "--region", REGION, "--slide", cmu_slide, "--out", folder
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_each_prompt_is_answered_at_its_scale(cli: Cli, out: Path) -> None:
    report = report_in(out)
    jsonschema.validate(report, json.loads(cli("schema", "report").stdout))
    [result] = report["segmentations"]
    assert [each["prompt"] for each in result["segments"]] == [TUMOR, NUCLEI]
    assert [each["mpp"] for each in result["segments"]] == pytest.approx([1.0, 0.25], rel=0.01)
    assert sorted(model["name"] for model in report["models"]) == MODELS
    told = {finding["code"]["code"] for finding in report["findings"]}
    assert {"region-only", "organ-unknown", "coarser-than-model"} <= told
    assert ("not-validated" in told) == (not all(each["supported"] for each in result["segments"]))
    for each in result["segments"]:
        assert bool(each["seg"]) == each["present"]
        assert each["area_mm2"] == pytest.approx(each["area_fraction"] * result["area_mm2"], rel=0.02)
        if each["present"]:
            [segment] = pydicom.dcmread(out / each["seg"], stop_before_pixels=True).SegmentSequence
            assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == each["code"]["code"]


@pytest.mark.validators
@needs_dciodvfy
def test_validator_finds_no_error(out: Path) -> None:
    assert {path.name: validate(path) for path in out.glob("*.dcm") if validate(path)} == {}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "Give at least one prompt"),
        (["--prompt", "tissue-level tumour and no gland in colon"], "what not to look for"),
        (["--prompt", TUMOR, "--region", "90000,90000,10,10"], "lies outside the slide"),
    ],
)
def test_what_is_not_understood_is_refused_with_the_order(
    cli: Cli, cmu_slide: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    done = cli("analyze", "--protocol", "segmentation", *options, "--slide", cmu_slide, "--out", tmp_path / "out")
    assert done.returncode != 0
    assert said in done.stderr
