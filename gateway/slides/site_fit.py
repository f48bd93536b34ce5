"""Fitting a site: what its unlabelled slides tell of its colours and of its cells' features, held against the source.

The moments of features are weighted by how surely a cell is NILM, so that a fit depends little on how many of a site's
slides are abnormal. The distance of moments decides: a site that lies as near as unseen slides of the source is left
alone, to the bit; of one that does so once its colours are mapped, colours are mapped and features are not; one that
lies far even then is out of scope.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gateway.operations.errors import InvalidInput
from gateway.slides.site_colour import ColourMap, Counts, Densities, densities
from gateway.slides.site_state import Features, SiteState, Source, identity

VERSION = "2"
"""Of the rule by which a state is fitted. 1: features were mapped wherever colours were."""

LEAST_SLIDES = 32
LEAST_CELLS = 200.0
"""Cells that a site is judged by, and cells by their effective number that it is adapted to: a deviation of so many is
right to 5 %, while one of two or three cells would stretch features a hundredfold."""
LEAST_BEARING = 8
"""Slides that LEAST_CELLS come from at the least: a site is not what one of its slides shows."""
_PASSES = 3
_FAR = 3.0
"""Gates beyond which a site is out of scope once its colours are mapped. Simulated centres and single blocks of the
source lay within 1.2 of them, squares of H&E tissue at 3.2 and noise at 9.6 (docs/results/smart-ccs.md); the
specification's ten would have adapted to both."""
_GATE, _PERCENT, _DRAWS = 3.0, 99.0, 200
_FLAT = 0.01
"""A feature's deviation counts as no less than this share of the mean deviation: one that hardly varies tells nothing,
and would be stretched without bound. Cells whose mean deviation is below this share of the source's tell nothing."""

Weights = NDArray[np.float64]
Weigh = Callable[[Features], Weights]
"""Features (N,D), adapted so far, of cells in the order in which they were given, to how surely each is NILM (N,)."""


class SiteNotFittable(InvalidInput):
    """Too few slides, or too few cells, to fit a site to."""

    reason, title = "site-not-fittable", "Site cannot be fitted"


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Weighted mean and deviation (D,) float64."""

    mean_D: NDArray[np.float64]
    deviation_D: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class SiteCells:
    """Cells that are held at once: their features (N,D), and what weighs them."""

    features_ND: Features
    weigh: Weigh

    def parts(self) -> Iterator["SiteCells"]:
        """As `Cells`: all of them at once."""
        yield self


class Cells(Protocol):
    """The cells of a site's slides, however many they are."""

    def parts(self) -> Iterator[SiteCells]:
        """Some at a time (those of a slide), so that no more are held; the same in the same order whenever asked."""


@dataclass(slots=True, eq=False)
class _Sums:
    """Weighted cells added up part by part, for their moments (Chan, Golub and LeVeque 1979) and for how many cells of
    one weight each would give moments as steady: (Σw)² / Σw², by Kish's rule. `cells`: how many they are."""

    cells: int = 0
    _weight: float = 0.0
    _mean_D: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))
    _variance_D: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))
    _most: float = 0.0
    _shares: float = 0.0  # by the greatest weight, since squares of weights that are all next to none would be none
    _squares: float = 0.0

    @classmethod
    def of(cls, cells: Cells, adapt: Callable[[Features], Features] = lambda cells_ND: cells_ND) -> "_Sums":
        """Of all parts as they are, weighed as they are once adapted."""
        sums = cls()
        for part in cells.parts():
            sums.add(part.features_ND, part.weigh(adapt(part.features_ND)))
        return sums

    def add(self, features_ND: Features, weights_N: Weights) -> None:
        self.cells += len(features_ND)
        total = float(weights_N.sum())
        if not total > 0:
            self._weight += total  # what is no number stays none
            return
        shares_N = weights_N / total
        wide_ND = features_ND.astype(np.float64)
        mean_D = shares_N @ wide_ND
        variance_D = shares_N @ np.square(wide_ND - mean_D)
        self._weight += total
        share, apart_D = total / self._weight, mean_D - self._mean_D
        self._mean_D = self._mean_D + share * apart_D
        self._variance_D = (
            (1 - share) * self._variance_D + share * variance_D + share * (1 - share) * np.square(apart_D)
        )
        most = max(self._most, float(weights_N.max()))
        shrunk, by_most_N = self._most / most, weights_N / most
        self._most = most
        self._shares = self._shares * shrunk + float(by_most_N.sum())
        self._squares = self._squares * shrunk**2 + float(np.square(by_most_N).sum())

    @property
    def effective(self) -> float:
        return self._shares**2 / self._squares if self._squares else 0.0

    def moments(self) -> Moments:
        """Raises SiteNotFittable where there is no weight at all."""
        if not self._weight > 0:
            raise SiteNotFittable("No cell of the site's slides counts as NILM: there is nothing to fit. Add slides.")
        deviation_D = np.sqrt(self._variance_D)
        return Moments(self._mean_D, np.maximum(deviation_D, _FLAT * deviation_D.mean()))


def moments(features_ND: Features, weights_N: Weights) -> Moments:
    """Of cells, each counting by its weight. Raises SiteNotFittable where there is no weight at all."""
    sums = _Sums()
    sums.add(features_ND, weights_N)
    return sums.moments()


def distance(found: Moments, source: Source) -> float:
    """How far a site's mean lies from the source's: the mean over features of ((m - m_source) / s_source)²."""
    return float(np.square((found.mean_D - source.mean_D) / source.deviation_D).mean())


