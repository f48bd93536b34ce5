"""What a detector's answer costs: focal loss of the classes, L1 and generalised IoU of the boxes.

Deformable DETR's (arXiv 2010.04159), supervised at every decoder layer; the mean over the layers is ours, so that the
depth does not change the rate. So is what is left out: in a field with abnormal cells not every cell is annotated, and
what is found far from all annotations may be one of those.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from training.smartccs.detector import Found
from training.smartccs.matching import ALPHA, Target, corners, giou, matched
from training.smartccs.recipe import DetectorLoss


def focal(logits: Tensor, truth: Tensor) -> Tensor:
    """Of each logit: α (1-p)² (-log p) where the truth is 1, (1-α) p² (-log (1-p)) where it is 0 (arXiv 1708.02002)."""
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    wrong = (logits.sigmoid() - truth).abs()
    return (ALPHA * truth + (1 - ALPHA) * (1 - truth)) * wrong**2 * entropy


def losses(found: Found, targets: Sequence[Target], boxes: float, weights: DetectorLoss) -> dict[str, Tensor]:
    """Weighted parts and their sum, `total`: summed over the batch, divided by `boxes` (how many there are a process,
    at least one), and averaged over the decoder layers. Without any box only the classes cost something."""
    parts: dict[str, list[Tensor]] = {"classes": [], "l1": [], "giou": []}
    for logits_BQC, boxes_BQ4 in zip(found.logits_LBQC, found.boxes_LBQ4, strict=True):
        for logits_QC, boxes_Q4, target in zip(logits_BQC, boxes_BQ4, targets, strict=True):
            queries_K, numbers_K = matched(logits_QC, boxes_Q4, target, weights)
            truth_QC = torch.zeros_like(logits_QC)
            truth_QC[queries_K, target.columns_K[numbers_K]] = 1.0
            counted_Q = ~ignored(logits_QC, boxes_Q4, target, weights.ignored_above)
            counted_Q[queries_K] = True
            said_K4, true_K4 = boxes_Q4[queries_K], target.boxes_K4[numbers_K]
            parts["classes"].append((focal(logits_QC, truth_QC) * counted_Q[:, None]).sum())
            parts["l1"].append((said_K4 - true_K4).abs().sum())
            parts["giou"].append((1 - giou(corners(said_K4), corners(true_K4))).sum())
    scale = 1 / (max(boxes, 1.0) * len(found.logits_LBQC))
    by_name = {"classes": weights.classes, "l1": weights.l1, "giou": weights.giou}
    weighed = {name: by_name[name] * scale * torch.stack(values).sum() for name, values in parts.items()}
    return weighed | {"total": torch.stack(list(weighed.values())).sum()}


def ignored(logits_QC: Tensor, boxes_Q4: Tensor, target: Target, above: float) -> Tensor:
    """(Q,) bool: queries that may have found a cell which nobody annotated: surer than `above`, in a field that is not
    negative, and farther than one box from every annotated nucleus, across or down."""
    if target.negative:
        return torch.zeros(len(logits_QC), dtype=torch.bool, device=logits_QC.device)
    with torch.no_grad():
        away_QM2 = (boxes_Q4[:, None, :2] - target.nuclei_M4[None, :, :2]).abs()
        near_Q = (away_QM2 <= target.nuclei_M4[:, 2:]).all(-1).any(-1)
        return ~near_Q & (logits_QC.sigmoid().amax(-1) > above)
