"""What the cards of classifying heads say besides the texts of every card: their labels, and the figures of rows."""

from collections.abc import Mapping, Sequence
from typing import Any

from training.publish import LabelText


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
