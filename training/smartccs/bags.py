"""Synthetic bags: cells dealt together as a slide of a class might show them, where no public slides are.

Never patients: a table that rests on them says "synthetic bags". A bag is a list of places among some cells, so it is
the same thing over annotated cells and over a detector's findings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gateway.domain.bethesda import CLASSES, NAMES, NILM
from training.data.split import PARTS
from training.errors import LeakageRefused, TaskInvalid
from training.smartccs.data import DISTRACTOR, UNKNOWN

PREVALENCE = (0.75, 0.10, 0.06, 0.02, 0.04, 0.01, 0.02)
"""How often a bag is of each class in screening."""
FLAT = (1 / len(CLASSES),) * len(CLASSES)
"""For power: every class alike."""
CELLS = (40, 200)
"""The fewest and most cells of a bag."""
_BETA, _FRACTION = (1.2, 8.0), (0.005, 0.30)


@dataclass(frozen=True, slots=True, eq=False)
class Bag:
    """label: the class's number; cells_K: int64 places; fraction: of the cells that are of the label's class, 0 in a
    NILM bag."""

    label: int
    cells_K: np.ndarray
    fraction: float


def by_part(
    classes_N: np.ndarray,
    groups_N: np.ndarray,
    parts_N: np.ndarray,
    numbers: dict[str, int],
    seed: int,
    prevalence: Sequence[float] = PREVALENCE,
    cells: tuple[int, int] = CELLS,
    labels: Mapping[str, Sequence[int]] | None = None,
    *,
    unknown: bool = False,
) -> dict[str, tuple[Bag, ...]]:
    """`numbers` bags of each part, of cells of that part only; `labels`, `unknown`: see `bags`. Raises LeakageRefused
    where a group of cells stands in two parts, TaskInvalid."""
    for group in np.unique(groups_N):
        inside = np.unique(parts_N[groups_N == group])
        if len(inside) > 1:
            raise LeakageRefused(f"Cells of {group} stand in the parts {' and '.join(inside)}: deal them by group.")
    return {
        part: bags(
            classes_N,
            np.flatnonzero(parts_N == part),
            number,
            np.random.default_rng((seed, PARTS.index(part))),
            prevalence,
            cells,
            None if labels is None else labels[part],
            unknown=unknown,
        )
        for part, number in numbers.items()
    }


def bags(
    classes_N: np.ndarray,
    among_K: np.ndarray,
    number: int,
    rng: np.random.Generator,
    prevalence: Sequence[float] = PREVALENCE,
    cells: tuple[int, int] = CELLS,
    labels: Sequence[int] | None = None,
    *,
    unknown: bool = False,
) -> tuple[Bag, ...]:
    """`number` bags of the cells at the places `among_K`, whose classes (Bethesda's numbers, DISTRACTOR or UNKNOWN) are
    in `classes_N`.

    A NILM bag holds NILM cells and distractors. In a bag of another class a share of cells, drawn from Beta(1.2, 8) and
    clipped to [0.005, 0.30], at least one cell, is of that class, and the rest are as in a NILM bag, so that they tell
    nothing of the class. A class without cells has no bag: the prevalence of the others keeps its proportions. A cell
    is twice in a bag only where there are too few. `unknown`: whether cells of unknown class stand among the rest, in
    bags of every class alike; else they are in none. `labels` are the bags' classes where these are known, of slides
    that another centre or another detector looks at: of a class of which no cell was found, only the rest is
    there. Raises TaskInvalid where there is no NILM cell.
    """
    pools = [among_K[classes_N[among_K] == kind] for kind in range(len(CLASSES))]
    others = (DISTRACTOR, UNKNOWN) if unknown else (DISTRACTOR,)
    rest = np.concatenate([pools[NILM], *(among_K[classes_N[among_K] == kind] for kind in others)])
    if not len(pools[NILM]):
        raise TaskInvalid(f"Synthetic bags need {NAMES[NILM]} cells, and there are none.")
    shares = np.array([share if len(pool) else 0.0 for share, pool in zip(prevalence, pools, strict=True)])
    drawn, made = rng.choice(len(CLASSES), number, p=shares / shares.sum()).tolist(), []
    for label in drawn if labels is None else labels:
        size = int(rng.integers(cells[0], cells[1] + 1))
        if label == NILM:
            made.append(Bag(label, _drawn(rng, rest, size), 0.0))
            continue
        count = max(1, round(share(rng) * size)) if len(pools[label]) else 0
        chosen = [_drawn(rng, pools[label], count), _drawn(rng, rest, size - count)]
        made.append(Bag(label, rng.permutation(np.concatenate(chosen)), count / size))
    return tuple(made)


def surest(bag: Bag, found_N: np.ndarray, scores_N: np.ndarray, count: int) -> Bag:
    """What a served slide of these cells is answered from (`gateway.slides.cells.best_of_each_class`).

    Of the cells that a detector took for one class, whose column is in `found_N`, the `count` of the highest scores,
    each once, the surest first. Cells that no detector named (below 0) all stay.
    """
    ordered_K = bag.cells_K[np.lexsort((bag.cells_K, -scores_N[bag.cells_K]))]
    _, first_K = np.unique(ordered_K, return_index=True)
    once_K = ordered_K[np.sort(first_K)] if (found_N[ordered_K] >= 0).any() else bag.cells_K
    named_K = found_N[once_K]
    kept_K = [np.flatnonzero(named_K == column)[:count] for column in range(len(CLASSES) - 1)]
    return replace(bag, cells_K=once_K[np.sort(np.concatenate([np.flatnonzero(named_K < 0), *kept_K]))])


def share(rng: np.random.Generator) -> float:
    """Of the cells of an abnormal bag or slide, how many are of its class: drawn from Beta(1.2, 8), clipped to
    [0.005, 0.30]."""
    return float(np.clip(rng.beta(*_BETA), *_FRACTION))


def _drawn(rng: np.random.Generator, pool: np.ndarray, count: int) -> np.ndarray:
    return rng.choice(pool, count, replace=count > len(pool))
