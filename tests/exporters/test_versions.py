"""Which folder an artefact gets; and two versions of a model, each a folder of its own, built side by side."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from exporters import __main__ as command
from exporters.ensembles import planned
from exporters.errors import ExportError
from exporters.versions import Version, demand_own, folder_for, least_precise, versions
from gateway.inference import ModelRepository
from gateway.operations.errors import ModelRefused
from tests.exporters.conftest import RELEASED, REPOSITORY
from training.files import json_bytes, sha256_bytes
from training.graphs import Ensemble, Graph

pytestmark = pytest.mark.training

WEIGHTS = "1" * 64


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sidecars(folder: Path) -> tuple[dict, dict, dict]:
    card, gate, provenance = (
        json.loads((folder / f"{name}.json").read_bytes()) for name in ("card", "gate", "provenance")
    )
    return card, gate, provenance


def put(repository: Path, folder: str, weights: str = WEIGHTS, target: str = "onnx", precision: str = "fp32") -> Path:
    """A folder with as much of a card as numbers are given by."""
    model, _, version = folder.partition("-v")
    card = {
        "name": model,
        "version": version or "1",
        "kind": "encoder",
        "title": "A model",
        "target": target,
        "precision": precision,
        "digests": {"weights_sha256": weights, "engine_sha256": "2" * 64},
    }
    (repository / folder).mkdir(parents=True)
    (repository / folder / "card.json").write_bytes(json_bytes(card))
    return repository / folder


def test_the_first_artefact_of_a_model_is_version_1(tmp_path: Path) -> None:
    assert folder_for(tmp_path / "nowhere", "m", WEIGHTS, "onnx", "fp32") == "m"
    put(tmp_path, "other")
    assert folder_for(tmp_path, "m", WEIGHTS, "onnx", "fp32") == "m"


@pytest.mark.parametrize(
    ("asked", "folder"),
    [
        ((WEIGHTS, "onnx", "fp32"), "m"),
        ((WEIGHTS, "cpu", "fp32"), "m-v2"),
        ((WEIGHTS, "cpu", "int8"), "m-v5"),
        (("3" * 64, "onnx", "fp32"), "m-v5"),
        (("3" * 64, "cpu", "fp32"), "m-v5"),
    ],
    ids=["the same", "the same of another target", "another precision", "other weights", "other weights and target"],
)
def test_the_same_artefact_gets_its_own_folder_and_any_other_a_new_one(
    tmp_path: Path, asked: tuple[str, str, str], folder: str
) -> None:
    put(tmp_path, "m")
    put(tmp_path, "m-v2", target="cpu")
    put(tmp_path, "m-v4", target="tensorrt", precision="fp16")
    assert folder_for(tmp_path, "m", *asked) == folder


def test_a_number_that_is_about_to_be_published_is_taken(tmp_path: Path) -> None:
    put(tmp_path / "repository", "m")
    put(tmp_path / "staging", "m-v2", target="cpu")
    asked = ("m", "3" * 64, "cpu", "fp32")
    assert folder_for(tmp_path / "repository", *asked) == "m-v2"
    assert folder_for(tmp_path / "repository", *asked, tmp_path / "staging") == "m-v3"


def test_a_folder_that_another_build_took_is_not_replaced(tmp_path: Path) -> None:
    card = json.loads((put(tmp_path, "m") / "card.json").read_bytes())
    demand_own(tmp_path, "m", card)
    demand_own(tmp_path, "m-v2", card)
    for other in (card | {"target": "cpu"}, card | {"precision": "fp16"}, card | {"digests": {"weights_sha256": "3"}}):
        with pytest.raises(ExportError, match="m was taken by another build meanwhile"):
            demand_own(tmp_path, "m", other)


def test_a_folder_that_nobody_can_read_keeps_its_number(tmp_path: Path) -> None:
    (tmp_path / "m-v3").mkdir()
    put(tmp_path, "m-v2").joinpath("card.json").write_text("{")
    assert versions(tmp_path) == ()
    assert folder_for(tmp_path, "m", WEIGHTS, "onnx", "fp32") == "m-v4"


def test_a_folder_without_its_card_is_known_by_its_provenance(repository: Path) -> None:
    (whole,) = versions(repository)
    (repository / "tile_encoder" / "card.json").unlink()
    (damaged,) = versions(repository)
    assert damaged.is_of("tile_encoder", whole.weights_sha256)
    assert folder_for(repository, "tile_encoder", whole.weights_sha256, "onnx", "fp32") == "tile_encoder"


@pytest.mark.parametrize(
    "change",
    [{"name": "other"}, {"version": "7"}, {"version": 1}, {"target": "npu"}, {"precision": "fp4"}, {"digests": []}],
)
def test_a_card_of_another_folder_is_no_version(tmp_path: Path, change: dict) -> None:
    folder = put(tmp_path, "m")
    card = json.loads((folder / "card.json").read_bytes())
    (folder / "card.json").write_bytes(json_bytes(card | change))
    assert versions(tmp_path) == ()


def test_an_ensemble_is_as_precise_as_its_least_precise_step() -> None:
    def step(target: str, precision: str) -> Version:
        return Version("m", "encoder", target, precision, WEIGHTS, WEIGHTS, "", ())

    for steps, found in (
        ([("onnx", "fp32"), ("cpu", "fp32")], ("cpu", "fp32")),
        ([("tensorrt", "fp16"), ("onnx", "fp32")], ("tensorrt", "fp16")),
        ([("cpu", "int8"), ("tensorrt", "fp16")], ("cpu", "int8")),
    ):
        lowest = least_precise([step(*each) for each in steps])
        assert (lowest.target, lowest.precision) == found


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed repository with an encoder for processors beside its own, built where there are no tiles."""
    root = tmp_path_factory.mktemp("grown")
    shutil.copytree(REPOSITORY, root / "repository")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATHSERVE_DATA", str(root))
        arguments = ["build", str(RELEASED / "tile_encoder"), "--target", "cpu", "--out", str(root / "repository")]
        assert command.main(arguments) == 0
    return root / "repository"


