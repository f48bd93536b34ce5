"""What a distillation's run says of itself: does the student tell an expert's view of tiles that it has not seen?"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training.gpfm.experts import Expert, Regression
from training.gpfm.losses import resize_grid
from training.ssl.model import Backbone, normalise
from training.statistics import bootstrap

TILES = 256
_MOST_SHUFFLED = 0.1
_BATCH = 64


def agreement(
    student: tuple[Backbone, Regression],
    start: tuple[Backbone, Regression],
    crops_KHWC: Tensor,
    groups_K: np.ndarray,
    seed: int,
) -> dict[str, Any]:
    """How near the student's regression is to each expert, by name and by "cls" and "patch".

    `cosine` is the mean over held-out crops (K,H,W,3 uint8); `start` that of the student and heads before the first
    step; `shuffled` that against the expert's view of another crop. All views of an expert share a large mean, so each
    is given once more with the means over the crops taken off both sides (`centred…`): there, telling nothing is 0.
    `centred_gain` is what was learned, centred less centred_start. `…_interval`: 95 %, over resamples of the crops'
    groups; absent where there is one group. `void`: the shuffled control is not near 0, so the figure says nothing.
    """
    now, before, found = _regress(*student, crops_KHWC), _regress(*start, crops_KHWC), {}
    order_K = _derangement(len(crops_KHWC), seed)
    for expert in student[1].experts:
        name = expert.settings.name
        found[name] = {}
        for part, target_KND in _targets(expert, crops_KHWC, now[name]).items():
            own_KND, first_KND = now[name][part], before[name][part]
            own_centred, target_centred = _centred(own_KND), _centred(target_KND)
            centred_K = _cosines(own_centred, target_centred)
            first_K = _cosines(_centred(first_KND), target_centred)
            shuffled = _mean(_cosines(own_centred, target_centred[order_K]))
            found[name][part] = {
                **_with_interval("cosine", _cosines(own_KND, target_KND), groups_K),
                "start": _mean(_cosines(first_KND, target_KND)),
                "shuffled": _mean(_cosines(own_KND, target_KND[order_K])),
                **_with_interval("centred", centred_K, groups_K),
                "centred_start": _mean(first_K),
                **_with_interval("centred_gain", centred_K - first_K, groups_K),
                "centred_shuffled": shuffled,
                "void": not abs(shuffled) <= _MOST_SHUFFLED,
            }
    return {"tiles": len(crops_KHWC), "groups": len(np.unique(groups_K)), "experts": found}


def licences(experts: Sequence[Expert]) -> list[dict[str, Any]]:
    """Each expert's digest and the licences that it brings along."""
    return [
        {"name": expert.settings.name, "sha256": expert.sha256, "licences": list(expert.licences)} for expert in experts
    ]


@torch.no_grad()
def _regress(backbone: Backbone, regression: Regression, crops_KHWC: Tensor) -> dict[str, dict[str, Tensor]]:
    backbone.eval()
    tokens = [backbone(normalise(part, backbone.scale)) for part in crops_KHWC.split(_BATCH)]
    cls_K1D = torch.cat([part.cls_BD for part in tokens])[:, None]
    patches_KND = torch.cat([part.patches_BND for part in tokens])
    return {
        expert.settings.name: {
            "cls": regression.heads[expert.settings.name](cls_K1D),
            "patch": regression.heads[expert.settings.name](patches_KND),
        }
        for expert in regression.experts
    }


def _targets(expert: Expert, crops_KHWC: Tensor, own: dict[str, Tensor]) -> dict[str, Tensor]:
    seen = [expert(part) for part in crops_KHWC.split(_BATCH)]
    targets = {"cls": torch.cat([cls_BD for cls_BD, _ in seen])[:, None]}
    if expert.settings.patch:
        patches_KND = torch.cat([patches_BND for _, patches_BND in seen if patches_BND is not None])
        targets["patch"] = resize_grid(patches_KND, round(own["patch"].shape[1] ** 0.5))
    return targets


def _centred(x_KND: Tensor) -> Tensor:
    return x_KND - x_KND.mean((0, 1))


def _cosines(one_KND: Tensor, other_KND: Tensor) -> np.ndarray:
    """(K,): the mean of a crop's tokens."""
    return F.cosine_similarity(one_KND, other_KND, dim=-1).mean(1).numpy()


def _mean(values_K: np.ndarray) -> float:
    return round(float(values_K.mean()), 4)


def _with_interval(name: str, values_K: np.ndarray, groups_K: np.ndarray) -> dict[str, Any]:
    if len(np.unique(groups_K)) < 2:
        return {name: _mean(values_K)}
    found = bootstrap(lambda index: float(values_K[index].mean()), groups_K)
    return {name: round(found.value, 4), f"{name}_interval": [round(found.low, 4), round(found.high, 4)]}


def _derangement(count: int, seed: int) -> Tensor:
    """A random order in which no crop keeps its place."""
    order = np.random.default_rng(seed).permutation(count)
    following = np.empty(count, np.int64)
    following[order] = np.roll(order, 1)
    return torch.from_numpy(following)
