"""A detector's training from its recipe to a run folder: on made fields, a few steps long."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tests.training.data import made
from tests.training.smartccs.tiny import detector_recipe
from training.errors import RecipeInvalid, RunInvalid
from training.files import sha256_file
from training.nn.efficientnet_lite import EfficientNetLite0
from training.nn.pretrained import load_lite0
from training.runs import Run, open_run, resealed
from training.smartccs import data
from training.smartccs.backbones import FrozenResNet50Maps
from training.smartccs.detect import DetectorLearner, parameter_groups
from training.smartccs.detecting import tile_corners
from training.smartccs.detector import load
from training.smartccs.recipe import DetectorRecipe
from training.smartccs.republish import main as republish
from training.smartccs.train import train
from training.ssl.distributed import World
from training.ssl.recipe import read_recipe

pytestmark = pytest.mark.training
RECIPE = detector_recipe(
    name="tiny",
    queries=4,
    data_mpp=0.49,
    merging="top_k = 5",
    training="iterations = 2, log_every = 1, checkpoint_every = 1, validate_every = 2",
)


def written(folder: Path, text: str = RECIPE) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = made.Made(tmp_path_factory.mktemp("data"))
    made.smears(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATHSERVE_DATA", str(folder.finish()))
        runs = tmp_path_factory.mktemp("runs")
        run = train(written(runs), runs / "whole")
        assert run is not None
        yield run


def test_a_finished_run_tells_how_well_cells_are_found(finished: Run) -> None:
    network = load(finished)
    assert finished.metrics["network"]["parameters"] == sum(value.numel() for value in network.parameters())
    assert finished.metrics["training"]["iterations"] == 2
    assert 0 <= finished.metrics["training"]["validation"]["sensitivity"] <= 1
    assert 0 <= finished.metrics["training"]["validation"]["balanced"] <= 1
    for part in ("validation", "test"):
        assert {"froc", "froc_annotated_only", "froc_of_other_fields", "froc_of_dark_blobs"} <= finished.metrics[
            part
        ].keys()
        assert finished.metrics[part]["abnormal_cells"] == finished.metrics[part]["fields"] == 2
    leading = finished.metrics["test"]["leading"]
    assert leading["sensitivity at 4 false alarms a field"]["value"] == finished.metrics["test"]["froc"]["4"]
    assert leading["average precision at half overlap"]["value"] == pytest.approx(
        finished.metrics["test"]["ap50"], abs=1e-4
    )
    learned = [*data.load("train"), *data.load("validation")]
    assert finished.manifest["seen"] == data.seen(learned).record()


def test_an_interrupted_run_ends_with_the_same_bits(finished: Run, tmp_path: Path) -> None:
    path = written(tmp_path)
    assert train(path, tmp_path / "run", stop_after=1) is None
    with pytest.raises(RunInvalid, match="--resume"):
        train(path, tmp_path / "run")
    again = train(path, tmp_path / "run", resume=True)
    assert again is not None
    assert sha256_file(again.weights_path) == finished.weights_sha256
    assert again.metrics["test"] == finished.metrics["test"]


def test_the_backbone_and_what_says_where_to_look_have_their_own_rates(tmp_path: Path) -> None:
    recipe, _ = read_recipe(DetectorRecipe, written(tmp_path), ["training.backbone_rate=0.5"])
    learner = DetectorLearner(recipe, World())
    names = {id(parameter): name for name, parameter in learner.named_parameters()}
    rates = {
        names[id(parameter)]: group["lr"]
        for group in parameter_groups(learner, recipe.training)
        for parameter in group["params"]
    }
    assert len(rates) == len(names)
    assert rates["model.backbone.stages.0.conv1.weight"] == pytest.approx(5e-4)
    assert rates["model.encoder.0.attention.offsets.bias"] == rates["model.reference.weight"] == pytest.approx(1e-4)
    assert rates["model.decoder.0.cross.value.weight"] == rates["model.queries"] == pytest.approx(1e-3)


def test_a_stage_or_a_setting_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeInvalid, match=r"smartccs has the stages .*detect"):
        train(written(tmp_path, RECIPE.replace('"detect"', '"segment"')))
    with pytest.raises(RecipeInvalid, match=r"merging\.top"):
        train(written(tmp_path, RECIPE.replace("top_k", "top")))


def test_tiles_cover_a_field_and_overlap() -> None:
    assert list(tile_corners((626, 836), 512, 96)) == [(0, 0), (324, 0), (0, 114), (324, 114)]
    assert list(tile_corners((100, 512), 512, 96)) == [(0, 0)]
    starts = sorted({x for x, _ in tile_corners((512, 2000), 512, 96)})
    assert starts[:: len(starts) - 1] == [0, 2000 - 512]
    assert max(later - earlier for earlier, later in pairwise(starts)) <= 512 - 96


def batch_norms(network: torch.nn.Module) -> list[torch.nn.Module]:
    return [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]


def test_batch_norms_of_imagenet_weights_stay_as_they_are() -> None:
    with torch.device("meta"):
        network = FrozenResNet50Maps().train()
    norms = batch_norms(network)
    assert len(norms) == 53
    assert not any(module.training or module.weight.requires_grad for module in norms)
    assert network.layer4.training
    assert network.conv1.weight.requires_grad


def test_a_detector_sees_with_the_first_stages_of_a_published_network(tmp_path: Path) -> None:
    conv = 'arch = "conv", widths = [8, 16], levels = 2'
    assert conv in RECIPE
    text = RECIPE.replace(conv, 'arch = "efficientnet-lite0", frozen_blocks = 3')
    recipe, _ = read_recipe(DetectorRecipe, written(tmp_path, text))
    learner = DetectorLearner(recipe, World()).train()
    assert [entry.file for entry in learner.pretraining] == ["efficientnet-lite0-57934424.pth"]
    whole, seen = EfficientNetLite0(), learner.model.backbone
    load_lite0(whole)
    images = torch.rand(1, 3, 64, 64)
    taps = []
    whole._blocks[14].register_forward_hook(lambda *told: taps.append(told[2]))
    with torch.inference_mode():
        middle, coarse = seen(images)
        assert torch.equal(middle, whole.eval()(images)[1])
        assert torch.equal(coarse, taps[0])
    assert (middle.shape[1], coarse.shape[1]) == seen.widths == (112, 192)
    assert not any(module.training or module.weight.requires_grad for module in batch_norms(seen))
    kernels = [block._depthwise_conv.weight.requires_grad for block in seen._blocks]
    assert kernels == [False] * 3 + [True] * 12
    assert not seen._conv_stem.weight.requires_grad


def test_what_a_run_says_of_its_fields_can_be_measured_anew(finished: Run, tmp_path: Path) -> None:
    old = json.loads(json.dumps(finished.metrics))
    old["test"]["leading"], old["cpu_s"] = {}, 12.0
    before = resealed(finished, tmp_path / "before", (finished.path / "recipe.toml").read_bytes(), old, {})
    recipe = written(tmp_path, (finished.path / "recipe.toml").read_text())
    arguments = [str(before.path), str(recipe), "--out"]
    assert republish([*arguments, str(tmp_path / "as it was")]) == 0
    assert open_run(tmp_path / "as it was").metrics == old
    assert republish([*arguments, str(tmp_path / "anew"), "--measure"]) == 0
    assert open_run(tmp_path / "anew").metrics == {**finished.metrics, "cpu_s": 12.0}
