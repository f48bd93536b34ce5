"""Does the served segmentor draw what its network draws, and do windows draw what one pass over an image does?

    python -m exporters.segmentor_check model_repository training/released/pathseg \
        --out docs/results/pathsegmentor/served.json

The gates compare engines on drawn inputs. Here they are asked through Triton, as an order asks them, about every image
of the held-out groups, and the network in PyTorch about the same windows. And the network is asked about whole images
at once where they are larger than a window, some of MoNuSeg among them.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit

from exporters.errors import ExportError
from gateway.domain.prompts import Triple, token_ids
from gateway.inference import ModelRepository, TritonEngine
from gateway.operations.settings import Settings
from training import command
from training.files import json_bytes, write_atomic
from training.pathsegmentor import data
from training.pathsegmentor.data import Item
from training.pathsegmentor.descriptors import dice
from training.pathsegmentor.figures import names
from training.pathsegmentor.model import PathSegmentor, load
from training.pathsegmentor.pairs import Pair, Table, difference, mean
from training.pathsegmentor.predictor import WINDOW_PX, Asked, Predicted, TextPrompted, blended, padded, starts
from training.pathsegmentor.sets import FEWEST_PX
from training.repeatable import repeatable
from training.runs import Run, open_run

TEXT, IMAGE, MASKS = "pathseg_text", "pathseg_image", "pathseg"
DICE_BOUND, PRESENCE_BOUND = 1e-3, 1e-4
"""Set beforehand: of the greatest difference of a pair's Dice, and of a probability of presence."""
_LARGE, _EVERY = ("monuseg",), 6
"""A source of large images, and which of them are asked about: few, for each has 25 windows."""


def check(repository: Path, run: Run) -> dict[str, Any]:
    """All figures. Raises ExportError where the repository serves other weights than the run's, and what Triton and the
    data raise."""
    digests = ModelRepository(repository).document(IMAGE)["digests"]
    if digests["weights_sha256"] != run.weights_sha256:
        raise ExportError(f"The repository serves other weights than those of the run {run.name}. Export the run.")
    held_out, network = data.load("test", tuple(run.recipe["data"]["sets"])), load(run)
    large = [
        item
        for item in (*held_out, *data.load("external", _LARGE)[::_EVERY])
        if max(item.category_HW.shape) > WINDOW_PX
    ]
    with tempfile.TemporaryDirectory(prefix="pathserve-check-") as state:
        settings = Settings(state=Path(state), model_repository=repository, triton_url=None)
        answers = asyncio.run(_served(settings, held_out))
    return {
        "weights_sha256": run.weights_sha256,
        "engine": engine_figures(network, held_out, answers),
        "windows": window_figures(network, large),
    }


def engine_figures(network: PathSegmentor, items: Sequence[Item], answers: Sequence[Predicted]) -> dict[str, Any]:
    """What the engines answered to each image's own prompts, against the network on the same windows: in every pair the
    pixels that are decided otherwise and the probability of presence (before the card's temperature), and Dice where
    the object is there."""
    asked, served = TextPrompted(network), dict(zip((id(item) for item in items), answers, strict=True))
    flipped, images, presence = 0, 0, [0.0]

    def masks(item: Item) -> tuple[np.ndarray, np.ndarray]:
        nonlocal flipped, images
        due, found = asked(item.image_HWC, [Asked(triple) for triple in _own(item)], item.set), served[id(item)]
        pair = found.probabilities_PHW > 0.5, due.probabilities_PHW > 0.5
        flipped, images = flipped + int((pair[0] != pair[1]).sum()), images + 1
        presence.append(float(np.abs(expit(found.presence_P) - expit(due.presence_P)).max()))
        return pair

    found = _figures(list(_pairs(items, masks)))
    largest = {"dice": found["largest"], "presence": max(presence)}
    return found | {
        "images": images,
        "flipped_px": flipped,
        "largest_presence": largest["presence"],
        "bounds": {"dice": DICE_BOUND, "presence": PRESENCE_BOUND},
        "met": largest["dice"] < DICE_BOUND and largest["presence"] < PRESENCE_BOUND,
    }


