"""What objects mean to a slide's answer: object-aware pooling, and the importance of an object by blurring it.

arXiv 2506.20988, interpretability. A slide is a bag of patches; of each patch there is a map of features, and of each
object a mask.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from training.pathsegmentor.pairs import RESAMPLES, SEED


class ObjectMIL(nn.Module):
    """Attention pooling (arXiv 1802.04712, eq. 8) for each of O objects alone, over the patches that contain it; the
    mean over the objects that the slide has; one linear layer."""

    def __init__(self, width: int, classes: int, objects: int, hidden: int = 32) -> None:
        super().__init__()
        self.features = nn.ModuleList(nn.Sequential(nn.Linear(width, hidden), nn.ReLU()) for _ in range(objects))
        self.attentions = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 1)) for _ in range(objects)
        )
        self.classifier = nn.Linear(hidden, classes)

    def forward(self, rows_BNOD: Tensor, held_BNO: Tensor) -> Tensor:
        """(B,C) logits of B slides of N patches from `object_features`; a slide without any object is answered from
        zeros."""
        pooled, there = [], held_BNO.any(1).float()
        for place, (feature, attention) in enumerate(zip(self.features, self.attentions, strict=True)):
            hidden_BNH = feature(rows_BNOD[:, :, place])
            scores_BN = attention(hidden_BNH)[..., 0] + (held_BNO[..., place].float() - 1) * 1e4
            pooled.append((scores_BN.softmax(1)[..., None] * hidden_BNH).sum(1) * there[:, place, None])
        return self.classifier(torch.stack(pooled).sum(0) / there.sum(1, keepdim=True).clamp(min=1))


def object_features(features_NDHW: Tensor, masks_NOHW: Tensor) -> tuple[Tensor, Tensor]:
    """(N,O,D) mean feature of each object in each patch, O_i^j = Σ P_i⊙M_i^j / Σ M_i^j, and (N,O) bool: it is there."""
    sizes_NO = masks_NOHW.sum((2, 3))
    sums_NOD = torch.einsum("ndhw,nohw->nod", features_NDHW, masks_NOHW)
    return sums_NOD / sizes_NO.clamp(min=1)[..., None], sizes_NO > 0


def blurred(image_HW3: np.ndarray, mask_HW: np.ndarray, sigma_px: float) -> np.ndarray:
    """The image with what lies under a bool mask taken from its Gaussian blur."""
    return np.where(mask_HW[..., None], cv2.GaussianBlur(image_HW3, (0, 0), sigma_px), image_HW3)


def elsewhere(mask_HW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The control: the same mask moved by chance around the image's edges, so that area and shape are kept."""
    height, width = mask_HW.shape
    return np.roll(mask_HW, (int(rng.integers(height)), int(rng.integers(width))), (0, 1))


@dataclass(frozen=True, slots=True)
class Importance:
    """IMP = mean loss with the object blurred / mean loss without; `control` with an equally large random region
    blurred; `excess` = IMP - control. Each with its 95 % interval over slides."""

    imp: tuple[float, float, float]
    control: tuple[float, float, float]
    excess: tuple[float, float, float]


def importance(loss_S: np.ndarray, blurred_S: np.ndarray, control_S: np.ndarray, seed: int = SEED) -> Importance:
    """From the cross-entropies (S,) of S slides: the ratio of means, not the mean of ratios, which one slide of almost
    no loss would rule."""

    def ratios(index: np.ndarray) -> np.ndarray:
        before = loss_S[index].mean(-1)
        imp, control = blurred_S[index].mean(-1) / before, control_S[index].mean(-1) / before
        return np.stack([imp, control, imp - control])

    slides = len(loss_S)
    values_3 = ratios(np.arange(slides))
    drawn_3B = ratios(np.random.default_rng(seed).integers(0, slides, (RESAMPLES, slides)))
    low_3, high_3 = np.percentile(drawn_3B, (2.5, 97.5), axis=1)
    return Importance(
        *(tuple(round(float(n), 4) for n in three) for three in zip(values_3, low_3, high_3, strict=True))
    )