@pytest.mark.triton
@pytest.mark.timeout(300)
def test_another_target_is_another_version_and_so_is_each_ensemble_with_it(grown: Path) -> None:
    models = ModelRepository(grown)
    assert models.versions("tile_encoder") == models.versions("tissue_classification") == ("1", "2")
    assert models.versions("tissue_head") == ("1",)
    before = tree(REPOSITORY)
    assert {path: data for path, data in tree(grown).items() if path in before} == before
    for folder in ("tile_encoder-v2", "tissue_classification-v2"):
        models.verify(folder)
    card, gate, provenance = sidecars(grown / "tile_encoder-v2")
    assert (card["name"], card["version"], card["target"], card["precision"]) == ("tile_encoder", "2", "cpu", "fp32")
    assert provenance["onnx_sha256"] == sha256_bytes((REPOSITORY / "tile_encoder" / "1" / "model.onnx").read_bytes())
    assert "openvino" in provenance["tools"]
    assert [entry["gate"] for entry in gate["gates"]] == ["G0", "G1", "G3", "G4", "G5"]
    assert all(entry["passed"] for entry in gate["gates"])
    config = (grown / "tile_encoder-v2" / "config.pbtxt").read_text()
    assert 'name: "tile_encoder-v2"' in config
    assert 'backend: "openvino"' in config


@pytest.mark.triton
@pytest.mark.timeout(300)
def test_a_new_ensemble_names_its_steps_exactly(grown: Path) -> None:
    card, _, _ = sidecars(grown / "tissue_classification-v2")
    assert card["steps"] == ["tile_encoder-v2", "tissue_head"]
    assert (card["version"], card["target"], card["precision"]) == ("2", "cpu", "fp32")
    config = (grown / "tissue_classification-v2" / "config.pbtxt").read_text()
    assert 'model_name: "tile_encoder-v2"' in config
    assert 'model_name: "tissue_head"' in config
    first, _, _ = sidecars(grown / "tissue_classification")
    for key in ("title", "labels", "operating_points", "limits", "intended_use"):
        assert card[key] == first[key]


