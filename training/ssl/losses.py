"""The losses of self-distillation: DINO, iBOT and KoLeo, and the two ways to keep the teacher from collapsing.

DINO: arXiv 2104.14294, equations 1 to 4; iBOT: arXiv 2111.07832, equation 3; KoLeo: arXiv 1806.03198, equation 6;
all as DINOv2 joins them (arXiv 2304.07193, section 4). Rows of global crops come as G = [all first crops; all second
crops], local crops as L = [all first; all second; …], each in the images' order. q is the teacher's probability, z the
student's logits. Everything is computed in fp32, whatever the networks' precision.
"""

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F


def cross_entropy(q_BK: Tensor, z_BK: Tensor, student_temp: float = 0.1) -> Tensor:
    """(B,): -Σ q · log softmax(z / temperature)."""
    return -(q_BK.float() * F.log_softmax(z_BK.float() / student_temp, dim=-1)).sum(-1)


def dino_local(q_GK: Tensor, z_LK: Tensor, locals_per_image: int, student_temp: float = 0.1) -> Tensor:
    """Every local crop against both of its image's global crops; mean over images, sum over pairs, divided by the
    number of all pairs, 2 + 2·locals. Zero where there are no local crops."""
    if locals_per_image == 0:
        return z_LK.sum() * 0.0
    log_JBK = F.log_softmax(z_LK.float() / student_temp, dim=-1).unflatten(0, (locals_per_image, -1))
    q_2BK = q_GK.float().unflatten(0, (2, -1))
    # Σ over crops first: the teacher's probability multiplies every local crop of its image alike.
    pairs_2B = -(q_2BK * log_JBK.sum(0)).sum(-1)
    return pairs_2B.mean(1).sum() / (2 + 2 * locals_per_image)


def dino_global(q_GK: Tensor, z_GK: Tensor, locals_per_image: int, student_temp: float = 0.1) -> Tensor:
    """Each global crop against the other of its image; the same denominator as `dino_local`."""
    first_BK, second_BK = z_GK.chunk(2)
    swapped_GK = torch.cat([second_BK, first_BK])
    return 2 * cross_entropy(q_GK, swapped_GK, student_temp).mean() / (2 + 2 * locals_per_image)


def ibot(q_MK: Tensor, z_MK: Tensor, mask_GN: Tensor, student_temp: float = 0.1) -> Tensor:
    """Mean over masked patches within an image, mean over all G crops, unmasked ones counting as zero.

    The rows M are the masked patches in the order of `mask_GN.nonzero()`.
    """
    per_crop_G = mask_GN.sum(1).clamp(min=1)
    weight_M = (1.0 / per_crop_G)[:, None].expand_as(mask_GN)[mask_GN]
    return (cross_entropy(q_MK, z_MK, student_temp) * weight_M).sum() / len(mask_GN)


def koleo(x_BD: Tensor, eps: float = 1e-8) -> Tensor:
    """-mean log of the distance from each normalised row to its nearest other row; zero for fewer than two rows."""
    with torch.autocast(x_BD.device.type, enabled=False):
        unit_BD = F.normalize(x_BD.float(), dim=-1, eps=eps)
        if len(unit_BD) < 2:
            return unit_BD.sum() * 0.0
        with torch.no_grad():
            cosine_BB = unit_BD @ unit_BD.T
            nearest_B = cosine_BB.fill_diagonal_(-1.0).argmax(1)
        return -(F.pairwise_distance(unit_BD, unit_BD[nearest_B], eps=eps) + eps).log().mean()


class Centre(nn.Module):
    """The teacher's centre c: an average of its logits over steps and over all processes.

    `targets` uses the centre of the steps before; `update` comes after it (DINOv2 applies it lazily to the same end).
    """

    def __init__(self, outputs: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("centre", torch.zeros(1, outputs))
        self.centre: Tensor

    @torch.no_grad()
    def targets(self, z_BK: Tensor, temp: float) -> Tensor:
        """(B,K): softmax((z - c) / temperature)."""
        return F.softmax((z_BK.float() - self.centre) / temp, dim=-1)

    @torch.no_grad()
    def update(self, z_BK: Tensor) -> None:
        """c ← momentum · c + (1 - momentum) · mean of the rows of all processes; unchanged where there are none."""
        total_1K = z_BK.float().sum(0, keepdim=True)
        rows = torch.full((1, 1), float(len(z_BK)), device=z_BK.device)
        total_1K, rows = _over_processes(total_1K), _over_processes(rows)
        if rows.item() > 0:
            self.centre.mul_(self.momentum).add_(total_1K / rows, alpha=1 - self.momentum)


@torch.no_grad()
def sinkhorn(z_BK: Tensor, temp: float, rounds: int = 3) -> Tensor:
    """(B,K): the teacher's probabilities with all prototypes used alike (arXiv 2006.09882, appendix), over the rows of
    all processes."""
    # Small temperatures spread exp over more than fp32 holds; a common factor drops out with the first division.
    logits_KB = (z_BK.double() / temp).T
    highest = logits_KB.max() if logits_KB.numel() else logits_KB.new_tensor(-torch.inf)
    shares_KB = torch.exp(logits_KB - _over_processes(highest, distributed.ReduceOp.MAX))
    prototypes = len(shares_KB)
    rows = _over_processes(logits_KB.new_tensor(len(z_BK)))
    shares_KB /= _over_processes(shares_KB.sum())
    for _ in range(rounds):
        shares_KB /= _over_processes(shares_KB.sum(1, keepdim=True)) * prototypes
        shares_KB /= shares_KB.sum(0, keepdim=True) * rows
    return (shares_KB * rows).T.float()


def _over_processes(value: Tensor, operation: distributed.ReduceOp.RedOpType = distributed.ReduceOp.SUM) -> Tensor:
    """The sum (or maximum) of a tensor over all processes; itself where there is one."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(value, op=operation)
    return value
