"""Expert distillation's losses (GPFM, arXiv 2407.18449, section "Unified knowledge distillation"; feature regression
as RADIO's, arXiv 2312.06709). Everything is computed in fp32; targets carry no gradient."""

from torch import Tensor
from torch.nn import functional as F


def cosine(student_D: Tensor, target_D: Tensor) -> Tensor:
    """1 - mean cosine over all vectors (…,D)."""
    return 1 - F.cosine_similarity(student_D.float(), target_D.float(), dim=-1).mean()


def kl_divergence(student_BD: Tensor, target_BD: Tensor, temperature: float = 1.0) -> Tensor:
    """T² · KL(softmax(target / T) ‖ softmax(student / T)), summed over everything, divided by the first dimension."""
    log_student = F.log_softmax(student_BD.float() / temperature, dim=-1)
    target = F.softmax(target_BD.float() / temperature, dim=-1)
    return F.kl_div(log_student, target, reduction="batchmean") * temperature**2


def patches(student_BND: Tensor, target_BND: Tensor, cosine_share: float = 0.9, smooth_share: float = 0.1) -> Tensor:
    """cosine_share · (1 - mean cosine) + smooth_share · mean smooth-L1 (β = 1), over all crops and positions."""
    smooth = F.smooth_l1_loss(student_BND.float(), target_BND.float(), beta=1.0)
    return cosine_share * cosine(student_BND, target_BND) + smooth_share * smooth


def resize_grid(tokens_BND: Tensor, grid: int) -> Tensor:
    """An expert's square grid of patch tokens on the student's, (B, grid², D): bicubic, corners not aligned; untouched
    where the grids are equal."""
    own = round(tokens_BND.shape[1] ** 0.5)
    if own == grid:
        return tokens_BND
    square_BDHW = tokens_BND.float().transpose(1, 2).unflatten(2, (own, own))
    return F.interpolate(square_BDHW, size=(grid, grid), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
