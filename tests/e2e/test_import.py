"""From a scanner's file to a report: imported, stored in a PACS, found there by its container, analysed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.operations.settings import settings
from tests.conftest import data_path
from tests.e2e.conftest import Cli
from tests.support.orthanc import Orthanc, running_orthanc

pytestmark = [
    pytest.mark.pacs,
    pytest.mark.triton,
    pytest.mark.skipif(not (settings().import_venv / ".ready").exists(), reason="needs `make setup-import`"),
]
KNOWN = ("--accession", "SVS-1", "--container", "SVS-1-A", "--stain", "HE", "--organ", "71854001,SCT,Colon")


@pytest.fixture(scope="module")
def pacs(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """A PACS that holds the imported slide."""
    svs = data_path("slides", "fixtures", "CMU-1-Small-Region.svs")
    folder = tmp_path_factory.mktemp("imported") / "slide"
    done = cli("import", svs, "--out", folder, *KNOWN)
    assert done.returncode == 0, done.stderr
    with running_orthanc(tmp_path_factory.mktemp("pacs")) as server:
        server.upload(folder)
        yield server


def analyzed(cli: Cli, out: Path, *source: object) -> dict[str, Any]:
    done = cli("analyze", "--protocol", "tissue-classification", *source, "--out", out)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def shares(report: dict[str, Any]) -> list[float]:
    [tissue] = report["tissue"]
    return [*(row["share"] for row in tissue["classes"]), tissue["uncertain_share"]]


def test_an_imported_slide_gives_the_report_of_the_slide(
    cli: Cli, pacs: Orthanc, cmu_slide: Path, tmp_path: Path
) -> None:
    found = analyzed(cli, tmp_path / "found", "--archive", pacs.address, "--container", "SVS-1-A")
    known = analyzed(cli, tmp_path / "known", "--slide", cmu_slide)
    assert shares(found) == pytest.approx(shares(known), abs=0.02)
    assert (found["exploratory"], known["exploratory"]) == (False, True)  # stain and organ were given on import
    assert found["slides"][0]["container"] == "SVS-1-A"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (("--accession", "SVS-2"), "no slide"),
        (("--accession", "SVS-1", "--container", "SVS-1-B"), "no slide"),
        ((), "--container"),
    ],
)
def test_what_is_not_found(cli: Cli, pacs: Orthanc, tmp_path: Path, keys: tuple[str, ...], said: str) -> None:
    out = tmp_path / "out"
    done = cli("analyze", "--protocol", "tissue-classification", "--archive", pacs.address, *keys, "--out", out)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("pathserve: ")
    assert said in line
    assert not list(out.iterdir())
