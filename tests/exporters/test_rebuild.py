"""The released runs built again: a sound repository keeps every byte, and whatever was harmed comes back."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from exporters import __main__ as command
from exporters import golden
from exporters.build import build
from exporters.errors import ExportError
from exporters.rebuild import _in_order, rebuild
from gateway.inference import ModelRepository
from tests.exporters.conftest import RELEASED, REPOSITORY
from tests.exporters.test_versions import tree
from training.files import json_bytes, sha256_bytes

pytestmark = [pytest.mark.training, pytest.mark.timeout(300)]

MODELS = ("tile_encoder", "tissue_classification", "tissue_head")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return shutil.copytree(REPOSITORY, tmp_path / "repository")


def reseal(folder: Path, card: dict) -> None:
    """Another card with a provenance that agrees with it."""
    provenance = json.loads((folder / "provenance.json").read_bytes())
    (folder / "card.json").write_bytes(json_bytes(card))
    provenance["files"]["card.json"] = sha256_bytes(json_bytes(card))
    (folder / "provenance.json").write_bytes(json_bytes(provenance))


def answer(folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Other golden answers, sealed as if the engine had given them."""
    inputs, answers = golden.unpack((folder / "golden.npz").read_bytes())
    packed = golden.pack(inputs, {name: change(array) for name, array in answers.items()})
    (folder / "golden.npz").write_bytes(packed)
    provenance = json.loads((folder / "provenance.json").read_bytes())
    provenance["golden_sha256"] = provenance["files"]["golden.npz"] = sha256_bytes(packed)
    (folder / "provenance.json").write_bytes(json_bytes(provenance))


@pytest.mark.triton
def test_a_sound_repository_keeps_every_byte(copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The head's golden answers are another processor's: their last bits differ. The starter's runs stand for all."""
    for run in ("tile_encoder", "tissue_head"):
        shutil.copytree(RELEASED / run, tmp_path / "released" / run)
    answer(copied / "tissue_head", lambda logits: np.nextafter(logits, np.float32(np.inf)))
    before = tree(copied)
    assert command.main(["rebuild", str(tmp_path / "released"), "--out", str(copied)]) == 0
    assert tree(copied) == before
    assert capsys.readouterr().out == ""
    assert {path.name for path in copied.parent.iterdir()} == {"released", "repository"}


@pytest.fixture
def head_only(tmp_path: Path) -> Path:
    """Released runs without the encoder's: its model lies in the repository already."""
    shutil.copytree(RELEASED / "tissue_head", tmp_path / "released" / "tissue_head")
    return tmp_path / "released"


@pytest.mark.triton
def test_what_was_harmed_or_is_stale_is_replaced_and_nothing_else(copied: Path, head_only: Path) -> None:
    engine = copied / "tissue_head" / "1" / "model.onnx"
    engine.write_bytes(engine.read_bytes()[:-1] + b"\0")
    card = json.loads((copied / "tissue_classification" / "card.json").read_bytes())
    reseal(copied / "tissue_classification", card | {"title": "An older title"})
    before = (copied / "tile_encoder").stat().st_ino
    assert sorted(rebuild(head_only, copied)) == ["tissue_classification", "tissue_head"]
    assert (copied / "tile_encoder").stat().st_ino == before
    models = ModelRepository(copied)
    for folder in MODELS:
        models.check(folder)
        assert (copied / folder / "card.json").read_bytes() == (REPOSITORY / folder / "card.json").read_bytes()


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed repository with a head for processors (version 2) and one for GPUs (3), made without tiles."""
    root = tmp_path_factory.mktemp("grown")
    shutil.copytree(REPOSITORY, root / "repository")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATHSERVE_DATA", str(root))
        for target in ("cpu", "tensorrt"):
            build(RELEASED / "tissue_head", root / "repository", target, "fp32")
    return root / "repository"


@pytest.fixture
def others(grown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATHSERVE_DATA", str(tmp_path))
    return shutil.copytree(grown, tmp_path / "repository")


def change(folder: Path, file: str, **fields: object) -> None:
    document = json.loads((folder / file).read_bytes())
    (folder / file).write_bytes(json_bytes(document | fields))


@pytest.mark.triton
def test_what_came_from_another_onnx_is_built_again(
    others: Path, head_only: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(others / "tissue_head-v2", "provenance.json", onnx_sha256="0" * 64)
    before = tree(others)
    assert command.main(["rebuild", str(head_only), "--out", str(others)]) == 0
    assert capsys.readouterr().out == f"{others}/tissue_head-v2\n"
    after = tree(others)
    assert {path for path in before if before[path] != after[path]} <= {
        f"tissue_head-v2/{file}.json" for file in ("provenance", "gate")
    }
    models = ModelRepository(others)
    assert models.provenance("tissue_head-v2").onnx_sha256 == models.provenance("tissue_head").engine_sha256


@pytest.mark.triton
def test_no_approval_is_lost_where_there_are_no_tiles(others: Path, head_only: Path) -> None:
    change(others / "tissue_head-v2", "gate.json", state="APPROVED", reduced=False)
    before = tree(others)
    with pytest.raises(ExportError, match="tissue_head-v2 is APPROVED, and this build of it is only BUILT"):
        build(head_only / "tissue_head", others, "cpu")
    assert tree(others) == before


@pytest.mark.triton
def test_a_plan_of_another_onnx_stops_it(others: Path, head_only: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(others / "tissue_head-v3", "provenance.json", onnx_sha256="0" * 64)
    before = tree(others)
    assert command.main(["rebuild", str(head_only), "--out", str(others)]) == 1
    assert "tissue_head-v3 is not sound, or came from another fp32 ONNX than tissue_head has" in capsys.readouterr().err
    assert tree(others) == before


@pytest.mark.triton
def test_wrong_golden_answers_stop_it(copied: Path, head_only: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(copied / "tissue_head", lambda logits: logits + np.float32(0.1))
    before = tree(copied)
    assert command.main(["rebuild", str(head_only), "--out", str(copied)]) == 1
    assert tree(copied) == before
    assert "tissue_head answers its golden inputs on this machine with a difference of 1.00e-01" in (
        capsys.readouterr().err
    )


def test_runs_are_built_after_those_that_they_need(tmp_path: Path) -> None:
    shutil.copytree(RELEASED / "tissue_head", tmp_path / "a_head")
    shutil.copytree(RELEASED / "tile_encoder", tmp_path / "z_encoder")
    assert [path.name for path in _in_order(tmp_path)] == ["z_encoder", "a_head"]


def test_a_folder_without_runs_is_said_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["rebuild", str(tmp_path), "--out", str(tmp_path / "repository")]) == 1
    assert capsys.readouterr().err.startswith("There is no run folder in ")