@pytest.mark.triton
@pytest.mark.timeout(300)
def test_without_the_tiles_nothing_but_the_reference_is_approved(grown: Path) -> None:
    for folder in ("tile_encoder-v2", "tissue_classification-v2"):
        gate = sidecars(grown / folder)[1]
        assert (gate["state"], gate["reduced"], gate["passed"]) == ("BUILT", True, True)
        assert not ModelRepository(grown).gate(folder).approved
    assert all(ModelRepository(grown).gate(folder).approved for folder in ("tile_encoder", "tissue_classification"))


@pytest.mark.timeout(300)
def test_a_head_brings_the_one_ensemble_that_it_declares(grown: Path, encoder_graph: Graph, head_graph: Graph) -> None:
    """Of the nearest encoder; an encoder brings each ensemble that it is a step of."""
    weights = {version.model: version.weights_sha256 for version in versions(grown)}
    links = {"tile_encoder": "tile_encoder-v2"}
    (plan,) = planned(head_graph, "tissue_head-v2", weights["tissue_head"], links, grown)
    assert (plan.declared, plan.steps) == (True, ("tile_encoder-v2", "tissue_head-v2"))
    (plan,) = planned(encoder_graph, "tile_encoder-v3", weights["tile_encoder"], {}, grown)
    assert (plan.declared, plan.steps) == (False, ("tile_encoder-v3", "tissue_head"))
    assert planned(encoder_graph, "tile_encoder-v3", "3" * 64, {}, grown) == []


@pytest.mark.parametrize("steps", [("tile_encoder", "other"), ("tile_encoder",), ("other", "tissue_head")])
def test_an_ensemble_of_what_a_run_does_not_know_is_refused(head_graph: Graph, steps: tuple[str, ...]) -> None:
    graph = replace(head_graph, ensemble=Ensemble("both", "Both", steps))
    with pytest.raises(ExportError, match="these must be itself and models that it was trained on"):
        planned(graph, "tissue_head", WEIGHTS, {"tile_encoder": "tile_encoder"}, REPOSITORY)


@pytest.mark.timeout(300)
def test_an_engine_for_a_gpu_is_kept_and_not_approved(tmp_path: Path) -> None:
    """Without TensorRT there is no plan: the card says so, its ensemble too, and the gateway serves neither."""
    repository = shutil.copytree(REPOSITORY, tmp_path / "repository")
    arguments = ["build", str(RELEASED / "tissue_head"), "--target", "tensorrt", "--out", str(repository)]
    assert command.main([*arguments, "--precision", "fp32"]) == 0
    models = ModelRepository(repository)
    for folder in ("tissue_head-v2", "tissue_classification-v2"):
        card, gate, _ = sidecars(repository / folder)
        assert (card["target"], card["precision"]) == ("tensorrt", "fp32")
        assert "no TensorRT plan" in card["not_executed"]
        assert gate["state"] in ("EXPORTED", "PARSED")
        gates = {entry["gate"]: entry for entry in gate["gates"]}
        assert gates["G5"]["passed"] is None
        assert gates["G3"]["passed"] is None
        models.verify(folder)
        with pytest.raises(ModelRefused, match="never executed"):
            models.check(folder)
    assert not list(repository.rglob("*.plan"))
    assert sidecars(repository / "tissue_classification-v2")[0]["steps"] == ["tile_encoder", "tissue_head-v2"]
    golden = [models.golden(folder) for folder in ("tissue_classification", "tissue_classification-v2")]
    assert np.array_equal(golden[0].expected["logits"], golden[1].expected["logits"])


@pytest.mark.triton
@pytest.mark.timeout(300)
def test_the_same_artefact_built_again_replaces_its_own_folder(grown: Path, tmp_path: Path) -> None:
    again = shutil.copytree(grown, tmp_path / "repository")
    replaced = (again / "tissue_head").stat().st_ino
    assert command.main(["build", str(RELEASED / "tissue_head"), "--target", "onnx", "--out", str(again)]) == 0
    assert (again / "tissue_head").stat().st_ino != replaced
    ours, before = tree(again), tree(grown)
    assert ours.keys() == before.keys()
    # Only G1's figures, against PyTorch, may differ between two processes.
    assert {path for path in ours if ours[path] != before[path]} <= {"tissue_head/gate.json"}