def window_figures(network: PathSegmentor, items: Sequence[Item]) -> dict[str, Any]:
    """Blended windows against one pass over the whole image, by the network, of images larger than a window."""
    asked = TextPrompted(network)

    def masks(item: Item) -> tuple[np.ndarray, np.ndarray]:
        said = asked(item.image_HWC, [Asked(triple) for triple in _own(item)], item.set)
        return said.probabilities_PHW > 0.5, _at_once(network, item.image_HWC, _own(item))

    found = _figures(list(_pairs(items, masks)))
    return found | {"images": len(items), "bounds": {"dice": DICE_BOUND}, "met": found["largest"] < DICE_BOUND}


def _own(item: Item) -> tuple[Triple, ...]:
    return tuple(triple for triple in item.triples if triple.region == item.organ)


def _pairs(
    items: Sequence[Item], masks: Callable[[Item], tuple[np.ndarray, np.ndarray]]
) -> Iterator[tuple[Pair, float]]:
    """Of every image's own prompts whose objects are there: the pair with the first answer's Dice, and the second's."""
    for item in items:
        outlines: dict[bytes, int] = {}
        for triple, first, second in zip(_own(item), *masks(item), strict=True):
            truth = item.mask(triple)
            if truth.sum() < FEWEST_PX:
                continue
            pair = Pair(
                set=item.set,
                external=item.part == "external",
                part=item.part,
                group=item.group,
                image=item.name,
                prompt=triple.text,
                level=triple.level,
                own=True,
                present=True,
                dice=dice(first, truth),
                outline=outlines.setdefault(truth.tobytes(), len(outlines)),
            )
            yield pair, dice(second, truth)


def _figures(pairs: Sequence[tuple[Pair, float]]) -> dict[str, Any]:
    """By set and over all: both means, their difference, and the greatest of any pair."""
    table, second_N = Table.of([pair for pair, _ in pairs]), np.array([other for _, other in pairs])

    def row(kept_N: np.ndarray) -> dict[str, Any]:
        part, other = table.where(kept_N), second_N[kept_N]
        return {
            "first": mean(part["dice"], part.groups(), part.shares()),
            "second": mean(other, part.groups(), part.shares()),
            "difference": difference(part["dice"], other, part),
            "largest": float(np.abs(part["dice"] - other).max()),
        }

    return {
        "by_set": {name: row(table["set"] == name) for name in names(table["set"])},
        "pairs": len(table),
        "largest": float(np.abs(table["dice"] - second_N).max()),
    }


async def _served(settings: Settings, items: Sequence[Item]) -> list[Predicted]:
    async with TritonEngine.open(settings, (TEXT, MASKS)) as engine:
        return [await _answer(engine, item) for item in items]


async def _answer(engine: TritonEngine, item: Item) -> Predicted:
    """What the engines say of the image's own prompts, in the windows that the network is asked about too."""
    ids_PL, mask_PL = token_ids(list(_own(item)))
    text = await engine.infer(TEXT, {"token_ids": ids_PL, "token_mask": mask_PL})
    asked = {name: rows[None] for name, rows in (text | {"text_mask": mask_PL}).items()}
    image, windows = item.image_HWC, []
    for top, left in product(*map(starts, image.shape[:2])):
        tile = np.ascontiguousarray(image[top : top + WINDOW_PX, left : left + WINDOW_PX])
        said = await engine.infer(MASKS, {"image": tile[None], **asked})
        windows.append((said["mask_logits"][0], said["presence_logit"][0], None))
    waiting = iter(windows)
    return blended(image, lambda _: next(waiting))


@torch.inference_mode()
def _at_once(network: PathSegmentor, image_HW3: np.ndarray, triples: Sequence[Triple]) -> np.ndarray:
    """(P,H,W) bool: the masks of one pass over the whole image."""
    ids, mask = map(torch.from_numpy, token_ids(list(triples)))
    scales, features = network.image_encoder(padded(image_HW3, network.multiple))
    tokens, whole = network.text_encoder(ids, mask)
    height, width = image_HW3.shape[:2]
    said = network.decode(scales, features, tokens[None], whole[None], mask[None])
    return said.mask_logits_BPSS[0, :, :height, :width].numpy() > 0


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 1 with one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m exporters.segmentor_check", description=__doc__)
    parser.add_argument("repository", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args(arguments)

    def work() -> None:
        repeatable()
        write_atomic(chosen.out, json_bytes(check(chosen.repository.resolve(), open_run(chosen.run))))

    return command.status(work, "The figures")


if __name__ == "__main__":
    sys.exit(main())
