"""Probes against brute force, their defects under `released`, and what they refuse."""

import numpy as np
import pytest

from training.errors import TaskInvalid
from training.pathbench import probes
from training.pathbench.probes import Labelled, Scaling
from training.pathbench.recipe import Linear, Neighbours
from training.statistics import macro_auroc

pytestmark = pytest.mark.training
QUICK = Linear(rates=(5e-3,), epochs=60, patience=20)


@pytest.fixture(scope="module")
def clouds() -> tuple[Labelled, Labelled, np.ndarray, np.ndarray]:
    """Three classes of points about their own centres: training, validation, test features and test labels."""
    rng = np.random.default_rng(0)
    labels_N = np.arange(90) % 3
    features_ND = (rng.normal(0, 1, (3, 8))[labels_N] * 1.5 + rng.normal(0, 1, (90, 8))).astype(np.float32)
    order = rng.permutation(90)
    parts = [Labelled(features_ND[rows], labels_N[rows]) for rows in np.array_split(order, 3)]
    return parts[0], parts[1], parts[2].features_ND, parts[2].labels_N


@pytest.mark.parametrize("settings", [QUICK, QUICK.model_copy(update={"optimiser": "lbfgs"})])
def test_a_linear_probe_tells_clouds_apart(clouds, settings: Linear) -> None:
    train, validation, test, labels = clouds
    answers = probes.linear(train, validation, [test, test[:4]], 3, settings, (0, 1))
    assert answers.scores[0].shape == ((1 if settings.optimiser == "lbfgs" else 2), 30, 3)
    assert len(answers.scores[1][0]) == 4
    np.testing.assert_allclose(answers.scores[0].sum(2), 1, rtol=1e-5)
    assert macro_auroc(answers.scores[0][0], labels) > 0.9


def test_equal_seeds_give_equal_bits_and_others_do_not(clouds) -> None:
    train, validation, test, _ = clouds
    first, second = (probes.linear(train, validation, [test], 3, QUICK, (0, 1)).scores[0] for _ in range(2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first[0], first[1])


def test_the_rate_is_chosen_on_the_validation_part(clouds) -> None:
    train, validation, test, _ = clouds
    settings = QUICK.model_copy(update={"rates": (1e-9, 5e-3), "epochs": 3})
    # With nothing learned at 1e-9 in three epochs, the larger rate has the better validation AUC.
    assert probes.linear(train, validation, [test], 3, settings, (0,)).choices == {"rate": 5e-3}


def test_one_class_is_refused(clouds) -> None:
    train, validation, test, _ = clouds
    one = Labelled(train.features_ND, np.zeros(len(train.labels_N), np.int64))
    for call in (
        lambda: probes.linear(one, validation, [test], 3, QUICK, (0,)),
        lambda: probes.linear(train, Labelled(one.features_ND, one.labels_N), [test], 3, QUICK, (0,)),
        lambda: probes.knn(one, validation, [test], 3, Neighbours()),
        lambda: probes.retrieval(one, [test], 3, Neighbours()),
    ):
        with pytest.raises(TaskInvalid, match="one class"):
            call()


def test_knn_equals_brute_force(clouds) -> None:
    train, validation, test, _ = clouds
    answers = probes.knn(train, validation, [test], 3, Neighbours(k=(5, 500)))
    k = int(answers.choices["k"])
    assert k in (5, len(train.labels_N))
    for row, query in enumerate(test):
        cosines = [float(x @ query / np.linalg.norm(x) / np.linalg.norm(query)) for x in train.features_ND]
        order = np.argsort(cosines)[::-1]
        weights = np.exp(np.array(cosines)[order] / 0.07)
        weights /= weights.sum()
        votes = np.zeros(3)
        for place, weight in zip(order[:k], weights[:k], strict=True):
            votes[train.labels_N[place]] += weight
        np.testing.assert_allclose(answers.scores[0][0, row], votes / votes.sum(), rtol=1e-4, atol=1e-6)


def test_retrieval_votes_by_rank(clouds) -> None:
    train, _, test, _ = clouds
    answers = probes.retrieval(train, [test], 3, Neighbours())
    deviation = train.features_ND.std(0, ddof=1) + 1e-6
    for row in range(len(test)):
        distance = (((train.features_ND - test[row]) / deviation) ** 2).sum(1)
        nearest = train.labels_N[np.argsort(distance)]
        assert answers.neighbours[0][row].tolist() == nearest[: probes.SHOWN].tolist()
        votes = np.zeros(3)
        for label, weight in zip(nearest[:3], (1.0, 0.9, 0.8), strict=True):
            votes[label] += weight
        np.testing.assert_allclose(answers.scores[0][0, row], np.exp(votes) / np.exp(votes).sum(), rtol=1e-5)


def test_released_retrieval_votes_negatively_after_the_tenth_neighbour() -> None:
    """Twelve classes: the eleventh neighbour has no vote and the twelfth a negative one; ours has none below zero."""
    features = np.arange(12, dtype=np.float32)[:, None]
    train = Labelled(features, np.arange(12))
    query = [np.array([[-1.0]], np.float32)]
    scores = {
        mode: probes.retrieval(train, query, 12, Neighbours(retrieval=mode)).scores[0][0, 0]
        for mode in ("ours", "released")
    }
    assert scores["released"][11] < scores["released"][10]
    assert scores["ours"][11] == scores["ours"][10]


def test_a_dimension_without_variance_does_not_count() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(0, 1, (20, 3)).astype(np.float32)
    features[:, 1] = 7.0
    scaling = Scaling.of(features)
    moved = features.copy()
    moved[:, 1] = 9.0
    assert np.array_equal(scaling(moved)[:, 1], np.zeros(20, np.float32))
    np.testing.assert_allclose(scaling(features)[:, [0, 2]].std(0, ddof=1), 1, rtol=1e-4)


def test_precision_recall_and_top_k_by_hand() -> None:
    neighbours = np.array([[0, 1, 0], [1, 1, 1], [1, 1, 1]])
    labels = np.array([0, 1, 0])
    assert probes.mean_average_precision(neighbours, labels) == pytest.approx(((1 + 2 / 3) / 2 + 1 + 0) / 3)
    assert probes.recall_at(neighbours, labels, 1) == pytest.approx(2 / 3)
    scores = np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.6, 0.3, 0.1]])
    assert probes.top_accuracy(scores, labels, 1) == pytest.approx(0.5)
    assert probes.top_accuracy(scores, labels, 2) == 1.0
