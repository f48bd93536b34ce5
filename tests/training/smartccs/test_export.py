"""What the runs of Smart-CCS declare as served: tensors, cards, and the numbers that the slide head learned from."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gateway.domain.bethesda import ABNORMAL, CLASSES, NAMES
from gateway.slides.cell_crops import CellCrops
from gateway.slides.site_state import Source
from tests.exporters import smears
from training.errors import RecipeInvalid
from training.graphs import Graph, declare
from training.runs import Run, open_run
from training.smartccs import slide
from training.smartccs.embed import EncoderSettings, encoder
from training.smartccs.republish import main as republish
from training.smartccs.slide_fit import logits_of

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("runs")
    found = {
        "detect": smears.detector_run(folder / "detect-tiny"),
        "encode": smears.encoder_run(folder / "pretrain-tiny"),
    }
    found["slide"] = smears.slide_run(folder / "slide-tiny", found["encode"], found["detect"])
    return found


def answer(graph: Graph, **inputs: np.ndarray) -> tuple[np.ndarray, ...]:
    with torch.inference_mode():
        given = graph.network(*(torch.from_numpy(inputs[spec.name]) for spec in graph.inputs))
    return tuple(part.numpy() for part in (given if isinstance(given, tuple) else (given,)))


def test_the_detector_names_its_columns_and_what_becomes_of_its_boxes(runs: dict[str, Run]) -> None:
    graph = declare(runs["detect"])
    assert (graph.model, graph.kind, graph.needs) == ("smartccs_detect", "detector", {})
    assert [(spec.name, spec.dims) for spec in graph.outputs] == [("scores", (5, 6)), ("boxes", (5, 4))]
    assert [label["index"] for label in graph.card["labels"]] == list(range(6))
    assert [label["code"]["display"] for label in graph.card["labels"]] == [entry.wording for entry in CLASSES[1:]]
    found = [name for name, label in zip(ABNORMAL, graph.card["labels"], strict=True) if label["supported"]]
    assert found == ["LSIL", "HSIL"]
    assert (graph.card["overlap_px"], graph.card["nms_iou"]) == (16, 0.75)
    assert "top_k" not in graph.card  # how many cells a slide is read from, its own model says
    assert graph.card["operating_points"][0]["min_probability"] == graph.card["score_threshold"] == 0.2
    assert sum("is not supported" in limit for limit in graph.card["limits"]) == 4
    (figure,) = graph.card["metrics"]
    assert (figure["name"], figure["interval"], figure["tiles"]) == (
        "sensitivity at 4 false alarms a field",
        [0.7, 0.9],
        9,
    )
    scores, boxes = answer(graph, **graph.samples({"batch": 2}))
    assert ((scores > 0) & (scores < 1)).all()
    assert ((boxes >= 0) & (boxes <= 1)).all()


def test_the_encoder_serves_the_features_that_the_slide_head_learned_from(
    runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crops of the one transform, whose digest the card has, to the teacher's class token after its last norm."""
    monkeypatch.setenv("PATHSERVE_RUNS", str(runs["encode"].path.parent))
    graph = declare(runs["encode"])
    eye = encoder(EncoderSettings(kind="teacher", recipe="pretrain-tiny", side_px=smears.CROP_PX), seed=0)
    assert graph.card["crop"]["transform_sha256"] == eye.crops.digest == CellCrops(smears.CROP_PX).digest
    crop = {key: value for key, value in graph.card["crop"].items() if key != "transform_sha256"}
    told = CellCrops(**{key: tuple(value) if isinstance(value, list) else value for key, value in crop.items()})
    assert told.digest == eye.crops.digest
    field = np.random.default_rng(1).integers(0, 256, (60, 60, 3), np.uint8)
    crops = eye.crops(field, np.array([[10.0, 10, 30, 30], [50, 50, 70, 70]]))
    (served,) = answer(graph, image=crops)
    assert np.array_equal(served, eye(crops))
    assert served.shape == (2, graph.card["embedding_size"])
    assert (graph.card["mpp"], graph.card.get("labels", [])) == (0.245, [])


@pytest.mark.parametrize("head", ["mean", "max", "abmil"])
def test_the_best_head_is_served_with_its_standardisation_and_a_site_s_state(
    runs: dict[str, Run], tmp_path: Path, head: Any
) -> None:
    run = smears.slide_run(tmp_path / "slide", runs["encode"], runs["detect"], head)
    graph, held = declare(run), slide.trained(run)
    assert graph.needs == {
        "smartccs_embed": runs["encode"].weights_sha256,
        "smartccs_detect": runs["detect"].weights_sha256,
    }
    inputs = graph.samples({"batch": 2, "cells": 9})
    inputs["mask"][1, 4:] = False
    logits, cells, *more = answer(graph, **inputs)
    assert len(more) == (head == "abmil")
    assert cells.shape == (2, 9, 7)
    for row, count in ((0, 9), (1, 4)):
        site = (inputs["gamma"][row], inputs["beta"][row])
        due = [logits_of(each, [inputs["features"][row, :count]], *site) for each in held.heads]
        np.testing.assert_allclose(logits[row : row + 1], due[held.best], atol=1e-5)
        assert np.abs(due[0] - due[1]).max() > 0.1


