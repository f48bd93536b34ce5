"""How Dice goes with the shape, size and density of what is asked for (arXiv 2506.20988, evaluation by shape).

A spline regression (cubic, knots at quantiles, lightly penalised) with a band over resamples of groups. Irregularity,
count and size go together, so each trend stands twice: alone, and with smooth terms of log count and log size beside
it, at their means.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.preprocessing import SplineTransformer

from training.pathsegmentor.pairs import SEED, Table
from training.statistics import whole_groups

RESAMPLES = 200
FEWEST_PAIRS = 30
_GRID = 41
_KNOTS = 5
_PENALTY = 1e-4
DESCRIPTORS = {
    "irregularity_instance": "irregularity of instances",
    "irregularity_mask": "irregularity of the mask",
    "size": "log10 of the mean instance area, px",
    "density": "log10 of instances per 256 × 256 px",
    "dispersion": "greatest distance between instances, px",
}
ANSWERS = {"dice": "network", "box_union": "union-box oracle"}


def trends(table: Table) -> dict[str, Any]:
    """By level with enough pairs, by descriptor: the grid `x`, and for each answer the two curves with their bands, and
    the fitted change of Dice from the descriptor's 10th to its 90th percentile."""
    found: dict[str, Any] = {}
    usable = (table["own"] == 1) & ~np.isnan(table["dice"]) & (table["count"] >= 1)
    for level in dict.fromkeys(table["level"].tolist()):
        rows = table.where(usable & (table["level"] == level))
        if len(rows) < FEWEST_PAIRS or len(np.unique(rows.groups())) < 3:
            continue
        values = descriptors(rows)
        found[level] = {
            "pairs": len(rows),
            "groups": len(np.unique(rows.groups())),
            "by": {name: _trend(rows, values, name) for name in DESCRIPTORS if np.ptp(values[name]) > 0},
        }
    return found


def descriptors(rows: Table) -> Mapping[str, np.ndarray]:
    return {
        "irregularity_instance": rows["irregularity_instance"],
        "irregularity_mask": rows["irregularity_mask"],
        "size": np.log10(rows["instance_ratio"] * rows["pixels"]),
        "density": np.log10(rows["count"] / rows["pixels"] * 256**2),
        "dispersion": rows["dispersion_px"],
    }


def _trend(rows: Table, values: Mapping[str, np.ndarray], name: str) -> dict[str, Any]:
    low, high = np.percentile(values[name], (2.5, 97.5))
    grid = np.linspace(low, high, _GRID)
    ends = np.percentile(values[name], (10, 90))
    others = [values[other] for other in ("size", "density") if other != name]
    answers = {
        answer: {
            kind: curve(values[name], rows[answer], rows.groups(), grid, ends, beside)
            for kind, beside in (("alone", []), ("partial", others))
        }
        for answer in ANSWERS
    }
    return {"x": grid.round(4).tolist(), "answers": answers}


def curve(
    x_N: np.ndarray,
    y_N: np.ndarray,
    groups_N: np.ndarray,
    grid_K: np.ndarray,
    ends_2: np.ndarray,
    beside: list[np.ndarray],
) -> dict[str, Any]:
    """The fitted mean of y over a grid of x, its band (percentiles 2.5 and 97.5 over resamples of groups), and the
    change between two values of x; the terms `beside` are held at their means."""
    places = np.concatenate([grid_K, ends_2])
    designs, asked = [_splines(x_N, x_N)], [_splines(x_N, places)]
    for other in beside:
        designs.append(_splines(other, other))
        asked.append(np.broadcast_to(designs[-1].mean(0), (len(places), designs[-1].shape[1])))
    design_NF, asked_KF = np.hstack(designs), np.hstack(asked)

    def fit(index: np.ndarray) -> np.ndarray:
        # Centred, so that the penalty leaves the mean alone and the bases' common constant does no harm.
        middle = design_NF[index].mean(0)
        x, y = design_NF[index] - middle, y_N[index]
        weights = np.linalg.solve(x.T @ x + _PENALTY * len(index) * np.eye(x.shape[1]), x.T @ (y - y.mean()))
        return y.mean() + (asked_KF - middle) @ weights

    line = fit(np.arange(len(x_N)))
    draws = whole_groups(groups_N, SEED)
    drawn = np.array([fit(next(draws)) for _ in range(RESAMPLES)])
    band_low, band_high = np.percentile(drawn, (2.5, 97.5), axis=0)
    change, changes = line[-1] - line[-2], drawn[:, -1] - drawn[:, -2]
    low, high = np.percentile(changes, (2.5, 97.5))
    return {
        "y": line[:-2].round(4).tolist(),
        "low": band_low[:-2].round(4).tolist(),
        "high": band_high[:-2].round(4).tolist(),
        "change": {"value": round(float(change), 4), "low": round(float(low), 4), "high": round(float(high), 4)},
    }


def _splines(fitted_N: np.ndarray, asked_K: np.ndarray) -> np.ndarray:
    """(K,F) cubic B-splines with knots at quantiles of `fitted_N`; linear beyond the outer ones. Quantiles that fall
    together (many equal values) give fewer knots."""
    knots = np.unique(np.quantile(fitted_N, np.linspace(0, 1, _KNOTS)))
    if len(knots) < 2:
        return np.zeros((len(asked_K), 1))
    made = SplineTransformer(knots=knots[:, None], degree=3, extrapolation="linear", include_bias=False)
    return made.fit(fitted_N[:, None]).transform(asked_K[:, None])
