"""The served segmentor against its network: equal where the engines are the network's graphs, and said where not."""

import dataclasses

import numpy as np
import pytest
import torch

from exporters.segmentor_check import _answer, engine_figures, window_figures
from tests.training.pathsegmentor.painted import item
from tests.training.pathsegmentor.small_networks import smallest
from training.pathsegmentor.data import Item
from training.pathsegmentor.export import ImageEngine, PromptEngine, TextEngine
from training.pathsegmentor.model import PathSegmentor


class Graphs:
    """The graphs that are exported, asked in this process by the names of their models."""

    def __init__(self, network: PathSegmentor) -> None:
        self._text, self._image, self._masks = (part(network) for part in (TextEngine, ImageEngine, PromptEngine))

    async def infer(self, model: str, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        asked = {name: torch.from_numpy(np.array(values)) for name, values in batch.items()}
        if model == "pathseg_text":
            names, found = ("text_tokens", "text_global"), self._text(asked["token_ids"], asked["token_mask"])
        else:
            names, maps = ("mask_logits", "presence_logit"), self._image(asked.pop("image"))
            found = self._masks(*maps, *(asked[name] for name in ("text_tokens", "text_global", "text_mask")))
        return {name: values.numpy() for name, values in zip(names, found, strict=False)}


@pytest.fixture(scope="module")
def network() -> PathSegmentor:
    return smallest()


@pytest.fixture(scope="module")
def items() -> list[Item]:
    """Three images of two windows each."""
    made = [item(number) for number in range(3)]
    return [
        dataclasses.replace(
            one,
            group=one.name,
            image_HWC=np.tile(one.image_HWC, (4, 5, 1)),
            category_HW=np.tile(one.category_HW, (4, 5)),
        )
        for one in made
    ]


async def test_engines_that_are_the_network_meet_the_bounds_and_others_do_not(
    network: PathSegmentor, items: list[Item]
) -> None:
    answers = [await _answer(Graphs(network), one) for one in items]
    found = engine_figures(network, items, answers)
    assert found["met"]
    assert found["largest"] == found["by_set"]["consep"]["difference"]["value"] == 0.0
    assert (found["images"], found["pairs"], found["flipped_px"]) == (3, 8, 0)
    assert found["largest_presence"] < 1e-6
    surer = [dataclasses.replace(answer, presence_P=answer.presence_P + 1.0) for answer in answers]
    assert not engine_figures(network, items, surer)["met"]
    other = [dataclasses.replace(answer, probabilities_PHW=1 - answer.probabilities_PHW) for answer in answers]
    flipped = engine_figures(network, items, other)
    assert not flipped["met"]
    assert flipped["largest"] > 1e-3
    assert flipped["flipped_px"] > 0


def test_windows_are_held_against_one_pass_over_the_image(network: PathSegmentor, items: list[Item]) -> None:
    found = window_figures(network, items)
    row = found["by_set"]["consep"]
    assert row["difference"]["value"] == pytest.approx(row["first"]["value"] - row["second"]["value"], abs=2e-4)
    assert found["met"] == (found["largest"] < 1e-3)
    # One window is one pass.
    small = [
        dataclasses.replace(one, image_HWC=one.image_HWC[:, :256], category_HW=one.category_HW[:, :256])
        for one in items
    ]
    assert window_figures(network, small)["largest"] == 0.0