def test_the_slide_card_speaks_for_all_three(runs: dict[str, Run], tmp_path: Path) -> None:
    card = declare(runs["slide"]).card
    assert [label["code"]["display"] for label in card["labels"]] == [entry.wording for entry in CLASSES]
    assert [NAMES[label["index"]] for label in card["labels"] if label["supported"]] == list(smears.SUPPORTED)
    screening = card["screening"]
    assert (screening["temperature"], screening["top_k"], screening["pool"]) == (1.25, 7, "mean")
    assert screening["biases"] == [0.5, 0.0, 0.0, 0.0, 0.0, 0.0, -0.5]
    assert screening["transform_sha256"] == declare(runs["encode"]).card["crop"]["transform_sha256"]
    assert screening["detector"]["weights_sha256"] == runs["detect"].weights_sha256
    assert Source.read(screening["source"]).digest == smears.source().digest
    assert card["encoder"] == {"model": "smartccs_embed", "weights_sha256": runs["encode"].weights_sha256}
    (point,) = card["operating_points"]
    assert (point["name"], point["min_probability"]) == ("95% sensitivity", 0.4)
    assert "40 synthetic bags of one block" in point["origin"]
    assert point["origin"].endswith("validation centre: source.")
    assert {figure["name"] for figure in card["metrics"]} == {"auc", "sensitivity", "specificity"}
    assert {figure["label"] for figure in card["metrics"]} == {"synthetic bags of cells of held-out blocks"}
    assert card["composed"] is True
    json.dumps(card)
    annotated = declare(smears.slide_run(tmp_path / "annotated", runs["encode"], None))
    assert annotated.card["screening"]["detector"] is None
    assert set(annotated.needs) == {"smartccs_embed"}


def _without_publish(recipe: dict[str, Any]) -> None:
    del recipe["publish"]


def _other_tile(recipe: dict[str, Any]) -> None:
    recipe["publish"]["tile_px"] = 32


@pytest.mark.parametrize("name", ["detect", "encode", "slide"])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_without_publish, "has no section publish, so it serves nothing"),
        (_other_tile, r"was trained on \d+ px from pixels of 0\.\d+ µm. Write mpp"),
        (lambda recipe: recipe.update(stage="adapt"), "of the stage 'adapt', which serves nothing"),
    ],
)
def test_a_run_that_cannot_be_served_says_why(
    runs: dict[str, Run], name: str, change: Callable[[dict[str, Any]], None], sentence: str
) -> None:
    recipe = json.loads(json.dumps(runs[name].recipe))
    change(recipe)
    with pytest.raises(RecipeInvalid, match=sentence):
        declare(replace(runs[name], recipe=recipe))


def test_a_head_on_features_of_no_served_encoder_is_not_served(runs: dict[str, Run]) -> None:
    recipe = json.loads(json.dumps(runs["slide"].recipe))
    recipe["encoder"]["kind"] = "fresh"
    with pytest.raises(RecipeInvalid, match="of an encoder that is not served"):
        declare(replace(runs["slide"], recipe=recipe))


@pytest.mark.parametrize("make", [smears.detector_run, smears.encoder_run])
def test_a_run_is_published_after_its_training_by_its_own_recipe_and_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[..., Run]
) -> None:
    run, asked = make(tmp_path / "trained", published=False), make(tmp_path / "asked")
    text = (asked.path / "recipe.toml").read_text()
    recipe, other, out = tmp_path / "asked.toml", tmp_path / "other.toml", tmp_path / "published"
    recipe.write_text(text)
    other.write_text(text.replace("seed = ", "seed = 1"))
    assert republish([str(run.path), str(other), "--out", str(out)]) == 1
    assert "differs from that of the run trained in seed, not in its section publish alone" in capsys.readouterr().err
    assert not out.exists()
    assert republish([str(run.path), str(recipe), "--out", str(out)]) == 0
    published = open_run(out)
    assert published.weights_sha256 == run.weights_sha256
    assert published.metrics == run.metrics
    assert published.manifest["trained_as"] == {"recipe_sha256": run.manifest["recipe_sha256"]}
    assert declare(published).model == asked.recipe["publish"]["model"]
    shutil.rmtree(out)
    spoiled = json.loads((run.path / "manifest.json").read_text())
    spoiled["data"][0]["tier"] = "B"
    (run.path / "manifest.json").write_text(json.dumps(spoiled))
    assert republish([str(run.path), str(recipe), "--out", str(out)]) == 1
    assert "learned from data of tier B; what ships is trained on tier A only" in capsys.readouterr().err


def test_a_recipe_of_another_stage_publishes_nothing(
    runs: dict[str, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = runs["encode"].path / "recipe.toml"
    assert republish([str(runs["detect"].path), str(recipe), "--out", str(tmp_path / "out")]) == 1
    assert "is of the stage 'detect'. Name a recipe of that stage" in capsys.readouterr().err
    again = [str(runs["encode"].path), str(recipe), "--out", str(tmp_path / "out"), "--measure"]
    assert republish(again) == 1
    assert "Only a detector is measured anew here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
