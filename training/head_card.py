"""What the cards of classifying heads say besides the texts of every card: their encoder's tile, labels and figures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from training.data.dataset import Dataset
from training.data.split import Split, joined_groups
from training.errors import RecipeInvalid
from training.graphs import Graph
from training.pathbench import leakage
from training.publish import LabelText, Published
from training.runs import Run


def demand_same_tile(publish: Published, encoder: Graph) -> None:
    """The head's card says what tile is read for it. Raises RecipeInvalid where its encoder wants another one."""
    mpp, tile_px = float(encoder.card["mpp"]), int(encoder.card["tile_px"])
    if (publish.mpp, publish.tile_px) != (mpp, tile_px):
        raise RecipeInvalid(
            f"The head's tiles are {publish.tile_px} px at {publish.mpp:g} µm/px, those of its encoder "
            f"{tile_px} px at {mpp:g}. Write mpp = {mpp:g} and tile_px = {tile_px} into the recipe's section publish."
        )


def encoder_has_seen(encoder: Run, tiles: Dataset) -> dict[str, list[str]]:
    """An entry of the head's metrics where its encoder has seen its tiles, with the reasons; else none. Held-out tiles
    are kept from the head, not from an encoder that was trained on them."""
    measured = Split(tiles.name, np.full(len(tiles), "test"), joined_groups(tiles), "")
    reasons = leakage.status(leakage.Origin(run=encoder.name), tiles, measured).reasons
    return {"encoder_has_seen": list(reasons)} if reasons else {}


def seen_limits(metrics: Mapping[str, Any]) -> list[str]:
    """What a card says of that."""
    return [
        f"Its figures are likely too high, for its encoder has not been apart from the tiles: {reason}."
        for reason in metrics.get("encoder_has_seen", ())
    ]


def card_labels(labels: Sequence[LabelText], recalls: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """A label counts as supported where its recall is above chance with its whole interval."""
    return [
        {"index": index, **label.model_dump(mode="json"), "supported": recall["low"] > 1 / len(labels)}
        for index, (label, recall) in enumerate(zip(labels, recalls, strict=True))
    ]


def unsupported(labels: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the labels that a card says not to be supported, as they are outside the intended use."""
    return [label["exploratory"]["display"] for label in labels if not label["supported"]]


def card_metrics(metrics: Mapping[str, Any], rows: Sequence[str], label: str) -> list[dict[str, Any]]:
    """The figures of some rows of a run's metrics, each with its interval; `label` says what they were measured on."""
    return [
        {
            "classifier": row,
            "name": score,
            "value": figure["value"],
            "interval": [figure["low"], figure["high"]],
            "tiles": metrics["tiles"],
            "label": label,
        }
        for row in rows
        for score, figure in metrics["rows"][row].items()
    ]
