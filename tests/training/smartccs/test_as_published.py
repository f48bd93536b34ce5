"""An encoder that is taken as it was published: its run holds those weights, to half precision, and what serves it is
the same network."""

from pathlib import Path

import numpy as np
import pytest
import torch

from training.errors import RecipeInvalid
from training.graphs import declare
from training.runs import open_run
from training.smartccs.embed import EncoderSettings, encoder, taught
from training.smartccs.train import train

pytestmark = pytest.mark.training

RECIPE = Path(__file__).parents[3] / "training" / "recipes" / "smartccs-encoder-lite0-small.toml"


def test_its_run_and_what_is_served_are_the_published_weights(tmp_path: Path) -> None:
    run = train(RECIPE, tmp_path / "run")
    assert run is not None
    crops_NHWC = np.random.default_rng(1).integers(0, 256, (3, 128, 128, 3), dtype=np.uint8)
    published = encoder(EncoderSettings(kind="imagenet", side_px=128), 0)
    taken = taught(open_run(run.path), 128)
    np.testing.assert_allclose(taken(crops_NHWC), published(crops_NHWC), atol=0.02)
    assert run.weights_path.stat().st_size < 7_500_000
    graph = declare(run)
    with torch.inference_mode():
        served_ND = graph.network(torch.from_numpy(crops_NHWC)).numpy()
    np.testing.assert_array_equal(served_ND, taken(crops_NHWC))
    assert graph.card["crop"]["transform_sha256"] == published.crops.digest
    assert [entry["licence"] for entry in run.manifest["pretraining"]] == ["Apache-2.0"]


def test_fresh_weights_are_no_published_ones(tmp_path: Path) -> None:
    with pytest.raises(RecipeInvalid, match="must name published weights"):
        train(RECIPE, tmp_path / "run", changes=["network.start=random"])
