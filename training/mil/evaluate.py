"""What a slide head is worth: figures on composed slides of test tiles that it never saw.

Intervals are bootstraps in two stages: splits of the tiles are drawn, then slides within each. They say how the figure
varies with the tiles at hand, of which there are few; they do not say how it would on other patients.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import softmax

from training.data.dataset import Dataset
from training.mil.data import ComposedSlide, compose, one_slide
from training.mil.model import SlideHead
from training.mil.recipe import SlideHeadRecipe
from training.operating_point import OperatingPoint
from training.statistics import Figure, interval, macro_auroc

HEAD = "slide head"
_PLANTED_TILES = (2, 64)
"""Least and greatest size of the slides with a single tile of the target."""


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What a head said of its test slides: probabilities (N,2); of each slide its label, size and share of the target;
    whether it was answered at the operating point; and of the slides with one planted tile, whether it was attended to
    most (P,) (empty without attention). `point` is the operating point, and the share of right answers there on the
    slides of its inner folds."""

    probabilities_NC: np.ndarray
    labels_N: np.ndarray
    sizes_N: np.ndarray
    shares_N: np.ndarray
    point: np.ndarray
    planted_first_P: np.ndarray

    @property
    def auroc(self) -> float:
        return macro_auroc(self.probabilities_NC, self.labels_N)

    def write(self, path: Path) -> None:
        with path.with_suffix(".new").open("wb") as file:
            np.savez(file, **{name: getattr(self, name) for name in self.__slots__})
        path.with_suffix(".new").replace(path)

    @classmethod
    def read(cls, path: Path) -> "Answers":
        with np.load(path) as arrays:
            return cls(**arrays)


def logits_of(head: SlideHead, slides: Sequence[ComposedSlide], features_NVD: np.ndarray) -> np.ndarray:
    """(N,C) float32, one slide at a time."""
    with torch.inference_mode():
        return np.concatenate([head.logits(slide.features(features_NVD)).numpy() for slide in slides])


def answer(
    recipe: SlideHeadRecipe,
    head: SlideHead,
    point: OperatingPoint,
    features_NVD: np.ndarray,
    tiles: Dataset,
    test_N: np.ndarray,
    split: int,
) -> Answers:
    """The test slides of one split through a finished head. Rows of one split are asked the same slides."""
    setting, target = recipe.slides, tiles.classes.index(recipe.target)
    rng = np.random.default_rng((recipe.seed, split, 3))
    slides = list(
        compose(tiles.labels_N, test_N, target, setting.test, setting, rng, most_tiles=setting.most_tiles, jitter=False)
    )
    return Answers(
        probabilities_NC=softmax(logits_of(head, slides, features_NVD).astype(np.float64), axis=1),
        labels_N=np.array([slide.label for slide in slides]),
        sizes_N=np.array([len(slide.tiles_N) for slide in slides]),
        shares_N=np.array([slide.target_N.mean() for slide in slides]),
        point=np.array(point),
        planted_first_P=_planted(head, setting.planted, features_NVD, tiles.labels_N, test_N, target, rng),
    )


def _planted(
    head: SlideHead,
    count: int,
    features_NVD: np.ndarray,
    labels_N: np.ndarray,
    test_N: np.ndarray,
    target: int,
    rng: np.random.Generator,
) -> np.ndarray:
    found = []
    low, high = np.log(_PLANTED_TILES)
    for _ in range(count if head.explains else 0):
        others = round(float(np.exp(rng.uniform(low, high)))) - 1
        slide = one_slide(labels_N, test_N, target, (1, others), rng)
        with torch.inference_mode():
            _, attention_1N = head(torch.from_numpy(slide.features(features_NVD))[None])
        found.append(bool(slide.target_N[int(attention_1N[0].argmax())]))
    return np.array(found, bool)


def _auroc(answers: Answers, draw: np.ndarray) -> float:
    return macro_auroc(answers.probabilities_NC[draw], answers.labels_N[draw])


def _recall(label: int, *, answered: bool = False) -> Callable[[Answers, np.ndarray], float]:
    """The share of a label's slides that are called so; with `answered`, called so at the operating point: what is not
    answered counts as missed."""

    def score(answers: Answers, draw: np.ndarray) -> float:
        probabilities_NC = answers.probabilities_NC[draw][answers.labels_N[draw] == label]
        called = probabilities_NC.argmax(1) == label
        if answered:
            called &= probabilities_NC.max(1) >= answers.point[0]
        return float(called.mean())

    return score


