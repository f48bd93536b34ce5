"""Tiles with a class each: linear probe, kNN and retrieval on frozen embeddings."""

import numpy as np

from training.data.dataset import Dataset
from training.pathbench import probes
from training.pathbench.material import Sealed, items, unreadable_notes
from training.pathbench.probes import Answers, Labelled
from training.pathbench.protocols import Job, Outcome, classified

_METRIC = {"linear": "macro_auroc", "knn": "balanced_accuracy", "retrieval": "balanced_accuracy"}


def evaluate(job: Job) -> list[Outcome]:
    """Raises TaskInvalid where the training or the validation part cannot hold a probe."""
    material, dataset = job.material, job.material.dataset
    train, skipped_train = labelled(job, dataset, material.train_M)
    validation, skipped_validation = labelled(job, dataset, material.validation_M)
    tests = [embedded(job, cohort.dataset, cohort.indices_M) for cohort in material.cohorts]
    answers = answer(job, train, validation, [features_MD for features_MD, _, _ in tests])
    outcomes = []
    for place, (cohort, (_, readable_M, skipped)) in enumerate(zip(material.cohorts, tests, strict=True)):
        kept_M = cohort.indices_M[readable_M]
        sealed = Sealed(cohort.dataset.labels_N[kept_M])
        labels_M = sealed.open()
        also = _retrieved(answers, place, labels_M) if job.probe == "retrieval" else {}
        outcomes.append(
            classified(
                job,
                cohort,
                _METRIC[job.probe],
                answers.scores[place],
                labels_M,
                cohort.groups[readable_M],
                also=also | {name: value for name, value in answers.choices.items() if isinstance(value, float | int)},
                notes=unreadable_notes([*skipped_train, *skipped_validation, *skipped]),
                test_reads=sealed.reads,
            )
        )
    return outcomes


def answer(job: Job, train: Labelled, validation: Labelled, tests: list[np.ndarray]) -> Answers:
    """The probe's answers for test features; it is not given their labels."""
    classes, recipe = len(job.material.dataset.classes), job.recipe
    match job.probe:
        case "linear":
            return probes.linear(train, validation, tests, classes, recipe.linear, recipe.seeds)
        case "knn":
            return probes.knn(train, validation, tests, classes, recipe.neighbours)
        case _:
            return probes.retrieval(train, tests, classes, recipe.neighbours)


def embedded(job: Job, dataset: Dataset, indices_M: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Embeddings of the items that can be read, which those are (M,) bool, and the others' names."""
    features_MD, skipped = job.cache.embeddings(job.encoder, items(dataset, indices_M))
    readable_M = np.isfinite(features_MD).all(1)
    return features_MD[readable_M], readable_M, skipped


def labelled(job: Job, dataset: Dataset, indices_M: np.ndarray) -> tuple[Labelled, tuple[str, ...]]:
    """Embeddings with their classes, and the names of the items that cannot be read."""
    features_MD, readable_M, skipped = embedded(job, dataset, indices_M)
    return Labelled(features_MD, dataset.labels_N[indices_M[readable_M]]), skipped


def _retrieved(answers: Answers, place: int, labels_M: np.ndarray) -> dict[str, float]:
    """Top-k accuracies by vote, and precision and recall of the neighbours; no neighbour is of a query's group."""
    neighbours_MK, scores_MC = answers.neighbours[place], answers.scores[place][0]
    found = {
        f"top_{k}_accuracy": probes.top_accuracy(scores_MC, labels_M, k) for k in (1, 3, 5) if k < scores_MC.shape[1]
    }
    found[f"map_at_{probes.SHOWN}"] = probes.mean_average_precision(neighbours_MK, labels_M)
    return found | {f"recall_at_{k}": probes.recall_at(neighbours_MK, labels_M, k) for k in (1, 5)}
