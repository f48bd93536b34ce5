"""Survival from a table: expression → principal components → discrete-time head, by hospital, on a board of its own.

Folds keep all patients of a tissue source site together. Everything is fitted on training rows: standardisation,
components, bins. "nested" chooses components and epoch on an inner part of the training folds and reads the outer fold
once; "released" reports the best epoch on the fold itself, as published code does, and is marked optimistic.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.model_selection import StratifiedGroupKFold

from training.data.tcga import SurvivalTable, site_folds
from training.errors import TaskInvalid
from training.nn.survival import bin_edges, bin_of, c_index, nll_loss, risk
from training.pathbench.material import INTERNAL, Sealed
from training.pathbench.protocols import Outcome
from training.pathbench.recipe import Survival
from training.pathbench.statistics import Difference, Units, corrected_resampled_t
from training.statistics import StatisticsInvalid, bootstrap

MODEL = "rna-pca"
_INNER_FOLDS = 4


@dataclass(frozen=True, slots=True, eq=False)
class FoldRisks:
    """A fold's patients (places in the table), and their risks by seed: at the chosen epoch, and at the last one."""

    rows_n: np.ndarray
    chosen_Rn: np.ndarray
    last_Rn: np.ndarray


def evaluate(table: SurvivalTable, settings: Survival, *, replicates: int, seed: int) -> Outcome:
    """C-index over folds and seeds; never pooled over folds, each of which has a model and a scale of its own.

    Raises SplitInvalid where the hospitals do not make enough folds, TaskInvalid where a part has no death.
    """
    folds_N = site_folds(table, settings.folds, seed)
    sealed = [Sealed(outcomes_of(table, np.flatnonzero(folds_N == fold))) for fold in range(settings.folds)]
    # The released protocol looks at the fold to choose the epoch: its truth is read before the choice.
    found = list(_folds(table, folds_N, settings))
    truths = [each.open() for each in sealed]
    chosen_FR = _by_fold(found, truths)
    if not np.isfinite(chosen_FR).all():
        return Outcome(
            cohort=INTERNAL, refused=f"A fold of {table.cancer} has no two comparable patients: fewer folds."
        )
    place_N = np.empty(len(table), np.int64)
    for fold in found:
        place_N[fold.rows_n] = np.arange(len(fold.rows_n))

    def score(index: np.ndarray) -> float:
        values = []
        for number, (fold, (months_n, events_n)) in enumerate(zip(found, truths, strict=True)):
            inside = place_N[index[folds_N[index] == number]]
            if len(inside):
                values += [c_index(risks_n[inside], months_n[inside], events_n[inside]) for risks_n in fold.chosen_Rn]
        # A resample without a comparable pair in one fold says nothing of that fold.
        defined = [value for value in values if np.isfinite(value)]
        return float(np.mean(defined)) if defined else float("nan")

    try:
        figure = bootstrap(score, table.sites_N, count=replicates, seed=seed)
    except StatisticsInvalid as error:
        return Outcome(cohort=INTERNAL, refused=error.detail)
    optimistic = settings.protocol == "released" or settings.bins_from == "all"
    notes = "optimistic: chosen on the reported fold, or binned by all rows"
    if not optimistic:
        gap = optimism(chosen_FR, table, settings, seed)
        notes = (
            f"chosen on the reported fold, as in released code, it would be {figure.value + gap.value:.3f}: "
            f"{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}] by a t-test corrected for folds that share patients"
        )
    last = float(np.mean([c_index(r, *truth) for fold, truth in zip(found, truths, strict=True) for r in fold.last_Rn]))
    return Outcome(
        cohort=INTERNAL,
        metric="c_index",
        values=tuple(chosen_FR.ravel().tolist()),
        figure=figure,
        groups=len(np.unique(table.sites_N)),
        items=len(table),
        grouping="tissue source site",
        also={"last_epoch": last, "event_share": float(table.event_N.mean())},
        notes=(notes,),
        optimistic=optimistic,
        test_reads=sealed[0].reads,
    )


def optimism(nested_FR: np.ndarray, table: SurvivalTable, settings: Survival, seed: int) -> Difference:
    """What the released protocol reports above the nested one's C-indices (F,R), a fold a unit.

    The released protocol also trains on the inner validation rows: the gap is that of the protocols as a whole.
    """
    released = settings.model_copy(update={"protocol": "released"})
    gaps_F = (_c_indices(table, released, seed) - nested_FR).mean(1)
    folds = Units(tuple(f"fold {place}" for place in range(len(gaps_F))), gaps_F)
    return corrected_resampled_t(folds, 1 / (settings.folds - 1))


def mean_c_index(table: SurvivalTable, settings: Survival, seed: int) -> float:
    """The point estimate alone, for controls."""
    return float(np.nanmean(_c_indices(table, settings, seed)))


