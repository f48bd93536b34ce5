"""What a mask, a choice of query and a presence score cost.

BCE and Dice as PathSegmentor has them (arXiv 2506.20988, Methods, equal weights), matched and supervised at every depth
as in Mask2Former (arXiv 2112.01527); the matching cross-entropy is that of SEEM and BiomedParse (arXiv 2304.06718,
2405.12971). The loss of absent objects and the presence score are ours. Each prompt is decoded alone, so the
assignment of queries to masks is that of one mask: the cheapest query.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from training.pathsegmentor.decoder import Heads
from training.pathsegmentor.recipe import Loss

_MATCH_COST, _BCE_COST, _DICE_COST = 2.0, 5.0, 5.0
_OVERSAMPLE, _UNCERTAIN = 3, 0.75
"""Points: three times as many are drawn as are compared, of which three quarters are the most uncertain of them."""
_LARGEST_SCALE = 100.0


@dataclass(frozen=True, slots=True)
class Target:
    """Of N pairs: the truth and what counts, (N,H,W) float at the mask features' or a finer resolution, in [0,1] where
    they were averaged; whether the object is there, (N,) float 0 or 1."""

    mask_NHW: Tensor
    valid_NHW: Tensor
    present_N: Tensor


def averaged(mask_NHW: Tensor, valid_NHW: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Truth and validity at a coarser resolution: the share of valid pixels that are the object, and of all pixels
    that are valid."""
    valid = F.avg_pool2d(valid_NHW[:, None], stride)[:, 0]
    mask = F.avg_pool2d((mask_NHW * valid_NHW)[:, None], stride)[:, 0]
    return mask / valid.clamp(min=1e-6), valid


def bce_and_dice(logits_NQM: Tensor, mask_NM: Tensor, valid_NM: Tensor) -> tuple[Tensor, Tensor]:
    """(N,Q) each: mean binary cross-entropy over the valid pixels, and 1 - (2Σyŷ + 1) / (Σy + Σŷ + 1) over them."""
    truth_NM1, valid_NM1 = (mask_NM * valid_NM)[..., None], valid_NM[..., None]
    entropy_NQ = (F.softplus(logits_NQM) @ valid_NM1 - logits_NQM @ truth_NM1).squeeze(-1)
    probability_NQM = logits_NQM.sigmoid()
    shared_NQ = (probability_NQM @ truth_NM1).squeeze(-1)
    either_NQ = truth_NM1.sum(1) + (probability_NQM @ valid_NM1).squeeze(-1)
    dice_NQ = 1 - (2 * shared_NQ + 1) / (either_NQ + 1)
    return entropy_NQ / valid_NM1.sum(1).clamp(min=1e-6), dice_NQ


def matched(z_NQ: Tensor, bce_NQ: Tensor, dice_NQ: Tensor) -> Tensor:
    """(N,): the query that costs least as the mask's own. `z_NQ`: scaled cosines with the text."""
    return (-_MATCH_COST * z_NQ.softmax(-1) + _BCE_COST * bce_NQ + _DICE_COST * dice_NQ).argmin(-1)


def losses(
    layers: Sequence[Heads],
    mask_features_NDHW: Tensor,
    presence_logit_N: Tensor,
    log_scale: Tensor,
    target: Target,
    weights: Loss,
) -> dict[str, Tensor]:
    """Weighted parts and their sum, `total`; those of masks are summed over the depths. One prompt an image."""
    scale = log_scale.exp().clamp(max=_LARGEST_SCALE)
    # Sampled points differ from depth to depth; the dense comparison does all depths in one product.
    groups = [layers] if weights.points is None else [[heads] for heads in layers]
    found = [_depths(group, mask_features_NDHW, scale, target, weights) for group in groups]
    parts = {name: torch.stack([part[name] for part in found]).sum() for name in found[0]}
    parts["presence"] = weights.presence * F.binary_cross_entropy_with_logits(presence_logit_N, target.present_N)
    return parts | {"total": torch.stack(list(parts.values())).sum()}


