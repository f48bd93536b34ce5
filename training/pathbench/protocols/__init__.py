"""How each kind of task is measured: a module a kind, with `evaluate(job) -> list[Outcome]`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from training.pathbench.cache import FeatureCache
from training.pathbench.encoders import Encoder
from training.pathbench.material import Cohort, Material
from training.pathbench.recipe import BenchRecipe
from training.pathbench.tasks import TaskCard
from training.statistics import (
    Figure,
    RunsScore,
    StatisticsInvalid,
    balanced_accuracy,
    bootstrap,
    macro_auroc,
    macro_f1,
)

METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "macro_auroc": macro_auroc,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """One encoder on one task with one probe; it yields an outcome for each of the task's cohorts."""

    task: str
    card: TaskCard
    probe: str
    recipe: BenchRecipe
    material: Material
    encoder: Encoder
    cache: FeatureCache

    @property
    def seeds(self) -> tuple[int, ...]:
        """The training repetitions: the recipe's, but where a costly probe has fewer of its own."""
        if self.card.kind == "segmentation":
            return self.recipe.dense.seeds
        return self.recipe.bags.transmil_seeds if self.probe == "transmil" else self.recipe.seeds


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """What was measured on one cohort; `refused` says why there is no figure instead."""

    cohort: str
    metric: str = ""
    values: tuple[float, ...] = ()
    figure: Figure | None = None
    groups: int = 0
    items: int = 0
    grouping: str = ""
    also: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    predictions: dict[str, np.ndarray] | None = None
    optimistic: bool = False
    test_reads: int = 0
    refused: str = ""


def classified(
    job: Job,
    cohort: Cohort,
    metric: str,
    scores_RNC: np.ndarray,
    labels_N: np.ndarray,
    groups_N: np.ndarray,
    *,
    grouping: str = "",
    also: dict[str, float] | None = None,
    notes: Sequence[str] = (),
    test_reads: int,
) -> Outcome:
    """The outcome of class scores. The estimate is the mean over the seeds of each seed's figure, and its interval that
    mean's over resampled groups; further figures are means over the seeds."""
    score = METRICS[metric]
    figures = {
        name: float(np.mean([each(run_NC, labels_N) for run_NC in scores_RNC]))
        for name, each in METRICS.items()
        if name != metric
    }
    try:
        figure = bootstrap(
            RunsScore(score, scores_RNC, labels_N),
            groups_N,
            labels_N=labels_N,
            count=job.recipe.bootstrap,
            seed=job.recipe.seed,
        )
    except StatisticsInvalid as error:
        return Outcome(cohort=cohort.name, refused=error.detail)
    return Outcome(
        cohort=cohort.name,
        metric=metric,
        values=tuple(float(score(run_NC, labels_N)) for run_NC in scores_RNC),
        figure=figure,
        groups=len(np.unique(groups_N)),
        items=len(labels_N),
        grouping=grouping or cohort.dataset.grouping,
        also=figures | (also or {}),
        notes=(*job.card.notes, *cohort.notes, *notes),
        predictions={"probabilities_RNC": scores_RNC.astype(np.float32), "labels_N": labels_N, "groups_N": groups_N},
        test_reads=test_reads,
    )