def _c_indices(table: SurvivalTable, settings: Survival, seed: int) -> np.ndarray:
    """(F,R) of a table's folds and a recipe's seeds."""
    found = list(_folds(table, site_folds(table, settings.folds, seed), settings))
    return _by_fold(found, [outcomes_of(table, fold.rows_n) for fold in found])


def outcomes_of(table: SurvivalTable, rows_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(months, events) of some patients."""
    return table.months_N[rows_n], table.event_N[rows_n]


def _by_fold(found: list[FoldRisks], truths: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """(F,R) C-index of each fold and seed."""
    return np.array(
        [[c_index(risks_n, *truth) for risks_n in fold.chosen_Rn] for fold, truth in zip(found, truths, strict=True)]
    )


def _folds(table: SurvivalTable, folds_N: np.ndarray, settings: Survival) -> Iterator[FoldRisks]:
    for fold in range(settings.folds):
        outer, inside = np.flatnonzero(folds_N != fold), np.flatnonzero(folds_N == fold)
        chosen, last = [], []
        for seed in settings.seeds:
            train, judge = outer, inside
            if settings.protocol == "nested":
                train, judge = _inner(table, outer, seed)
            best, risks = -1.0, None
            inputs_NK = principal_components(table.rna_NG, train, max(settings.components))
            for components in settings.components:
                risks_EN = _risks_by_epoch(table, train, inputs_NK[:, :components], settings, seed)
                found_E = [c_index(risks_N[judge], *outcomes_of(table, judge)) for risks_N in risks_EN]
                top = float(np.nanmax(found_E)) if np.isfinite(found_E).any() else 0.0
                if top > best:
                    epoch = int(np.nanargmax(found_E)) if np.isfinite(found_E).any() else len(risks_EN) - 1
                    best, risks = top, (risks_EN[epoch, inside], risks_EN[-1, inside])
            assert risks is not None, "a recipe names at least one number of components"
            chosen.append(risks[0])
            last.append(risks[1])
        yield FoldRisks(inside, np.stack(chosen), np.stack(last))


def _inner(table: SurvivalTable, outer: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The training folds' own training and validation rows, hospitals whole. Raises TaskInvalid for one hospital."""
    sites = len(np.unique(table.sites_N[outer]))
    if sites < 2:
        raise TaskInvalid(f"The training folds of {table.cancer} are of one site, which cannot be split. Fewer folds.")
    splitter = StratifiedGroupKFold(min(_INNER_FOLDS, sites), shuffle=True, random_state=seed)
    train, judge = next(splitter.split(outer[:, None], table.event_N[outer], table.sites_N[outer]))
    return outer[train], outer[judge]


def _risks_by_epoch(
    table: SurvivalTable, train: np.ndarray, components_NK: np.ndarray, settings: Survival, seed: int
) -> np.ndarray:
    """(epochs, N) risks of all patients after each epoch of training on some."""
    inputs_NK = torch.from_numpy(components_NK)
    rows = np.arange(len(table)) if settings.bins_from == "all" else train
    edges = bin_edges(table.months_N[rows], table.event_N[rows], settings.bins)
    bins_N = torch.from_numpy(bin_of(table.months_N, edges))
    events_N = torch.from_numpy(table.event_N)
    generator = torch.Generator().manual_seed(seed)
    layer = torch.nn.Linear(inputs_NK.shape[1], len(edges) - 1)
    layer.weight.data.normal_(0.0, 0.01, generator=generator)
    layer.bias.data.zero_()
    optimiser = torch.optim.Adam(layer.parameters(), lr=settings.rate, weight_decay=settings.decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.epochs)
    risks = []
    for _ in range(settings.epochs):
        for batch in torch.randperm(len(train), generator=generator).split(settings.batch):
            places = torch.from_numpy(train)[batch]
            loss = nll_loss(layer(inputs_NK[places]), bins_N[places], events_N[places])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        schedule.step()
        with torch.inference_mode():
            risks.append(risk(layer(inputs_NK)).numpy())
    return np.stack(risks)


def principal_components(rna_NG: np.ndarray, train: np.ndarray, components: int) -> np.ndarray:
    """(N, K) float32 of unit variance over the training rows, which alone fix mean, deviation and directions."""
    mean_G, deviation_G = rna_NG[train].mean(0), rna_NG[train].std(0)
    standard_NG = np.where(deviation_G > 0, (rna_NG - mean_G) / np.where(deviation_G > 0, deviation_G, 1), 0)
    _, strengths, directions = np.linalg.svd(standard_NG[train], full_matrices=False)
    kept = min(components, int((strengths > strengths[0] * 1e-6).sum()))
    scale = strengths[:kept] / np.sqrt(len(train))
    return (standard_NG @ directions[:kept].T / scale).astype(np.float32)
