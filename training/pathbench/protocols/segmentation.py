"""Regions: a linear layer on an encoder's map of patch tokens, measured by the mean Dice of the categories.

Each cell of the map learns the shares of the categories among its pixels; the answers are enlarged to the image by
bilinear interpolation. An encoder that gives one vector an image has no map: its cells are small windows, embedded one
by one.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from training.data.dataset import Dataset
from training.errors import TaskInvalid
from training.pathbench.material import Cohort, Sealed, join_windows, shares, unreadable_notes, windows
from training.pathbench.probes import Scaling, fit_layers, layer_scores
from training.pathbench.protocols import Job, Outcome
from training.statistics import StatisticsInvalid, bootstrap

_CELLS = 4
"""Cells a side of a window, for an encoder without a map."""


def evaluate(job: Job) -> list[Outcome]:
    """The layer of the best validation Dice, a seed each, on every cohort."""
    material, dataset, settings = job.material, job.material.dataset, job.recipe.dense
    train_NhwD, train_M, skipped_train = _maps(job, dataset, material.train_M)
    validation_NhwD, validation_M, skipped = _maps(job, dataset, material.validation_M)
    scaling = Scaling.of(train_NhwD.reshape(-1, train_NhwD.shape[3]))
    cells_ND = scaling(train_NhwD.reshape(-1, train_NhwD.shape[3]))
    categories = len(dataset.categories)
    height, width = train_NhwD.shape[1:3]
    targets = [shares(mask, categories, height, width) for mask in _masks(dataset, train_M)]
    targets_NK = np.stack(targets).reshape(-1, categories + 1)
    validation_NhwD, masks = scaling(validation_NhwD), _masks(dataset, validation_M)
    if not any(mask.any() for mask in masks):
        raise TaskInvalid(f"The validation part of {dataset.name} holds no marked region to choose by. Split again.")

    def dice(layer: torch.nn.Linear) -> float:
        return mean_dice(overlaps(layer_scores(layer, validation_NhwD), masks, categories))

    rate, layers = fit_layers(cells_ND, targets_NK, categories + 1, dice, settings, job.seeds, cosine=False)
    outcomes = []
    for cohort in material.cohorts:
        test_NhwD, test_M, skipped_test = _maps(job, cohort.dataset, cohort.indices_M)
        answers_RN = [layer_scores(layer, scaling(test_NhwD)) for layer in layers]
        notes = unreadable_notes([*skipped_train, *skipped, *skipped_test])
        groups_N = cohort.groups[np.isin(cohort.indices_M, test_M)]
        sealed = Sealed(_masks(cohort.dataset, test_M))
        outcomes.append(_outcome(job, cohort, answers_RN, sealed, groups_N, notes, rate))
    return outcomes


def _maps(job: Job, dataset: Dataset, indices_M: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """(N,h,w,D) float32 of the items that can be read, their indices, and the others' names."""
    side = job.card.windows
    if job.encoder.meta.dense:
        maps, skipped = job.cache.maps(job.encoder, windows(dataset, indices_M, side))
    else:
        side *= _CELLS
        rows_WD, skipped = job.cache.embeddings(job.encoder, windows(dataset, indices_M, side))
        maps = rows_WD[:, None, None]
    joined = join_windows(maps, side).astype(np.float32)
    readable_M = np.isfinite(joined).all((1, 2, 3))
    return joined[readable_M], indices_M[readable_M], skipped


def _masks(dataset: Dataset, indices_M: np.ndarray) -> list[np.ndarray]:
    return [dataset.read_mask(int(index)) for index in indices_M]


def overlaps(answers_NhwK: Sequence[np.ndarray], masks: Sequence[np.ndarray], categories: int) -> np.ndarray:
    """(N, categories, 3): pixels that answer and mask share, that the answer has, that the mask has."""
    areas = np.zeros((len(masks), categories, 3))
    for place, (answer_hwK, mask_HW) in enumerate(zip(answers_NhwK, masks, strict=True)):
        planes = [
            cv2.resize(plane, mask_HW.shape[::-1], interpolation=cv2.INTER_LINEAR)
            for plane in np.moveaxis(answer_hwK, 2, 0)
        ]
        chosen_HW = np.argmax(planes, 0)
        pairs = np.bincount((chosen_HW * (categories + 1) + mask_HW).ravel(), minlength=(categories + 1) ** 2)
        table = pairs.reshape(categories + 1, categories + 1)
        areas[place] = np.stack([np.diag(table), table.sum(1), table.sum(0)], 1)[1:]
    return areas


def mean_dice(areas_NK3: np.ndarray) -> float:
    """Mean over the categories that the masks hold of 2·shared / (answer + mask), over all pixels; NaN without any."""
    shared, answered, true = areas_NK3.sum(0).T
    present = true > 0
    if not present.any():
        return float("nan")
    return float((2 * shared[present] / (answered[present] + true[present])).mean())


def _outcome(
    job: Job,
    cohort: Cohort,
    answers_RN: Sequence[np.ndarray],
    sealed: Sealed,
    groups_N: np.ndarray,
    notes: tuple[str, ...],
    rate: float,
) -> Outcome:
    masks, categories = sealed.open(), cohort.dataset.categories
    areas = [overlaps(answers_N, masks, len(categories)) for answers_N in answers_RN]

    def score(index: np.ndarray) -> float:
        return float(np.mean([mean_dice(areas_NK3[index]) for areas_NK3 in areas]))

    try:
        figure = bootstrap(score, groups_N, count=job.recipe.bootstrap, seed=job.recipe.seed)
    except StatisticsInvalid as error:
        return Outcome(cohort=cohort.name, refused=error.detail)
    each = {
        f"dice: {name}": float(np.mean([mean_dice(areas_NK3[:, k : k + 1]) for areas_NK3 in areas]))
        for k, name in enumerate(categories)
    }
    return Outcome(
        cohort=cohort.name,
        metric="mean_dice",
        values=tuple(mean_dice(areas_NK3) for areas_NK3 in areas),
        figure=figure,
        groups=len(np.unique(groups_N)),
        items=len(masks),
        grouping=cohort.dataset.grouping,
        also={name: value for name, value in each.items() if np.isfinite(value)} | {"rate": rate},
        notes=(*job.card.notes, *cohort.notes, *notes),
        test_reads=sealed.reads,
    )
