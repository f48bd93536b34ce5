"""What is fitted on frozen tile features: a linear layer, a logistic regression, neighbours, retrieval.

Each fits on the training part, chooses on the validation part, and answers for test features whose labels it never
sees: (R,N,C) float32 of class scores that sum to one, R repetitions (seeds; one where there is no chance in it).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from training.errors import TaskInvalid
from training.pathbench.recipe import Dense, Linear, Neighbours
from training.statistics import balanced_accuracy, macro_auroc


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """features_ND float32 and labels_N int64."""

    features_ND: np.ndarray
    labels_N: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """For each test cohort, class scores (R,N,C); and what the validation part chose. `neighbours_NK` are, for each
    cohort of a retrieval, the labels of the nearest training items."""

    scores: list[np.ndarray]
    choices: dict[str, float | str] = field(default_factory=dict)
    neighbours: list[np.ndarray] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Scaling:
    """z = (x − mean) · factor, of the training items; a dimension that does not vary becomes 0."""

    mean_D: np.ndarray
    factor_D: np.ndarray

    @classmethod
    def of(cls, features_ND: np.ndarray) -> "Scaling":
        """With the unbiased deviation; one item has none, and becomes 0."""
        mean_D = features_ND.mean(0, dtype=np.float64)
        deviation_D = features_ND.std(0, ddof=1, dtype=np.float64) if len(features_ND) > 1 else np.zeros_like(mean_D)
        varies = deviation_D > 1e-6 * np.maximum(np.abs(mean_D), 1e-6)
        return cls(mean_D, np.where(varies, 1 / (deviation_D + 1e-6), 0.0))

    def __call__(self, features_ND: np.ndarray) -> np.ndarray:
        return ((features_ND - self.mean_D) * self.factor_D).astype(np.float32)


def demand_classes(labels_N: np.ndarray, part: str) -> None:
    """Raises TaskInvalid where a part holds fewer than two classes: nothing can be fitted or ranked on it."""
    if len(np.unique(labels_N)) < 2:
        raise TaskInvalid(f"The {part} part holds one class only. Split again, or join classes.")


def linear(
    train: Labelled,
    validation: Labelled,
    tests: Sequence[np.ndarray],
    classes: int,
    settings: Linear,
    seeds: Sequence[int],
) -> Answers:
    """A linear probe (arXiv 2407.18449, tile tasks; `settings` says what differs). Raises TaskInvalid."""
    demand_classes(train.labels_N, "training")
    demand_classes(validation.labels_N, "validation")
    if settings.scaling == "train":
        scaling = Scaling.of(train.features_ND)
        train = Labelled(scaling(train.features_ND), train.labels_N)
        validation = Labelled(scaling(validation.features_ND), validation.labels_N)
        tests = [scaling(test) for test in tests]
    if settings.optimiser == "lbfgs":
        return _logistic(train, validation, tests, classes, settings)

    def area(layer: torch.nn.Linear) -> float:
        return macro_auroc(layer_scores(layer, validation.features_ND), validation.labels_N)

    rate, layers = fit_layers(train.features_ND, train.labels_N, classes, area, settings, seeds, cosine=True)
    scores = [np.stack([layer_scores(layer, test) for layer in layers]) for test in tests]
    return Answers(scores, {"rate": rate})


def layer_scores(layer: torch.nn.Linear, inputs_xD: np.ndarray) -> np.ndarray:
    """(…,C) probabilities of a layer's outputs."""
    with torch.inference_mode():
        return layer(torch.from_numpy(inputs_xD)).softmax(-1).numpy()