def _depths(
    layers: Sequence[Heads], mask_features_NDHW: Tensor, scale: Tensor, target: Target, weights: Loss
) -> dict[str, Tensor]:
    """The parts of K depths, summed over them."""
    there_N = target.present_N
    embedding_NKQD = torch.stack([heads.embedding_NQD for heads in layers], dim=1)
    z_NKQ = scale * torch.stack([heads.cosine_NQ for heads in layers], dim=1)
    with torch.no_grad():
        features_NDM, mask_NM, valid_NM = _places(mask_features_NDHW, target, weights.points, None)
        costs = bce_and_dice(embedding_NKQD.flatten(1, 2) @ features_NDM, mask_NM, valid_NM)
        best_NK = matched(z_NKQ, *(cost.view_as(z_NKQ) for cost in costs))
        chosen_NK = torch.where(there_N[:, None] > 0, best_NK, z_NKQ.argmax(-1))
    place_NK1D = chosen_NK[..., None, None].expand(-1, -1, 1, embedding_NKQD.shape[-1])
    own_NKD = embedding_NKQD.gather(2, place_NK1D).squeeze(2)
    features_NDM, mask_NM, valid_NM = _places(mask_features_NDHW, target, weights.points, own_NKD)
    bce_NK, dice_NK = bce_and_dice(own_NKD @ features_NDM, mask_NM, valid_NM)
    entropy_NK = F.cross_entropy(z_NKQ.flatten(0, 1), chosen_NK.flatten(), reduction="none").view_as(bce_NK)
    share_N = there_N / there_N.sum().clamp(min=1)
    return {
        "bce": weights.bce * (share_N @ bce_NK).sum(),
        "dice": weights.dice * (share_N @ dice_NK).sum(),
        "match": weights.match * (share_N @ entropy_NK).sum(),
        # The truth of an absent object is empty: its BCE is that of a mask against zeros.
        "absent": weights.absent * ((1 - there_N) @ bce_NK).sum() / len(there_N),
    }


def _places(
    mask_features_NDHW: Tensor, target: Target, points: int | None, own_N1D: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Features (N,D,M), truth and validity (N,M) where masks are compared: everywhere, or at sampled points, of which
    those of a mask `own` are chosen by its uncertainty."""
    if points is None:
        return mask_features_NDHW.flatten(2), target.mask_NHW.flatten(1), target.valid_NHW.flatten(1)
    N, device = len(mask_features_NDHW), mask_features_NDHW.device
    if own_N1D is None:
        at_NM2 = torch.rand(N, points, 2, device=device)
    else:
        with torch.no_grad():
            drawn_NM2 = torch.rand(N, _OVERSAMPLE * points, 2, device=device)
            logits_NM = (own_N1D @ sampled(mask_features_NDHW, drawn_NM2)).squeeze(1)
            uncertain = int(_UNCERTAIN * points)
            index_NM = logits_NM.abs().topk(uncertain, dim=1, largest=False).indices
            kept_NM2 = drawn_NM2.gather(1, index_NM[..., None].expand(-1, -1, 2))
            at_NM2 = torch.cat([kept_NM2, torch.rand(N, points - uncertain, 2, device=device)], dim=1)
    truth = sampled(torch.stack([target.mask_NHW, target.valid_NHW], dim=1), at_NM2)
    return sampled(mask_features_NDHW, at_NM2), truth[:, 0], truth[:, 1]


def sampled(maps_NCHW: Tensor, at_NM2: Tensor) -> Tensor:
    """(N,C,M): bilinear values at points (x, y) in [0,1] of the map's extent, pixel centres half a pixel inside."""
    return F.grid_sample(maps_NCHW, 2 * at_NM2[:, :, None] - 1, padding_mode="border", align_corners=False)[..., 0]