def affine(cells: Cells, source: Source, least_cells: float = 0.0) -> tuple[Features, Features]:
    """(gamma_D, beta_D) float32 that bring the weighted moments of a site's cells to the source's, weighed anew by what
    the model says of the adapted cells, three times. Raises SiteNotFittable where fewer than `least_cells` (effective)
    have weight, or all are the same."""
    gamma_D, beta_D = np.ones_like(source.mean_D), np.zeros_like(source.mean_D)
    for _ in range(_PASSES):
        sums = _Sums.of(cells, partial(_adapted, gamma_D, beta_D))
        _demand_effective(sums, least_cells)
        found = sums.moments()
        if not found.deviation_D.mean() > _FLAT * source.deviation_D.mean():
            raise SiteNotFittable("All cells of the site's slides are the same: there is nothing to fit. Add slides.")
        gamma_D = (source.deviation_D / found.deviation_D).astype(np.float32)
        beta_D = (source.mean_D - gamma_D * found.mean_D).astype(np.float32)
    return gamma_D, beta_D


def _demand_effective(sums: _Sums, least_cells: float) -> None:
    """Raises SiteNotFittable where cells weigh as much as fewer."""
    if sums.effective < least_cells:
        raise SiteNotFittable(
            f"The cells of the site's slides that count as NILM weigh as much as {sums.effective:.0f} cells, and a "
            f"site is adapted to {least_cells:.0f} or more. Add slides that show cells."
        )


def _adapted(gamma_D: Features, beta_D: Features, features_ND: Features) -> Features:
    return gamma_D * features_ND + beta_D


def source_of(
    densities: Densities,
    learned: SiteCells,
    held_out: Sequence[SiteCells],
    size: int = LEAST_SLIDES,
    seed: int = 2026,
) -> Source:
    """The constants of a model's source: moments of the cells of slides (or bags) that it learned from, and the gate,
    three times the 99th percentile of the distance of sets of `size` slides, held out, that it did not learn from."""
    found = moments(learned.features_ND, learned.weigh(learned.features_ND))
    mean_D, deviation_D = found.mean_D.astype(np.float32), found.deviation_D.astype(np.float32)
    open_source = Source(densities, mean_D, deviation_D, np.inf)
    rng, distances = np.random.default_rng(seed), []
    weights = [slide.weigh(slide.features_ND) for slide in held_out]
    for _ in range(_DRAWS):
        chosen = rng.choice(len(held_out), size, replace=len(held_out) < size)
        features_ND = np.concatenate([held_out[slide].features_ND for slide in chosen])
        distances.append(distance(moments(features_ND, np.concatenate([weights[k] for k in chosen])), open_source))
    return Source(densities, mean_D, deviation_D, _GATE * float(np.percentile(distances, _PERCENT)))


def fit(
    site: str,
    version: int,
    source: Source,
    slides: int,
    counts_3V: Counts,
    cells: Callable[[ColourMap | None], Cells],
) -> SiteState:
    """A site's state from `slides` unlabelled slides, whose tissue's pixels are `counts_3V`.

    `cells` finds the cells of these slides: called with None for the slides as they are, then, where the site is
    unlike the source, with the map by which tiles are coloured before they are looked at. No more cells are held than
    one of their parts. Features are mapped only where cells are unlike the source's still: what is mapped without need
    moves answers without need. Raises SiteNotFittable for fewer than 32 slides, for fewer cells than LEAST_CELLS, and
    for a site to be adapted whose cells weigh as much as fewer.
    """
    if slides < LEAST_SLIDES:
        raise SiteNotFittable(f"A site is fitted to {LEAST_SLIDES} slides or more, and these are {slides}. Add slides.")
    sums, raw = _distance(cells(None), source)
    measured = partial(identity, site, version, source=source, slides=slides, distance_raw=raw, gate=source.gate)
    if raw <= source.gate:
        return measured("like the source", cells=sums.cells)
    try:
        colour = ColourMap(densities(counts_3V), source.densities)
    except ValueError:
        raise SiteNotFittable("No tissue was seen on the site's slides. Add slides that show cells.") from None
    coloured = cells(colour)
    sums, mapped = _distance(coloured, source)
    measured = partial(measured, cells=sums.cells, distance_coloured=mapped)
    if mapped > _FAR * source.gate:
        return measured("out of scope")
    adapted = replace(measured("adapted"), colour=colour)
    if mapped <= source.gate:
        _demand_effective(sums, LEAST_CELLS)
        return adapted
    gamma_D, beta_D = affine(coloured, source, LEAST_CELLS)
    return replace(adapted, gamma_D=gamma_D, beta_D=beta_D)


def demand_spread(cells: Sequence[int]) -> None:
    """Raise SiteNotFittable where the cells of slides, so many on each, are enough only by what a few of them bring: no
    slide counts towards LEAST_CELLS by more than an eighth of them."""
    most = LEAST_CELLS / LEAST_BEARING
    if sum(min(each, most) for each in cells) < LEAST_CELLS:
        bearing = sum(each >= most for each in cells)
        raise SiteNotFittable(
            f"A site is fitted to {LEAST_CELLS:.0f} cells or more, of which no slide brings more than {most:.0f}; its "
            f"slides show {sum(cells)}, and only {bearing} of them as many as that. Add slides that show cells."
        )


def _distance(cells: Cells, source: Source) -> tuple[_Sums, float]:
    """Cells added up, and how far they lie from the source."""
    sums = _Sums.of(cells)
    if not sums.cells:
        raise SiteNotFittable("No cell was found on the site's slides: there is nothing to fit. Add slides.")
    if sums.cells < LEAST_CELLS:
        raise SiteNotFittable(
            f"A site is fitted to {LEAST_CELLS:.0f} cells or more, and its slides show {sums.cells}. Add slides that "
            "show cells."
        )
    return sums, distance(sums.moments(), source)