def fit_layers(
    inputs_ND: np.ndarray,
    targets_N: np.ndarray,
    outputs: int,
    judge: Callable[[torch.nn.Linear], float],
    settings: Linear | Dense,
    seeds: Sequence[int],
    *,
    cosine: bool,
) -> tuple[float, list[torch.nn.Linear]]:
    """AdamW: the rate with the best figure by `judge` (validation, not below 0), the first of equals; its layer a seed.

    `targets_N` are classes (N,) or shares of the outputs (N,C); `cosine` lowers the rate with every step.
    """
    inputs, targets = torch.from_numpy(inputs_ND), torch.from_numpy(targets_N)
    steps = -(-len(inputs) // settings.batch)

    def fitted(rate: float, seed: int) -> tuple[float, torch.nn.Linear]:
        """The best figure and the layer that had it first."""
        generator = torch.Generator().manual_seed(seed)
        layer = torch.nn.Linear(inputs_ND.shape[1], outputs)
        layer.weight.data.normal_(0.0, 0.01, generator=generator)
        layer.bias.data.zero_()
        optimiser = torch.optim.AdamW(layer.parameters(), lr=rate, weight_decay=settings.decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.epochs * steps, eta_min=1e-5)
        best, kept, since = -1.0, {}, 0
        for _ in range(settings.epochs):
            for rows in torch.randperm(len(inputs), generator=generator).split(settings.batch):
                loss = F.cross_entropy(layer(inputs[rows]), targets[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                if cosine:
                    schedule.step()
            found = judge(layer)
            since += 1
            if found > best:
                best, kept, since = found, {name: value.clone() for name, value in layer.state_dict().items()}, 0
            if since >= settings.patience:
                break
        layer.load_state_dict(kept)
        return best, layer

    # The rate is chosen with the first seed: a repetition must not differ from another in its settings.
    tried = {rate: fitted(rate, seeds[0]) for rate in settings.rates}
    rate = max(settings.rates, key=lambda each: tried[each][0])
    return rate, [tried[rate][1], *(fitted(rate, seed)[1] for seed in seeds[1:])]


def _logistic(
    train: Labelled, validation: Labelled, tests: Sequence[np.ndarray], classes: int, settings: Linear
) -> Answers:
    """A logistic regression by L-BFGS: the penalty with the best validation AUC, the first of equals."""
    present = np.unique(train.labels_N)

    def scores(model: LogisticRegression, features_ND: np.ndarray) -> np.ndarray:
        scores_NC = np.zeros((len(features_ND), classes), np.float32)
        scores_NC[:, present] = model.predict_proba(features_ND)
        return scores_NC

    models = [
        LogisticRegression(C=penalty, max_iter=1000, tol=1e-3).fit(train.features_ND, train.labels_N)
        for penalty in settings.penalties
    ]
    found = [macro_auroc(scores(model, validation.features_ND), validation.labels_N) for model in models]
    best = int(np.argmax(found))
    return Answers([scores(models[best], test)[None] for test in tests], {"penalty": settings.penalties[best]})


def knn(
    train: Labelled, validation: Labelled, tests: Sequence[np.ndarray], classes: int, settings: Neighbours
) -> Answers:
    """Votes of the nearest items, weighted by cosine (arXiv 1805.01978, sec. 3.4); k by the validation part."""
    demand_classes(train.labels_N, "training")
    most = min(max(settings.k), len(train.labels_N))
    choices = sorted({min(k, most) for k in settings.k})

    def votes(features_ND: np.ndarray) -> dict[int, np.ndarray]:
        similarity_NM = _unit(features_ND) @ _unit(train.features_ND).T
        order_NK = np.argsort(-similarity_NM, axis=1, kind="stable")[:, :most]
        weights_NK = softmax(np.take_along_axis(similarity_NM, order_NK, 1) / settings.temperature, axis=1)
        return {k: _count(train.labels_N[order_NK[:, :k]], weights_NK[:, :k], classes) for k in choices}

    at_validation = votes(validation.features_ND)
    best = max(choices, key=lambda k: (balanced_accuracy(at_validation[k], validation.labels_N), -k))
    scores = []
    for test in tests:
        found = votes(test)[best]
        scores.append((found / found.sum(1, keepdims=True)).astype(np.float32)[None])
    return Answers(scores, {"k": best})


def _unit(features_ND: np.ndarray) -> np.ndarray:
    return features_ND / np.maximum(np.linalg.norm(features_ND, axis=1, keepdims=True), 1e-12)


def _count(labels_NK: np.ndarray, weights_NK: np.ndarray, classes: int) -> np.ndarray:
    """(N,C): the weights of each row's neighbours, summed by class."""
    return np.stack([(weights_NK * (labels_NK == label)).sum(1) for label in range(classes)], 1)


SHOWN = 10
"""How many neighbours a retrieval's precision and recall look at."""


def retrieval(train: Labelled, tests: Sequence[np.ndarray], classes: int, settings: Neighbours) -> Answers:
    """As many Euclidean neighbours as there are classes, the j-th voting 1 − 0.1·(j−1) (arXiv 2407.18449, retrieval).

    "released" keeps what the published code does with more than ten classes (negative votes) and without variance.
    """
    demand_classes(train.labels_N, "training")
    scaling = Scaling.of(train.features_ND)
    if settings.retrieval == "released":
        with np.errstate(divide="ignore"):
            scaling = Scaling(train.features_ND.mean(0), 1 / train.features_ND.std(0, ddof=1))
    gallery_MD = scaling(train.features_ND).astype(np.float64)
    k = min(classes, len(gallery_MD))
    weights_K = 1 - 0.1 * np.arange(k)
    if settings.retrieval == "ours":
        weights_K = np.maximum(weights_K, 0)
    scores, neighbours = [], []
    for test in tests:
        query_ND = scaling(test).astype(np.float64)
        distance_NM = (query_ND**2).sum(1)[:, None] - 2 * query_ND @ gallery_MD.T + (gallery_MD**2).sum(1)
        order_NM = np.argsort(distance_NM, axis=1, kind="stable")
        labels_NM = train.labels_N[order_NM]
        votes_NC = _count(labels_NM[:, :k], np.broadcast_to(weights_K, (len(test), k)), classes)
        scores.append(softmax(votes_NC, axis=1).astype(np.float32)[None])
        neighbours.append(labels_NM[:, :SHOWN])
    return Answers(scores, {"k": k}, neighbours)


def mean_average_precision(neighbours_NK: np.ndarray, labels_N: np.ndarray) -> float:
    """mAP@K: the mean over queries of the precision at each hit among the first K, 0 for a query without a hit."""
    hits_NK = neighbours_NK == labels_N[:, None]
    precision_NK = hits_NK.cumsum(1) / np.arange(1, neighbours_NK.shape[1] + 1)
    return float(((precision_NK * hits_NK).sum(1) / np.maximum(hits_NK.sum(1), 1)).mean())


def recall_at(neighbours_NK: np.ndarray, labels_N: np.ndarray, k: int) -> float:
    """R@k: the share of queries with an item of their class among the first k."""
    return float((neighbours_NK[:, :k] == labels_N[:, None]).any(1).mean())


def top_accuracy(scores_NC: np.ndarray, labels_N: np.ndarray, k: int) -> float:
    """Macro top-k accuracy: the mean over the classes present of how often the truth is among the first k."""
    first_NK = np.argsort(-scores_NC, axis=1, kind="stable")[:, :k]
    hit_N = (first_NK == labels_N[:, None]).any(1)
    return float(np.mean([hit_N[labels_N == label].mean() for label in np.unique(labels_N)]))
