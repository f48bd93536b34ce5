"""How Dice goes with the shape, size and density of what is asked for (arXiv 2506.20988, evaluation by shape).

A spline regression of Dice on the logistic scale, so that what is fitted lies in 0 to 1 (cubic, knots at quantiles,
lightly penalised), with a band over resamples of groups. Sets differ in more than their shapes, so each has a level of
its own. Irregularity, count and size go together, so each trend stands twice: within sets, and with smooth terms of
log size and log density beside it, at their means. Pairs of one outline count once.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import expit
from sklearn.preprocessing import SplineTransformer

from training.pathsegmentor.pairs import FEWEST_GROUPS, SEED, Table
from training.statistics import whole_groups

RESAMPLES = 200
FEWEST_OUTLINES = 100
_GRID = 41
_KNOTS = 5
_PENALTY = 1e-4
_STEPS, _LONGEST, _SETTLED = 25, 4.0, 1e-6
_FURTHEST = 6.0
"""How far a fit may go on the logistic scale: 0.2 % from 0 and 1."""
DESCRIPTORS = {
    "irregularity_instance": "irregularity of instances",
    "irregularity_mask": "irregularity of the mask",
    "size": "log10 of the mean instance area, px",
    "density": "log10 of instances per 256 × 256 px",
    "dispersion": "greatest distance between instances, px",
}
HELD = "within sets, size and density held"
"""What stays at its mean in the second of the two curves, but for what the curve is over."""
ANSWERS = {"dice": "network", "box_union": "union-box oracle"}


def trends(table: Table) -> dict[str, Any]:
    """By level: how many pairs, different outlines and groups it has. And, where these are enough, by descriptor: the
    grid `x`, and for each answer the two curves with their bands, and the fitted change of Dice from the descriptor's
    10th to its 90th percentile."""
    found: dict[str, Any] = {}
    usable = (table["own"] == 1) & ~np.isnan(table["dice"]) & (table["count"] >= 1)
    for level in dict.fromkeys(table["level"].tolist()):
        rows = table.where(usable & (table["level"] == level))
        values, outlines, groups = descriptors(rows), round(float(rows.shares().sum())), len(np.unique(rows.groups()))
        enough = outlines >= FEWEST_OUTLINES and groups >= FEWEST_GROUPS
        found[level] = {
            "pairs": len(rows),
            "outlines": outlines,
            "groups": groups,
            "by": {name: _trend(rows, values, name) for name in DESCRIPTORS if enough and np.ptp(values[name]) > 0},
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
    others = [_splines(values[other], values[other]) for other in ("size", "density") if other != name]
    sets = (rows["set"][:, None] == np.unique(rows["set"])[1:]).astype(float)
    answers = {
        answer: {
            kind: curve(values[name], rows[answer], rows.groups(), rows.shares(), grid, ends, beside)
            for kind, beside in (("alone", [sets]), ("partial", [sets, *others]))
        }
        for answer in ANSWERS
    }
    return {"x": grid.round(4).tolist(), "answers": answers}


def curve(
    x_N: np.ndarray,
    y_N: np.ndarray,
    groups_N: np.ndarray,
    shares_N: np.ndarray,
    grid_K: np.ndarray,
    ends_2: np.ndarray,
    beside: list[np.ndarray],
) -> dict[str, Any]:
    """The fitted mean of y (in 0 to 1) over a grid of x, its band (percentiles 2.5 and 97.5 over resamples of groups),
    and the change between two values of x; the columns `beside`, each (N,F), are held at their means."""
    places = np.concatenate([grid_K, ends_2])
    design_NF = np.hstack([_splines(x_N, x_N), *beside])
    means = [np.broadcast_to(columns.mean(0), (len(places), columns.shape[1])) for columns in beside]
    asked_KF = np.hstack([_splines(x_N, places), *means])
    # Centred, so that the penalty leaves the mean alone; the last column is the constant.
    middle_F = design_NF.mean(0)
    # All but free: that a set differs (columns of 0 and 1) must not be told by the curve instead.
    free_F = np.append(np.isin(design_NF, (0.0, 1.0)).all(0), True)
    penalty_F = np.where(free_F, 1e-9, _PENALTY)
    design_NF = np.column_stack([design_NF - middle_F, np.ones(len(x_N))])
    asked_KF = np.column_stack([asked_KF - middle_F, np.ones(len(places))])

    def fit(index_N: np.ndarray) -> np.ndarray:
        x_NF, y, shares = design_NF[index_N], y_N[index_N], shares_N[index_N]
        return expit(np.clip(asked_KF @ _logistic(x_NF, y, shares, penalty_F * shares.sum()), -_FURTHEST, _FURTHEST))

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


def _logistic(x_NF: np.ndarray, y_N: np.ndarray, shares_N: np.ndarray, penalty_F: np.ndarray) -> np.ndarray:
    """(F,) weights of a fractional logistic regression (Papke and Wooldridge 1996), by Newton's method."""
    weights_F = np.zeros(x_NF.shape[1])
    for _ in range(_STEPS):
        fitted_N = expit(np.clip(x_NF @ weights_F, -_FURTHEST, _FURTHEST))
        slope_F = x_NF.T @ (shares_N * (y_N - fitted_N)) - penalty_F * weights_F
        bend_FF = (x_NF * (shares_N * fitted_N * (1 - fitted_N))[:, None]).T @ x_NF + np.diag(penalty_F)
        step_F = np.linalg.solve(bend_FF, slope_F)
        weights_F = weights_F + step_F * min(1.0, _LONGEST / np.abs(step_F).max(initial=_SETTLED))
        if np.abs(step_F).max() < _SETTLED:
            break
    return weights_F


def _splines(fitted_N: np.ndarray, asked_K: np.ndarray) -> np.ndarray:
    """(K,F) cubic B-splines with knots at quantiles of `fitted_N`; linear beyond the outer ones. Quantiles that fall
    together (many equal values) give fewer knots."""
    knots = np.unique(np.quantile(fitted_N, np.linspace(0, 1, _KNOTS)))
    if len(knots) < 2:
        return np.zeros((len(asked_K), 1))
    made = SplineTransformer(knots=knots[:, None], degree=3, extrapolation="linear", include_bias=False)
    return made.fit(fitted_N[:, None]).transform(asked_K[:, None])
