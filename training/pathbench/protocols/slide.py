"""Bags with a class each: ABMIL, TransMIL and the mean over frozen embeddings (arXiv 2505.20202, classification)."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.data.dataset import Dataset
from training.nn.mil import ABMIL, MeanPool, TransMIL
from training.pathbench.bags import Bag, compose, whole
from training.pathbench.material import Sealed, items, unreadable_notes
from training.pathbench.probes import Scaling, demand_classes
from training.pathbench.protocols import Job, Outcome, classified
from training.pathbench.recipe import Bags
from training.statistics import macro_auroc

COMPOSED = "composed bag"
Tensors = list[tuple[Tensor, int]]


def evaluate(job: Job) -> list[Outcome]:
    """Raises TaskInvalid for an empty bag and for a training or validation part of one class."""
    material = job.material
    train, skipped_train = _bags(job, material.dataset, material.train_M, _groups(job, material.train_M), 0)
    validation, skipped = _bags(job, material.dataset, material.validation_M, _groups(job, material.validation_M), 1)
    demand_classes(np.array([bag.label for bag, _ in train]), "training")
    demand_classes(np.array([bag.label for bag, _ in validation]), "validation")
    # Tiles count once a bag: a large bag's scale weighs more, as its tiles do.
    scaling = None
    if job.recipe.bags.scaling == "train":
        scaling = Scaling.of(np.concatenate([features_ND for _, features_ND in train]))
    tests = [_bags(job, cohort.dataset, cohort.indices_M, cohort.groups, 2) for cohort in material.cohorts]
    classes = 2 if _composition(job) else len(material.dataset.classes)
    train_bags, validation_bags = _tensors(train, scaling), _tensors(validation, scaling)
    scores: list[list[np.ndarray]] = [[] for _ in tests]
    for seed in job.seeds:
        head = fit(job.probe, train_bags, validation_bags, classes, job.recipe.bags, seed)
        for place, (test, _) in enumerate(tests):
            scores[place].append(predict(head, _tensors(test, scaling))[0])
    outcomes = []
    for cohort, (test, skipped_test), scores_RNC in zip(material.cohorts, tests, scores, strict=True):
        sealed = Sealed(np.array([bag.label for bag, _ in test]))
        labels_N = sealed.open()
        outcomes.append(
            classified(
                job,
                cohort,
                "macro_auroc",
                np.stack(scores_RNC),
                labels_N,
                np.array([bag.group for bag, _ in test]),
                grouping=COMPOSED if _composition(job) else "",
                notes=unreadable_notes([*skipped_train, *skipped, *skipped_test]),
                test_reads=sealed.reads,
            )
        )
    return outcomes


def _composition(job: Job) -> bool:
    return not isinstance(job.card.bag, str)


def _groups(job: Job, indices_M: np.ndarray) -> np.ndarray:
    return job.material.split.groups_N[indices_M]


def _bags(
    job: Job, dataset: Dataset, indices_M: np.ndarray, groups_M: np.ndarray, part: int
) -> tuple[list[tuple[Bag, np.ndarray]], tuple[str, ...]]:
    """A part's bags with their features (N,D), and the names of the tiles that cannot be read."""
    features_MD, skipped = job.cache.embeddings(job.encoder, items(dataset, indices_M))
    kept_M = np.isfinite(features_MD).all(1)
    readable_KD = features_MD[kept_M]
    how = job.card.bag
    if isinstance(how, str):
        bags = whole(dataset, indices_M, groups_M, how, kept_M)
    else:
        labels_K = dataset.labels_N[indices_M[kept_M]]
        target = dataset.classes.index(how.target)
        bags = compose(labels_K, target, how, how.bags[part], job.recipe.seed + part)
    return [(bag, readable_KD[bag.rows_N]) for bag in bags], skipped


def _tensors(bags: Sequence[tuple[Bag, np.ndarray]], scaling: Scaling | None) -> Tensors:
    return [
        (torch.from_numpy(scaling(features_ND) if scaling else features_ND)[None], bag.label)
        for bag, features_ND in bags
    ]


def head_of(probe: str, width: int, classes: int, settings: Bags) -> nn.Module:
    """A fresh head at the recipe's sizes."""
    match probe:
        case "abmil":
            return ABMIL(width, classes, settings.hidden, settings.attention, settings.dropout)
        case "transmil":
            return TransMIL(width, classes, settings.transmil_dim, settings.dropout)
        case _:
            return MeanPool(width, classes, settings.hidden, settings.dropout)


def fit(probe: str, train: Tensors, validation: Tensors, classes: int, settings: Bags, seed: int) -> nn.Module:
    """The head of the best validation AUC, the lower validation loss among equals; one bag a step, Adam."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = head_of(probe, train[0][0].shape[2], classes, settings)
        optimiser = torch.optim.Adam(head.parameters(), lr=settings.rate, weight_decay=settings.decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.epochs)
        best, state, since = (-1.0, 0.0), copy.deepcopy(head.state_dict()), 0
        for _ in range(settings.epochs):
            head.train()
            for place in torch.randperm(len(train)).tolist():
                features_1ND, label = train[place]
                loss = F.cross_entropy(head(features_1ND), torch.tensor([label]))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            schedule.step()
            scores_NC, loss_value = predict(head, validation)
            found = macro_auroc(scores_NC, np.array([label for _, label in validation])), -loss_value
            since += 1
            if found > best:
                best, state, since = found, copy.deepcopy(head.state_dict()), 0
            if since >= settings.patience:
                break
    head.load_state_dict(state)
    return head


def predict(head: nn.Module, bags: Tensors) -> tuple[np.ndarray, float]:
    """Class probabilities (N,C) of bags, and the mean cross-entropy."""
    head.eval()
    with torch.inference_mode():
        logits_NC = torch.cat([head(features_1ND) for features_1ND, _ in bags])
        loss = F.cross_entropy(logits_NC, torch.tensor([label for _, label in bags]))
        return logits_NC.softmax(1).numpy(), float(loss)
