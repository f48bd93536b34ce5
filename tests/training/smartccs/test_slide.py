"""The slide heads, and a whole tiny training of one on made smears."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from scipy.special import softmax

from gateway.domain.screening import ScreeningPoint
from gateway.slides.cell_evidence import contributions
from tests.training.data import made
from training.errors import RunInvalid, TaskInvalid
from training.runs import parse_recipe
from training.smartccs import slide
from training.smartccs.embed import NAMELESS, CellSet
from training.smartccs.heads import POOLS, HeadKind, build_head
from training.smartccs.slide import SlideRecipe
from training.smartccs.slide_figures import figures
from training.smartccs.slide_fit import Calibration, calibration_of, logits_of, operating_point, padded_bags
from training.smartccs.train import train

pytestmark = pytest.mark.training
WIDTH = 6
RECIPE = """
name = "tiny"
system = "smartccs"
stage = "slide"
seed = 3
head = "abmil"
seeds = 2
top_k = 2
bootstrap = 20
validation_centre = "stain A"

[encoder]
kind = "fresh"
recipe = "smartccs-pretrain-small"
side_px = 64

[bags]
train = 8
validation = 32
test = 12
cells = [4, 6]
prevalence = "flat"

[training]
epochs = 2
"""


@pytest.mark.parametrize("kind", ["mean", "max", "abmil"])
def test_padding_and_company_change_no_answer_and_cells_add_up_to_it(kind: HeadKind) -> None:
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    head = build_head(kind, WIDTH, 8).eval()
    bags = [rng.normal(size=(count, WIDTH)).astype(np.float32) for count in (1, 5, 3)]
    gamma_D, beta_D = (rng.normal(size=WIDTH).astype(np.float32) for _ in range(2))
    together = logits_of(head, bags, gamma_D, beta_D)
    alone = np.concatenate([logits_of(head, [bag], gamma_D, beta_D) for bag in bags])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    shuffled = logits_of(head, [bag[::-1].copy() for bag in bags], gamma_D, beta_D)
    np.testing.assert_allclose(together, shuffled, atol=1e-5)
    assert np.array_equal(logits_of(head, bags), logits_of(head, bags, np.ones_like(gamma_D), np.zeros_like(beta_D)))
    features_BND, mask_BN = padded_bags([gamma_D * bag + beta_D for bag in bags])
    with torch.inference_mode():
        answer = head.pooled(torch.where(mask_BN[..., None], features_BND, 99.0), mask_BN)  # padding may hold anything
    cells_NC = answer.cell_logits_BNC[1, :5].numpy()
    attention_N = None if answer.attention_BN is None else answer.attention_BN[1, :5].numpy()
    np.testing.assert_allclose(contributions(POOLS[kind], cells_NC, attention_N).sum(0), alone[1], atol=1e-5)
    np.testing.assert_allclose(answer.logits_BC.numpy(), alone, atol=1e-5)
    mean_D, deviation_D = torch.randn(WIDTH), torch.rand(WIDTH) + 0.5
    raw = [bag * deviation_D.numpy() + mean_D.numpy() for bag in bags]
    before = logits_of(head, bags)
    head.take_raw(mean_D, deviation_D)
    np.testing.assert_allclose(logits_of(head, raw), before, atol=1e-4)


def test_the_operating_point_finds_the_share_of_abnormal_bags_that_was_asked_for() -> None:
    scores_N = np.array([0.9, 0.8, 0.7, 0.3, 0.6, 0.2, 0.1, 0.05])
    labels_N = np.array([1, 2, 3, 4, 0, 0, 0, 0])
    chances_NC = np.zeros((8, 7))
    chances_NC[:, 0], chances_NC[:, 1] = 1 - scores_N, scores_N
    everyone = (True,) * 7
    assert operating_point(chances_NC, labels_N, 0.75, everyone).abnormal_from == pytest.approx(0.65)
    assert operating_point(chances_NC, labels_N, 0.76, everyone).abnormal_from == pytest.approx(0.25)
    found = figures(chances_NC, labels_N, ScreeningPoint(0.65, everyone), count=20)
    assert (found["sensitivity"]["value"], found["specificity"]["value"]) == (0.75, 1.0)
    assert (found["auc"]["value"], found["specificity_at_95"]) == (15 / 16, 0.75)


def test_the_point_is_that_of_the_block_that_needs_the_lowest() -> None:
    torch.manual_seed(2)
    rng, head = np.random.default_rng(2), build_head("mean", WIDTH, 8).eval()
    # Three blocks of the validation part, each with a look of its own; nothing abnormal was found in the last.
    classes_N, fields_N = np.tile(np.repeat([0, 1], 40), 3), np.repeat([0, 1, 2, 3], [80, 80, 40, 40])
    classes_N[160:] = 0
    features_ND = (rng.normal(size=(240, WIDTH)) + classes_N[:, None] + fields_N[:, None]).astype(np.float32)
    fields = tuple((f"field {n}", f"block {n}", "train" if n == 3 else "validation") for n in range(4))
    cells = CellSet(features_ND, classes_N, np.full(240, NAMELESS), np.ones(240), fields_N, fields, {})
    recipe = parse_recipe(SlideRecipe, tomllib.loads(RECIPE))
    blocks = slide.validation_blocks(recipe, cells)
    assert len(blocks) == 2
    for number, bags in enumerate(blocks):
        own = {row.tobytes() for row in features_ND[fields_N == number]}
        assert all(row.tobytes() in own for row in bags.cells())

    everyone, plain = (True,) * 7, Calibration(1.0, (0.0,) * 7)
    chances = [plain(logits_of(head, bags.features)) for bags in blocks]
    points = [
        operating_point(chances_NC, bags.labels_B, recipe.sensitivity, everyone).abnormal_from
        for chances_NC, bags in zip(chances, blocks, strict=True)
    ]
    assert points[0] != points[1]
    assert slide.lowest_point(recipe, head, plain, blocks, everyone).abnormal_from == min(points)
    with pytest.raises(TaskInvalid, match="No block of the validation part has both"):
        slide.validation_blocks(recipe, replace(cells, classes_N=np.zeros(240, np.int64)))


def test_probabilities_are_calibrated_to_how_often_each_class_is() -> None:
    rng = np.random.default_rng(4)
    logits_NC, biases_C = rng.normal(0, 6, (4000, 7)), np.array([1.5, 0.5, 0, 0, -0.5, -0.5, -1])
    chances_NC = softmax(logits_NC / 3 + biases_C, axis=1)
    labels_N = np.array([rng.choice(7, p=chances_C) for chances_C in chances_NC])
    found = calibration_of(logits_NC, labels_N)
    assert found.temperature == pytest.approx(3, rel=0.1)
    assert np.array(found.biases) - found.biases[0] == pytest.approx(biases_C - biases_C[0], abs=0.3)

    # A head that tells nothing, surely: what is left is how often each class is. One class never is.
    labels_N = rng.choice(7, 400, p=(0.75, 0.1, 0.06, 0.04, 0.04, 0.01, 0))
    given_NC = calibration_of(rng.normal(0, 30, (400, 7)), labels_N)(rng.normal(0, 30, (4000, 7)))
    often_C = np.bincount(labels_N, minlength=7) / 400
    assert given_NC.mean(0) == pytest.approx(often_C, abs=0.05)
    assert given_NC[:, 6].mean() < 0.01


def test_a_tiny_training_holds_what_a_card_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = made.Made(tmp_path / "data")
    made.smears(data)
    data.finish()
    monkeypatch.setenv("PATHSERVE_DATA", str(data.root))
    monkeypatch.setenv("PATHSERVE_RUNS", str(tmp_path / "runs"))
    (tmp_path / "tiny.toml").write_text(RECIPE)
    assert train(tmp_path / "tiny.toml", stop_after=1) is None
    assert "1 of 2 heads" in capsys.readouterr().err
    run = train(tmp_path / "tiny.toml", resume=True)
    assert run is not None
    held = slide.trained(run)
    assert len(held.heads) == 2
    assert held.point.supported[0] is False  # fewer than 30 cells of any class
    assert np.isfinite(held.source.mean_D).all()
    assert held.source.gate > 0
    assert run.metrics["cells"]["train"]["NILM"] == 4
    files = (tmp_path / "runs" / "cache").glob("cells-*")
    validation_path, cells_path = sorted(files, key=lambda path: path.stat().st_size)
    cells = CellSet.read(cells_path, json.loads(_header(cells_path)))
    assert held.calibrated(logits_of(held.heads[0], [cells.features_ND])).sum() == pytest.approx(1)
    assert "annotated cells, stain A" in _header(validation_path)
    with pytest.raises(RunInvalid, match="another encoder"):
        CellSet.read(cells_path, {})


def _header(path: Path) -> str:
    with safe_open(path, "np") as file:
        return str(file.metadata()["header"])
