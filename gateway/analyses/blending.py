"""From the windows' logits to one picture: blended where windows overlap, and left out where a window says "not here".

The presence of an object is learned, and its threshold fitted, on pictures of a window's size. So it is asked of each
window: one whose presence stays under the threshold of the prompt's level does not speak for that prompt. Where others
overlap it they alone decide, and where none speaks nothing is drawn. The presence of a slide or region is that of its
surest window: the rarest object is in a few windows only, and any mean over them would lose it. (The chance of a false
"present" grows with the number of windows.)

Logits are blended with a raised cosine over the whole window and the threshold comes afterwards, so that no seam shows
(PathSegmentor, arXiv 2506.20988, has none: it answers pictures, not slides).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gateway.domain.model import ModelCard, PresenceRule
from gateway.domain.prompts import Triple
from gateway.operations.errors import ModelRefused
from gateway.slides.windows import WindowPlan

CELL_PX = 256
MASK_FRACTION = 128
"""Least fraction (of 255) of a pixel in a mask: a probability of one half."""
_LEAST_FRACTION = 13
"""Smaller fractions are written as 0: under 5 % there is nothing to be seen, and noise does not compress."""

Array = npt.NDArray[np.float32]


def presence_rules(card: ModelCard, triples: Sequence[Triple]) -> tuple[PresenceRule, ...]:
    """When the object of each prompt is there: by its level. Raises ModelRefused."""
    if missing := sorted({triple.level.value for triple in triples} - card.presence_by_level.keys()):
        raise ModelRefused(
            f"The model {card.name} does not say when an object of {missing[0]} prompts is there. Promote another "
            "version."
        )
    return tuple(card.presence_by_level[triple.level] for triple in triples)


def presence_of(rules: Sequence[PresenceRule], presence_logit_NP: Array) -> Array:
    """The calibrated probability (N, P) that each prompt's object is there: sigmoid(logit / temperature)."""
    temperature_P: Array = np.array([rule.temperature for rule in rules], np.float32)
    return _sigmoid(presence_logit_NP / temperature_P)


def speaks(rules: Sequence[PresenceRule], presence_NP: Array) -> npt.NDArray[np.bool_]:
    """(N, P): whether a window speaks for a prompt."""
    return reaches(presence_NP, [rule.threshold for rule in rules])


