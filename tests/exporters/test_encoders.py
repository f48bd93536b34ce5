"""A registered encoder on the exporters' one way: gated as any run, served, and put under a head that is refitted."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from exporters import __main__ as command
from exporters.build import build
from gateway.inference import ModelRepository
from tests.exporters.conftest import RELEASED, REPOSITORY
from tests.training.pathbench.encoders.conftest import TINY, fetch, learned, write_registry
from training.files import json_bytes, sha256_file
from training.graphs import declare
from training.nn.checkpoints import load_state, save_weights
from training.nn.tile_encoder import EMBEDDING
from training.pathbench.encoders import EncoderInvalid, LicenceNotAccepted, cards
from training.pathbench.encoders import build as built
from training.pathbench.encoders.served import as_run
from training.publish import synthetic_tiles
from training.runs import Run, RunWriter, open_run
from training.tissue.model import TissueHead
from training.tissue.probe import fit

pytestmark = pytest.mark.training

SHAPE = {"image_px": 224, "patch_px": 56, "width": EMBEDDING // 2, "mlp": 792, "depth": 1, "heads": 12}
"""Class token and mean of the patch tokens together are as long as the served encoder's embedding."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A registry of one small published encoder at the served field, its fetched weights, and a place for runs."""
    root = tmp_path_factory.mktemp("encoders")
    text = TINY.replace("side_px = 56", "side_px = 224").replace("dim = 64", f"dim = {EMBEDDING}")
    for name, size in SHAPE.items():
        text = text.replace(f"\n{name} = ", f"\n{name} = {size} #")
    write_registry(root / "registry", tiny=text, lbp=(cards.FOLDER / "cards" / "lbp.toml").read_text(encoding="utf-8"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cards, "FOLDER", root / "registry")
        patch.setenv("PATHSERVE_RUNS", str(root / "runs"))
        patch.setenv("PATHSERVE_WEIGHTS", str(root / "weights"))
        fetch(root / "weights", learned(**SHAPE))
        yield root


@pytest.fixture(scope="module")
def repository(folder: Path) -> Path:
    """The committed encoder only, until a test builds into it."""
    shutil.copytree(REPOSITORY / "tile_encoder", folder / "repository" / "tile_encoder")
    return folder / "repository"


def refit(encoder: Run, folder: Path) -> Run:
    """The released head's recipe on another encoder: seven made-up classes of synthetic tiles."""
    labels_N = np.arange(42) % 7
    tiles = np.stack([synthetic_tiles(1, 224, seed)[0] for seed in labels_N * 100 + np.arange(42) // 21])
    vectors = built("tiny", profile="native", accept_licence=True).embed(tiles)
    (linear,) = fit(vectors[:, None], labels_N, (0.1,))
    head = TissueHead(7)
    weight, bias = (torch.from_numpy(array).float() for array in (linear.weight_DC.T.copy(), linear.bias_C))
    load_state(head, {"linear.weight": weight, "linear.bias": bias}, "the test")
    writer = RunWriter(folder, (RELEASED / "tissue_head" / "recipe.toml").read_bytes(), resume=False)
    save_weights(writer.weights_path, head)
    metrics = json.loads((RELEASED / "tissue_head" / "metrics.json").read_bytes())
    return writer.finish(metrics=metrics, seed=1, starts_from={"encoder": encoder})


@pytest.mark.triton
@pytest.mark.timeout(280)
def test_an_encoder_takes_the_tile_encoder_s_place_under_a_refitted_head(
    folder: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["build", "encoder:tiny", "--accept-licence", "--target", "onnx", "--out", str(repository)]
    assert command.main(arguments) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [f"{repository}/tile_encoder-v2"]
    assert said.err == "It comes from weights under: Tiny-1.0 (somebody/tiny, trained on nothing)\n"
    models = ModelRepository(repository)
    models.check("tile_encoder-v2")
    gates = json.loads((repository / "tile_encoder-v2" / "gate.json").read_bytes())["gates"]
    assert [gate["gate"] for gate in gates if gate["passed"]] == ["G0", "G1", "G4", "G5"]
    card = json.loads((repository / "tile_encoder-v2" / "card.json").read_bytes())
    assert (card["mpp"], card["tile_px"], card["embedding_size"]) == (0.5, 224, EMBEDDING)
    (start,) = card["pretraining"]
    assert (start["package"], start["licence"], start["trained_on"]) == ("somebody/tiny", "Tiny-1.0", "nothing")

    run = as_run("tiny", accept_licence=True)
    head = refit(run, folder / "head")
    assert build(head.path, repository) == ["tissue_head", "tissue_classification"]
    ensemble = json.loads((repository / "tissue_classification" / "card.json").read_bytes())
    assert sorted(ensemble["steps"]) == ["tile_encoder-v2", "tissue_head"]
    card = json.loads((repository / "tissue_head" / "card.json").read_bytes())
    assert card["encoder"] == {"model": "tile_encoder", "weights_sha256": run.weights_sha256}


def test_the_run_gives_what_the_encoder_gives(folder: Path) -> None:
    run, again = as_run("tiny", accept_licence=True), as_run("tiny", accept_licence=True)
    assert run.path == again.path
    assert run.name == f"encoder-tiny-{built('tiny', accept_licence=True).meta.checksum[:12]}"
    tiles = synthetic_tiles(3, 224, 5)
    with torch.inference_mode():
        served = declare(run).network(torch.from_numpy(tiles)).numpy()
    due = built("tiny", profile="native", toolkit="native", accept_licence=True).embed(tiles)
    assert np.abs(served - due).max() < 1e-4 * np.abs(due).max()


def test_random_weights_are_served_to_nobody(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = as_run("tiny", random_init=True)
    assert command.main(["build", str(run.path), "--target", "onnx", "--out", str(tmp_path / "repository")]) == 1
    assert capsys.readouterr().err == (
        "The weights of encoder-tiny-random are random: nobody trained them, so nobody may be served by them.\n"
    )
    assert not (tmp_path / "repository").exists()


def test_a_random_run_that_hides_it_is_not_a_run(folder: Path, tmp_path: Path) -> None:
    """The recipe is under the manifest's digest; a forged manifest still has no weights that it started from."""
    run = as_run("tiny", random_init=True)
    forged = shutil.copytree(run.path, tmp_path / "run")
    recipe = forged / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('weights = "random"', 'weights = "published"'))
    manifest = json.loads((forged / "manifest.json").read_bytes())
    manifest["recipe_sha256"] = sha256_file(recipe)
    (forged / "manifest.json").write_bytes(json_bytes(manifest))
    with pytest.raises(EncoderInvalid, match="names no weights that it started from"):
        build(forged, tmp_path / "repository")
    assert open_run(forged).manifest["pretraining"] == []


def test_a_licence_is_asked_for(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LicenceNotAccepted):
        build(Path("encoder:tiny"), tmp_path / "repository")


def test_a_function_is_no_model(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EncoderInvalid, match="lbp is a function without weights"):
        build(Path("encoder:lbp"), tmp_path / "repository")


def test_an_unknown_encoder_is_said_to_be_none(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["build", "encoder:nowhere", "--target", "onnx", "--out", str(tmp_path / "repository")]) == 1
    assert capsys.readouterr().err.startswith("There is no encoder nowhere in the registry; its ids are tiny, lbp.")