def _answered(answers: Answers, draw: np.ndarray) -> float:
    return float((answers.probabilities_NC[draw].max(1) >= answers.point[0]).mean())


SCORES: Mapping[str, Callable[[Answers, np.ndarray], float]] = {
    "AUROC": _auroc,
    "sensitivity": _recall(1),
    "specificity": _recall(0),
    "share answered at the operating point": _answered,
    "sensitivity at the operating point": _recall(1, answered=True),
    "specificity at the operating point": _recall(0, answered=True),
}


def figure(score: Callable[[Answers, np.ndarray], float], splits: Sequence[Answers], count: int, seed: int) -> Figure:
    """A score averaged over the splits, with its interval: splits drawn, then slides within each. Of one split, slides
    only. A draw without both labels is drawn again."""
    rng = np.random.default_rng(seed)
    replicates = []
    for _ in range(count):
        chosen = [splits[k] for k in rng.integers(0, len(splits), len(splits))]
        replicates.append(float(np.mean([score(answers, _draw(answers.labels_N, rng)) for answers in chosen])))
    value = float(np.mean([score(answers, np.arange(len(answers.labels_N))) for answers in splits]))
    found = interval(value, replicates)
    return Figure(round(found.value, 4), round(found.low, 4), round(found.high, 4))


def _draw(labels_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    while True:
        draw = rng.integers(0, len(labels_N), len(labels_N))
        if 0 < labels_N[draw].mean() < 1:
            return draw


def summary(
    recipe: SlideHeadRecipe, tiles: Dataset, width: int, rows: Mapping[str, Sequence[Answers]], point: OperatingPoint
) -> dict[str, Any]:
    """metrics.json: all rows, kinds of slides, planted tiles; `point` is the served head's."""
    count, seed, head = recipe.bootstrap, recipe.seed, rows[HEAD]
    figures = {
        name: {score: asdict(figure(SCORES[score], splits, count, seed)) for score in SCORES}
        for name, splits in rows.items()
    }
    result: dict[str, Any] = {
        "grouping": tiles.grouping,
        "tiles": len(tiles.labels_N),
        "groups": len(np.unique(tiles.groups_N)),
        "feature_size": width,
        "target": recipe.target,
        "splits": recipe.splits,
        "slides": recipe.slides.model_dump(),
        "rows": figures,
        "auroc_by_split": {name: [round(answers.auroc, 4) for answers in splits] for name, splits in rows.items()},
        "kinds_of_slides": _kinds(head),
        "operating_point": {
            "min_probability": point.min_probability,
            "aim": recipe.accuracy_when_answered,
            "reached": round(point.reached, 4),
        },
    }
    if len(head[0].planted_first_P):
        result["planted_tile_first"] = asdict(
            figure(lambda answers, _: float(answers.planted_first_P.mean()), head, count, seed)
        ) | {"slides": recipe.slides.planted * recipe.splits, "tiles": list(_PLANTED_TILES)}
    return result


def _kinds(splits: Sequence[Answers]) -> dict[str, dict[str, float | int]]:
    """The share of right answers by size of the slide and by share of the target, over all splits."""
    right, sizes, shares = (
        np.concatenate([pick(answers) for answers in splits])
        for pick in (
            lambda answers: answers.probabilities_NC.argmax(1) == answers.labels_N,
            lambda answers: answers.sizes_N,
            lambda answers: answers.shares_N,
        )
    )
    kinds = {
        "one tile": sizes == 1,
        "2 to 63 tiles": (sizes > 1) & (sizes < 64),
        "64 to 1023 tiles": (sizes >= 64) & (sizes < 1024),
        "1024 tiles and more": sizes >= 1024,
        "no target": shares == 0,
        "target on less than 5 % of the tiles": (shares > 0) & (shares < 0.05),
        "target on 5 to 50 % of the tiles": (shares >= 0.05) & (shares < 0.5),
        "target on half of the tiles and more": (shares >= 0.5) & (shares < 1),
        "target on every tile": shares == 1,
    }
    return {
        name: {"right": round(float(right[among].mean()), 4), "slides": int(among.sum())}
        for name, among in kinds.items()
        if among.any()
    }
