"""Survival in discrete time: bins, hazards, losses and the concordance index.

K logits are hazards h_k = σ(logit_k); S_k = Π_{j≤k} (1 − h_j), and S before the first bin is 1. Times are in months,
`events` is true where the death was seen and false where the case was censored.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training.errors import TaskInvalid

_TINY = 1e-7
_SAME_RISK = 1e-8


def bin_edges(times_months: np.ndarray, events: np.ndarray, bins: int = 4) -> np.ndarray:
    """(K+1,) edges: quantiles of the event times, the outer ones just beyond all times.

    K falls below `bins` where quantiles coincide. Raises TaskInvalid without an event.
    """
    if not events.any():
        raise TaskInvalid("No case of the training part has an event: survival bins need the times of deaths.")
    inner = np.quantile(times_months[events], np.linspace(0, 1, bins + 1))[1:-1]
    low, high = times_months.min() - 1e-6, times_months.max() + 1e-6
    return np.unique(np.concatenate([[low], inner, [high]]))


def bin_of(times_months: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """(N,) int64 bin of each time; intervals are closed left and open right, times beyond them are clamped."""
    return np.clip(np.searchsorted(edges, times_months, side="right") - 1, 0, len(edges) - 2).astype(np.int64)


def nll_loss(logits_NK: Tensor, bins_N: Tensor, events_N: Tensor, alpha: float = 0.0) -> Tensor:
    """Negative log likelihood (doi 10.1109/TPAMI.2020.2979450); `alpha` takes weight from the censored cases."""
    survived, before, hazard = _at_bin(logits_NK, bins_N)
    event = events_N.to(logits_NK.dtype)
    uncensored = -event * (_log(before) + _log(hazard))
    censored = -(1 - event) * _log(survived)
    return ((1 - alpha) * (uncensored + censored) + alpha * uncensored).mean()


def ce_loss(logits_NK: Tensor, bins_N: Tensor, events_N: Tensor, alpha: float = 0.0) -> Tensor:
    """The cross-entropy variant of the released multimodal survival codes, kept for comparison."""
    survived, before, hazard = _at_bin(logits_NK, bins_N)
    event = events_N.to(logits_NK.dtype)
    regular = -event * (torch.log(before + _TINY) + _log(hazard))
    entropy = -(1 - event) * _log(survived) - event * torch.log(1 - survived.clamp(min=_TINY))
    return ((1 - alpha) * entropy + alpha * regular).mean()


def _log(p_N: Tensor) -> Tensor:
    return torch.log(p_N.clamp(min=_TINY))


def _at_bin(logits_NK: Tensor, bins_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(S of the case's bin, S of the bin before it, hazard of the bin), each (N,)."""
    hazards_NK = logits_NK.sigmoid()
    survival_NK = (1 - hazards_NK).cumprod(1)
    before_NK = F.pad(survival_NK, (1, 0), value=1.0)
    place = bins_N[:, None]
    return survival_NK.gather(1, place)[:, 0], before_NK.gather(1, place)[:, 0], hazards_NK.gather(1, place)[:, 0]


def risk(logits_NK: Tensor) -> Tensor:
    """(N,) minus the sum of the survival curve: higher is worse."""
    return -(1 - logits_NK.sigmoid()).cumprod(1).sum(1)


def c_index(risks_N: np.ndarray, times_months: np.ndarray, events: np.ndarray) -> float:
    """Harrell's concordance. NaN where no two cases can be compared.

    Cases i and j are comparable where i died and j lived longer, or was censored at the same time; equal risks count
    half. Two deaths at the same time are not comparable.
    """
    ti, tj = times_months[:, None], times_months[None]
    comparable = events[:, None] & ((ti < tj) | ((ti == tj) & ~events[None]))
    gap = risks_N[:, None] - risks_N[None]
    tied = np.abs(gap) <= _SAME_RISK
    score = np.where(tied, 0.5, (gap > 0).astype(float))
    pairs = comparable.sum()
    return float(score[comparable].sum() / pairs) if pairs else float("nan")