def reaches(presence: npt.ArrayLike, threshold: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Whether a presence is enough; both as the windows' numbers are, so that a threshold met exactly counts as met."""
    return np.asarray(presence, np.float32) >= np.asarray(threshold, np.float32)


def raised_cosine(side_px: int) -> Array:
    """A window's weights along one side, (side_px,): greatest in the middle, nowhere 0."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(side_px) + 0.5) / side_px)).astype(np.float32)


def blend(
    plan: WindowPlan,
    logits_NPSS: Array,
    spoken_NP: npt.NDArray[np.bool_],
    rows: slice,
    columns: slice,
) -> Array:
    """The blended probability of a small region, (P, rows, columns): `logits_NPSS` of all the plan's windows, in
    memory. 0 where no window speaks."""
    prompts = logits_NPSS.shape[1]
    sums = np.zeros((prompts, rows.stop - rows.start, columns.stop - columns.start), np.float32)
    weights = np.zeros_like(sums)
    ramp = raised_cosine(plan.side_px)
    for top, left, logits_PSS, spoken_P in zip(
        plan.tops_N.tolist(), plan.lefts_N.tolist(), logits_NPSS, spoken_NP, strict=True
    ):
        there_y, here_y = shared(rows, top, plan.side_px)
        there_x, here_x = shared(columns, left, plan.side_px)
        weight = np.outer(ramp[here_y], ramp[here_x])
        sums[spoken_P, there_y, there_x] += logits_PSS[spoken_P][:, here_y, here_x] * weight
        weights[spoken_P, there_y, there_x] += weight
    return _probability(sums, weights)


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """A square of `CELL_PX` mask pixels that no later window touches: `fractions_PHW` uint8, the probability × 255."""

    row: int
    column: int
    fractions_PHW: npt.NDArray[np.uint8]


class Blender:
    """The windows of a whole slide, added in the plan's order; what no later window touches is handed out.

    `spoken_NP` (N, P) bool says which windows spoke: filled up to `done`, where the work goes on. `take` gives the sums
    of a cell that was begun and put away, if it was.
    """

    def __init__(
        self,
        plan: WindowPlan,
        spoken_NP: npt.NDArray[np.bool_],
        done: int,
        take: Callable[[int, int], Array | None],
        inside: Callable[[slice, slice], npt.NDArray[np.bool_]] | None = None,
    ) -> None:
        self.open: dict[tuple[int, int], Array] = {}
        """The sums of the cells under way (P, CELL_PX, CELL_PX), the one that was longest untouched first."""
        self.changed: set[tuple[int, int]] = set()
        """Those that windows were added to; whoever puts them away takes them out."""
        self._plan = plan
        self._spoken_NP = spoken_NP
        self._done = done
        self._take = take
        self._inside = inside
        self._ramp = raised_cosine(plan.side_px)
        self._shape = -(-plan.height_px // CELL_PX), -(-plan.width_px // CELL_PX)
        self._cells, self._windows, self._first = _windows_of_cells(plan, self._shape)

    def add(self, logits_BPSS: Array, spoken_BP: npt.NDArray[np.bool_]) -> Iterator[Cell]:
        """Add the next windows; the cells that are finished by them."""
        for logits_PSS, spoken_P in zip(logits_BPSS, spoken_BP, strict=True):
            self._spoken_NP[self._done] = spoken_P
            self._add(logits_PSS, spoken_P)
            for cell in self._under(self._done):
                windows = self._windows_under(cell)
                if windows[-1] == self._done:
                    yield self._finished(cell, windows)
            self._done += 1

    def _add(self, logits_PSS: Array, spoken_P: npt.NDArray[np.bool_]) -> None:
        top, left = int(self._plan.tops_N[self._done]), int(self._plan.lefts_N[self._done])
        said_P = np.flatnonzero(spoken_P)
        weighted = logits_PSS[said_P] * np.outer(self._ramp, self._ramp) if len(said_P) else None
        for cell in self._under(self._done):
            sums = self.open.pop(cell, None)
            if sums is None:
                sums = self._take(*cell)
            if sums is None:
                sums = np.zeros((len(spoken_P), CELL_PX, CELL_PX), np.float32)
            self.open[cell] = sums
            self.changed.add(cell)
            if weighted is None:
                continue
            there_y, here_y = shared(_extent(cell[0]), top, self._plan.side_px)
            there_x, here_x = shared(_extent(cell[1]), left, self._plan.side_px)
            if len(said_P) == len(spoken_P):
                sums[:, there_y, there_x] += weighted[:, here_y, here_x]
            else:
                for prompt, each in zip(said_P.tolist(), weighted, strict=True):
                    sums[prompt, there_y, there_x] += each[here_y, here_x]

    def _finished(self, cell: tuple[int, int], windows: npt.NDArray[np.int64]) -> Cell:
        sums = self.open.pop(cell)
        self.changed.remove(cell)
        rows, columns = _extent(cell[0]), _extent(cell[1])
        weights = np.zeros_like(sums)
        for window in windows.tolist():
            there_y, here_y = shared(rows, int(self._plan.tops_N[window]), self._plan.side_px)
            there_x, here_x = shared(columns, int(self._plan.lefts_N[window]), self._plan.side_px)
            weight = np.outer(self._ramp[here_y], self._ramp[here_x])
            for prompt in np.flatnonzero(self._spoken_NP[window]).tolist():
                weights[prompt, there_y, there_x] += weight
        fractions = np.rint(_probability(sums, weights) * 255).astype(np.uint8)
        fractions[fractions < _LEAST_FRACTION] = 0
        fractions[:, max(0, self._plan.height_px - rows.start) :] = 0
        fractions[:, :, max(0, self._plan.width_px - columns.start) :] = 0
        if self._inside is not None:
            fractions *= self._inside(rows, columns)
        return Cell(*cell, fractions)

    def _under(self, window: int) -> list[tuple[int, int]]:
        """The cells that a window touches."""
        top, left, side_px = int(self._plan.tops_N[window]), int(self._plan.lefts_N[window]), self._plan.side_px
        return [
            (row, column)
            for row in range(top // CELL_PX, min(-(-(top + side_px) // CELL_PX), self._shape[0]))
            for column in range(left // CELL_PX, min(-(-(left + side_px) // CELL_PX), self._shape[1]))
        ]

    def _windows_under(self, cell: tuple[int, int]) -> npt.NDArray[np.int64]:
        """The windows that touch a cell, rising."""
        at = int(np.searchsorted(self._cells, cell[0] * self._shape[1] + cell[1]))
        return self._windows[self._first[at] : self._first[at + 1]]


def _windows_of_cells(
    plan: WindowPlan, shape: tuple[int, int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The numbers of the cells that any window touches, rising; the windows of the first, then of the second …, each
    rising; and where each cell's begin (one more than cells)."""
    number = np.arange(len(plan))
    touched, by = [], []
    for down in range(plan.side_px // CELL_PX + 2):
        for across in range(plan.side_px // CELL_PX + 2):
            row, column = plan.tops_N // CELL_PX + down, plan.lefts_N // CELL_PX + across
            last_row = (plan.tops_N + plan.side_px - 1) // CELL_PX
            last_column = (plan.lefts_N + plan.side_px - 1) // CELL_PX
            there = (row <= last_row) & (column <= last_column) & (row < shape[0]) & (column < shape[1])
            touched.append(row[there].astype(np.int64) * shape[1] + column[there])
            by.append(number[there])
    cells, windows = np.concatenate(touched), np.concatenate(by)
    order = np.lexsort((windows, cells))
    distinct, first = np.unique(cells[order], return_index=True)
    return distinct, windows[order], np.append(first, len(order))


def _extent(cell: int) -> slice:
    return slice(cell * CELL_PX, (cell + 1) * CELL_PX)


def shared(part: slice, start: int, side_px: int) -> tuple[slice, slice]:
    """Along an axis: what a window or cell and a part of the picture share, counted in the part and in the window."""
    low, high = max(part.start, start), min(part.stop, start + side_px)
    high = max(low, high)
    return slice(low - part.start, high - part.start), slice(low - start, high - start)


def _probability(sums: Array, weights: Array) -> Array:
    """Of weighted logits; 0 where nothing was weighed."""
    spoken = weights > 0
    logits = np.divide(sums, weights, out=np.zeros_like(sums), where=spoken)
    probability = _sigmoid(logits)
    probability[~spoken] = 0
    return probability


def _sigmoid(logits: Array) -> Array:
    """Without overflow, and the same for every position of a value in an array."""
    result: Array = (0.5 * np.tanh(0.5 * logits) + 0.5).astype(np.float32)
    return result
