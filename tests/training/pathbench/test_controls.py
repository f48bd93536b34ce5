"""The controls see the faults they are for, also when the fault is in the bench."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from tests.training.data import made
from training.errors import RecipeInvalid, TaskInvalid
from training.pathbench import controls, encoders
from training.pathbench.cache import FeatureCache
from training.pathbench.material import gather
from training.pathbench.protocols import Job
from training.pathbench.recipe import BenchRecipe, Controls, Linear
from training.pathbench.tasks import TaskCard
from training.statistics import macro_auroc

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    folder = made.Made(tmp_path_factory.mktemp("made"))
    made.oral(folder)
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATHSERVE_DATA", str(folder.finish()))
        patch.setenv("PATHSERVE_RUNS", str(runs))
        card = TaskCard(title="", kind="tile", organ="", dataset="oral")
        recipe = BenchRecipe(
            name="r",
            system="pathbench",
            stage="bench",
            seed=1,
            encoders=("colour-histogram",),
            tasks=("oral",),
            linear=Linear(rates=(5e-3,), epochs=8, patience=4),
            controls=Controls(encoder="random-vit", permutations=8),
        )
        yield Job(
            task="oral",
            card=card,
            probe="linear",
            recipe=recipe,
            material=gather(card),
            encoder=encoders.build("colour-histogram"),
            cache=FeatureCache(runs / "features.sqlite"),
        )


def test_shuffled_labels_cover_chance(job: Job) -> None:
    control = controls.shuffled_labels(job, family=1)
    assert control.caught
    assert "over 8 permutations" in control.observed


def test_a_bench_that_looks_at_test_labels_is_void(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault: a score whose direction is chosen by the labels that it is measured on."""

    def turned(scores_NC: np.ndarray, labels_N: np.ndarray) -> float:
        area = macro_auroc(scores_NC, labels_N)
        return max(area, 1 - area)

    monkeypatch.setattr(controls, "macro_auroc", turned)
    control = controls.shuffled_labels(job, family=1)
    assert not control.caught


def test_labels_that_cannot_be_shuffled_are_refused(job: Job) -> None:
    material = job.material
    one = replace(material.dataset, labels_N=np.zeros(len(material.dataset), np.int64))
    with pytest.raises(TaskInvalid, match="cannot be shuffled"):
        controls.shuffled_labels(replace(job, material=replace(material, dataset=one)), family=1)


def test_wrong_normalisation_is_refused_and_the_right_one_is_not(job: Job) -> None:
    encoder = encoders.build("random-vit")
    assert controls.wrong_normalisation(encoder).caught
    with pytest.raises(RecipeInvalid, match="colour-histogram has none"):
        controls.wrong_normalisation(job.encoder)


def test_a_leaked_split_and_a_seen_test_part_are_caught(job: Job) -> None:
    assert controls.leaked_split("oral", job.material).caught
    assert controls.seen_test_part("oral", job.material).caught


def test_the_interval_is_students() -> None:
    mean, low, high = controls.student_interval([0.4, 0.6], 0.05)
    assert mean == pytest.approx(0.5)
    assert high - mean == pytest.approx(12.706 * 0.1, rel=1e-3)
    assert low == pytest.approx(1 - high)
