"""The cell detector's network: its sizes, where it looks, and its graph."""

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from training.smartccs.deformable import DeformableAttention, pixel_centres
from training.smartccs.detector import Detector, initialise
from training.smartccs.recipe import DetectorNetwork, DetectorRecipe
from training.smartccs.train import STAGES, describe
from training.ssl.recipe import read_recipe

pytestmark = pytest.mark.training
RECIPES = Path(__file__).parents[3] / "training" / "recipes"


def tiny() -> Detector:
    backbone = {"arch": "conv", "widths": (8, 8, 16), "levels": 2}
    torch.manual_seed(3)
    network = Detector(DetectorNetwork(backbone=backbone, width=32, heads=2, layers=2, ffn=16, queries=7, dropout=0.1))
    initialise(network)
    return network.eval()


@pytest.mark.parametrize(
    ("recipe", "millions", "levels"),
    [("small", 3.66, 3), ("lite0-small", 3.97, 3), ("gpu", 40.1, 4), ("full", 40.1, 4)],
)
def test_networks_have_the_published_sizes(recipe: str, millions: float, levels: int) -> None:
    path = RECIPES / f"smartccs-detect-{recipe}.toml"
    with torch.device("meta"):
        network = Detector(read_recipe(DetectorRecipe, path)[0].network)
    assert sum(part.numel() for part in network.parameters()) == pytest.approx(millions * 1e6, rel=2e-3)
    assert len(network.levels) == levels
    assert describe(path).startswith(f"smartccs-detect-{recipe}: system smartccs, stage detect")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("smartccs-*.toml")), ids=lambda path: path.stem)
def test_each_recipe_can_be_described_without_data_or_weights(path: Path) -> None:
    stage = next(name for name in STAGES if f'stage = "{name}"' in path.read_text(encoding="utf-8"))
    assert describe(path).startswith(f"{path.stem}: system smartccs, stage {stage}")


def test_attention_reads_bilinearly_at_the_reference_and_its_offset_in_pixels() -> None:
    attention = DeformableAttention(1, 1, 2, 1)
    for layer in (attention.offsets, attention.weights):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    for layer in (attention.value, attention.out):
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)
    sizes = [(3, 4), (1, 2)]
    fine, coarse = torch.arange(12.0), torch.tensor([100.0, 200.0])
    maps = torch.cat([fine, coarse])[None, :, None]

    def look(places: list[list[float]]) -> list[float]:
        at = torch.tensor([places])
        with torch.no_grad():
            return attention(torch.zeros(1, len(places), 1), at, maps, sizes)[0, :, 0].tolist()

    # Pixel centres of the fine map; the coarse one is read between its own two centres. Each map weighs a half.
    centres = pixel_centres(sizes, torch.device("cpu"))[0]
    assert centres[[0, 1, 4, 12]].tolist() == pytest.approx(
        np.array([[0.125, 1 / 6], [0.375, 1 / 6], [0.125, 0.5], [0.25, 0.5]])
    )
    assert look([[0.375, 0.5], [0.75, 0.5]]) == pytest.approx([(5 + 125) / 2, (6.5 + 200) / 2])
    attention.offsets.bias.data[:2] = torch.tensor([1.0, -1.0])  # one pixel right, one up, on the fine map alone
    assert look([[0.375, 0.5]]) == pytest.approx([(2 + 125) / 2])
    attention.offsets.bias.data[:2] = torch.tensor([9.0, 0.0])  # beyond the border there is nothing
    assert look([[0.375, 0.5]]) == pytest.approx([125 / 2])


def test_attention_begins_around_its_reference_in_all_directions() -> None:
    attention = DeformableAttention(8, 4, 2, 3)
    attention.initialise()
    offsets = attention.offsets.bias.detach().reshape(4, 2, 3, 2)
    assert offsets[:, 0, 0].round(decimals=4).tolist() == [[1, 0], [0, 1], [-1, 0], [0, -1]]
    assert torch.allclose(offsets[:, 1, 2], 3 * offsets[:, 0, 0])


def test_the_graph_says_what_the_network_says(tmp_path: Path) -> None:
    network = tiny()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 64, 64, 3), np.uint8)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own deprecations
        program = torch.onnx.export(
            network,
            (torch.from_numpy(images[:2]),),
            dynamo=True,
            opset_version=20,
            dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1, max=8)}},
            input_names=["image"],
            output_names=["scores", "boxes"],
            external_data=False,
            verbose=False,
        )
    program.save(tmp_path / "model.onnx", external_data=False)
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    first = {node.op_type for node in model.graph.node if "image" in node.input}
    assert first - {"Shape"} == {"Cast"}  # besides what asks for the batch's size, nothing reads bytes but the cast
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("GridSample") == 3 * (2 + 2)
    assert not {"NonMaxSuppression", "TopK", "NonZero"} & set(operators)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        scores, boxes = session.run(["scores", "boxes"], {"image": images[:batch]})
        with torch.inference_mode():
            expected = [values.numpy() for values in network(torch.from_numpy(images[:batch]))]
        assert scores.shape == (batch, 7, 6)
        assert boxes.shape == (batch, 7, 4)
        assert np.abs(scores - expected[0]).max() <= 1e-5
        assert np.abs(boxes - expected[1]).max() <= 1e-5
