"""Fitting a site: what its unlabelled slides tell of its colours and of its cells' features, held against the source.

The moments of features are weighted by how surely a cell is NILM, so that a fit depends little on how many of a site's
slides are abnormal. The distance of moments decides: a site that lies as near as unseen slides of the source is left
alone, to the bit; one that lies far even after its colours were mapped is out of scope.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.operations.errors import InvalidInput
from gateway.slides.site_colour import ColourMap, Counts, Densities, densities
from gateway.slides.site_state import Features, SiteState, Source, identity

LEAST_SLIDES = 32
LEAST_CELLS = 200.0
"""Cells that a site is judged by, and cells by their effective number that its features are fitted to: a deviation of
so many is right to 5 %, while one of two or three cells would stretch features a hundredfold."""
_PASSES = 3
_FAR = 10.0
"""Gates beyond which a site is out of scope."""
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
    """The cells of a site's slides: their features (N,D), and what weighs them."""

    features_ND: Features
    weigh: Weigh


def effective_cells(weights_N: Weights) -> float:
    """How many cells of one weight each would give moments as steady as these do: (Σw)² / Σw², by Kish's rule."""
    most = float(weights_N.max(initial=0.0))
    if not most > 0:
        return 0.0
    shares_N = weights_N / most  # the squares of weights that are all next to none would be none
    return float(shares_N.sum()) ** 2 / float(np.square(shares_N).sum())


def moments(features_ND: Features, weights_N: Weights) -> Moments:
    """Of cells, each counting by its weight. Raises SiteNotFittable where there is no weight at all."""
    total = float(weights_N.sum())
    if not total > 0:
        raise SiteNotFittable("No cell of the site's slides counts as NILM: there is nothing to fit. Add slides.")
    shares_N = weights_N / total
    wide_ND = features_ND.astype(np.float64)
    mean_D = shares_N @ wide_ND
    deviation_D = np.sqrt(shares_N @ np.square(wide_ND - mean_D))
    return Moments(mean_D, np.maximum(deviation_D, _FLAT * deviation_D.mean()))


def distance(found: Moments, source: Source) -> float:
    """How far a site's mean lies from the source's: the mean over features of ((m - m_source) / s_source)²."""
    return float(np.square((found.mean_D - source.mean_D) / source.deviation_D).mean())


def affine(cells: SiteCells, source: Source, least_cells: float = 0.0) -> tuple[Features, Features]:
    """(gamma_D, beta_D) float32 that bring the weighted moments of a site's cells to the source's, weighed anew by what
    the model says of the adapted cells, three times. Raises SiteNotFittable where fewer than `least_cells` (effective)
    have weight, or all are the same."""
    gamma_D, beta_D = np.ones_like(source.mean_D), np.zeros_like(source.mean_D)
    for _ in range(_PASSES):
        weights_N = cells.weigh(gamma_D * cells.features_ND + beta_D)
        if (effective := effective_cells(weights_N)) < least_cells:
            raise SiteNotFittable(
                f"The cells of the site's slides that count as NILM weigh as much as {effective:.0f} cells, and "
                f"features are fitted to {least_cells:.0f} or more. Add slides that show cells."
            )
        found = moments(cells.features_ND, weights_N)
        if not found.deviation_D.mean() > _FLAT * source.deviation_D.mean():
            raise SiteNotFittable("All cells of the site's slides are the same: there is nothing to fit. Add slides.")
        gamma_D = (source.deviation_D / found.deviation_D).astype(np.float32)
        beta_D = (source.mean_D - gamma_D * found.mean_D).astype(np.float32)
    return gamma_D, beta_D


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
    cells: Callable[[ColourMap | None], SiteCells],
) -> SiteState:
    """A site's state from `slides` unlabelled slides, whose tissue's pixels are `counts_3V`.

    `cells` finds the cells of these slides: called with None for the slides as they are, then, where the site is
    unlike the source, with the map by which tiles are coloured before they are looked at. Raises SiteNotFittable for
    fewer than 32 slides, and for fewer cells than LEAST_CELLS.
    """
    if slides < LEAST_SLIDES:
        raise SiteNotFittable(f"A site is fitted to {LEAST_SLIDES} slides or more, and these are {slides}. Add slides.")
    raw = cells(None)
    raw_distance = _distance(raw, source)
    measured: dict[str, Any] = {"slides": slides, "distance_raw": raw_distance, "gate": source.gate}
    if raw_distance <= source.gate:
        return identity(site, version, "like the source", source, cells=len(raw.features_ND), **measured)
    try:
        colour = ColourMap(densities(counts_3V), source.densities)
    except ValueError:
        raise SiteNotFittable("No tissue was seen on the site's slides. Add slides that show cells.") from None
    coloured = cells(colour)
    measured |= {"cells": len(coloured.features_ND), "distance_coloured": _distance(coloured, source)}
    if measured["distance_coloured"] > _FAR * source.gate:
        return identity(site, version, "out of scope", source, **measured)
    gamma_D, beta_D = affine(coloured, source, LEAST_CELLS)
    return SiteState(
        site=site,
        version=version,
        verdict="adapted",
        source_sha256=source.digest,
        gamma_D=gamma_D,
        beta_D=beta_D,
        colour=colour,
        **measured,
    )


def _distance(cells: SiteCells, source: Source) -> float:
    found = len(cells.features_ND)
    if not found:
        raise SiteNotFittable("No cell was found on the site's slides: there is nothing to fit. Add slides.")
    if found < LEAST_CELLS:
        raise SiteNotFittable(
            f"A site is fitted to {LEAST_CELLS:.0f} cells or more, and its slides show {found}. Add slides that show "
            "cells."
        )
    return distance(moments(cells.features_ND, cells.weigh(cells.features_ND)), source)
