"""Which query answers for which box: the assignment of least cost (Hungarian).

DETR's (arXiv 2005.12872, section 3.1), with the class's cost of the focal loss (Deformable DETR, arXiv 2010.04159, its
published code).
"""

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from training.smartccs.recipe import DetectorLoss

ALPHA = 0.25
"""How much a target of 1 counts in the focal loss beside one of 0 (arXiv 1708.02002); its exponent is 2."""


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """Of one image: its K boxes (centre, width, height in 0..1), each one's column, and the same of all M annotated
    nuclei; negative: nothing abnormal is in the whole field, so whatever is found beside the boxes is wrong."""

    boxes_K4: Tensor
    columns_K: Tensor
    nuclei_M4: Tensor
    negative: bool


def corners(boxes_N4: Tensor) -> Tensor:
    """(...,4): left, top, right, bottom of boxes given by centre, width and height."""
    centre, half = boxes_N4[..., :2], boxes_N4[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def giou(one_4: Tensor, other_4: Tensor) -> Tensor:
    """(...): generalised intersection over union (arXiv 1902.09630) of boxes given by their corners, which broadcast:
    1 where they are the same, towards -1 the farther they are apart."""
    (one_low, one_high), (low, high) = one_4.split(2, dim=-1), other_4.split(2, dim=-1)
    intersection = (torch.minimum(one_high, high) - torch.maximum(one_low, low)).clamp(0).prod(-1)
    hull = (torch.maximum(one_high, high) - torch.minimum(one_low, low)).prod(-1)
    union = (one_high - one_low).prod(-1) + (high - low).prod(-1) - intersection
    return intersection / union - (hull - union) / hull


def matched(logits_QC: Tensor, boxes_Q4: Tensor, target: Target, weights: DetectorLoss) -> tuple[Tensor, Tensor]:
    """The query of each box, and the box's number, (K,) each. Every box has one where there are queries enough."""
    with torch.no_grad():
        logits_QK = logits_QC[:, target.columns_K]
        probability_QK = logits_QK.sigmoid()
        # -log p and -log (1 - p) without rounding p to 0 or 1 first.
        as_one_QK = ALPHA * (1 - probability_QK) ** 2 * F.softplus(-logits_QK)
        as_none_QK = (1 - ALPHA) * probability_QK**2 * F.softplus(logits_QK)
        apart_QK = torch.cdist(boxes_Q4, target.boxes_K4, p=1)
        likeness_QK = giou(corners(boxes_Q4)[:, None], corners(target.boxes_K4)[None])
        cost_QK = weights.classes * (as_one_QK - as_none_QK) + weights.l1 * apart_QK - weights.giou * likeness_QK
    queries, boxes = linear_sum_assignment(cost_QK.cpu().numpy())
    device = logits_QC.device
    return torch.from_numpy(queries).to(device), torch.from_numpy(boxes).to(device)
