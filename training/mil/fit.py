"""A slide head trained on slides composed of some tiles; what it may choose, it chooses on inner folds of these."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy.special import softmax
from torch.nn import functional as F

from training.data.dataset import Dataset
from training.mil.data import ComposedSlide, compose, folds_of
from training.mil.evaluate import logits_of
from training.mil.model import SlideHead
from training.mil.recipe import SlideHeadRecipe
from training.nn.mil import HeadKind
from training.operating_point import OperatingPoint, operating_point
from training.runs import RunWriter
from training.statistics import best_temperature

_CLASSES = 2


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What a row of the figures is trained on: features (N,V,D) of the tiles, and whether slides lose their labels."""

    kind: HeadKind
    features_NVD: np.ndarray
    shuffled: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A head that takes features as the encoder gives them, calibrated, in eval mode; and its operating point."""

    head: SlideHead
    point: OperatingPoint


def fit_head(
    run: RunWriter, recipe: SlideHeadRecipe, task: Task, tiles: Dataset, train_N: np.ndarray, split: int, row: str
) -> Fitted:
    """Train on slides of the tiles `train_N`. The number of epochs, the temperature and the operating point are those
    of heads that were trained on all but one of its inner folds, on slides of that fold. Raises DataMissing."""
    folds = folds_of(tiles.labels_N, tiles.groups_N, train_N, recipe.inner_folds, recipe.seed + split)
    logits, labels = [], []
    for number, held_N in enumerate(folds):
        rng = np.random.default_rng((recipe.seed, split, number))
        slides = list(_drawn(recipe, tiles)(part_N=held_N, count=recipe.slides.validation, jitter=False, rng=rng))
        labels_N = np.array([slide.label for slide in slides])
        labels.append(rng.permutation(labels_N) if task.shuffled else labels_N)
        heads = _trained(recipe, task, tiles, np.setdiff1d(train_N, held_N), (split, number))
        logits.append(np.stack([logits_of(head, slides, task.features_NVD) for head in heads]))
    logits_ENC, labels_N = np.concatenate(logits, axis=1), np.concatenate(labels)
    losses = [float(F.cross_entropy(torch.from_numpy(each), torch.from_numpy(labels_N))) for each in logits_ENC]
    epochs = int(np.argmin(losses)) + 1
    # The held-out slides show a handful of tiles: they may call for less certainty, never for more.
    temperature = max(1.0, best_temperature(logits_ENC[epochs - 1], labels_N)[0])
    *_, head = _trained(recipe, task, tiles, train_N, (split, recipe.inner_folds), epochs)
    head.soften(temperature)
    probabilities_NC = softmax(logits_ENC[epochs - 1] / temperature, axis=1)
    right_N = probabilities_NC.argmax(1) == labels_N
    point = operating_point(probabilities_NC.max(1), right_N, recipe.accuracy_when_answered, least=1 / _CLASSES)
    run.log(
        "fitted", row=row, split=split, losses=[round(loss, 4) for loss in losses], temperature=round(temperature, 3)
    )
    return Fitted(head, point)


def _drawn(recipe: SlideHeadRecipe, tiles: Dataset) -> partial[Iterator[ComposedSlide]]:
    target, slides = tiles.classes.index(recipe.target), recipe.slides
    return partial(compose, tiles.labels_N, target=target, slides=slides, most_tiles=slides.most_training_tiles)


def _trained(
    recipe: SlideHeadRecipe, task: Task, tiles: Dataset, train_N: np.ndarray, seed: tuple[int, int], epochs: int = 0
) -> Iterator[SlideHead]:
    """The head after each epoch (of the first `epochs`; 0 = all) of Adam on one slide at a time, in eval mode; it is
    one's own to keep until the next is asked for. New slides are composed for each epoch."""
    setting, draw = recipe.optimiser, _drawn(recipe, tiles)
    mean_D, deviation_D = _standard(task.features_NVD[train_N])
    standard_NVD = (task.features_NVD - mean_D) / deviation_D
    torch.manual_seed(int(np.random.default_rng((recipe.seed, *seed)).integers(2**31)))
    head = SlideHead(task.kind, standard_NVD.shape[2], _CLASSES, recipe.hidden)
    optimiser = torch.optim.Adam(head.parameters(), lr=setting.rate, weight_decay=setting.decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, setting.epochs)
    for epoch in range(epochs or setting.epochs):
        rng = np.random.default_rng((recipe.seed, *seed, epoch))
        bags = list(draw(part_N=train_N, count=recipe.slides.train, jitter=True, rng=rng))
        labels = [bag.label for bag in bags]
        _epoch(head.train(), optimiser, bags, rng.permutation(labels) if task.shuffled else labels, standard_NVD)
        schedule.step()
        served = SlideHead(task.kind, standard_NVD.shape[2], _CLASSES, recipe.hidden)
        served.load_state_dict(head.state_dict())
        served.standardise(mean_D, deviation_D)
        yield served.eval()


def _epoch(
    head: SlideHead,
    optimiser: torch.optim.Optimizer,
    bags: Sequence[ComposedSlide],
    labels_N: Sequence[int],
    features_NVD: np.ndarray,
) -> None:
    """One pass over the bags in random order."""
    for place in torch.randperm(len(bags)).tolist():
        loss = F.cross_entropy(head.logits(bags[place].features(features_NVD)), torch.tensor([int(labels_N[place])]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def _standard(features_NVD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (D,) of all views. Dimensions that hardly vary count as if they varied a tenth of the mean."""
    rows = features_NVD.reshape(-1, features_NVD.shape[2])
    deviation_D = rows.std(0)
    return rows.mean(0), np.maximum(deviation_D, 0.1 * deviation_D.mean())
