"""What a mask costs without a network: a threshold on the stain, oracles that are told the truth's boxes, and a test of
absence that is fitted instead of trained.

The oracles follow arXiv 2506.20988, which gives box-prompted models the truth's box: here the filled box is the answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from skimage.color import rgb2hed
from skimage.filters import threshold_otsu

from training.pathsegmentor.descriptors import boxes

ABSENT_BELOW = 0.05
"""The combined p below which the Beta test calls an object absent (arXiv 2405.12971, public code)."""


def otsu(image_HW3: np.ndarray) -> np.ndarray:
    """(H,W) bool: above Otsu's threshold (1979) of this image's haematoxylin optical density, stains unmixed with the
    vectors of Ruifrok and Johnston (2001). The outermost half percent at either end is clipped, lest a speck of pigment
    takes the threshold. Nothing where the image has one density."""
    density_HW = rgb2hed(image_HW3)[..., 0]
    density_HW = np.clip(density_HW, *np.percentile(density_HW, (0.5, 99.5)))
    if np.ptp(density_HW) == 0:
        return np.zeros(density_HW.shape, bool)
    return density_HW > threshold_otsu(density_HW)


def box_union(truth_HW: np.ndarray) -> np.ndarray:
    """(H,W) bool: the filled bounding box of the whole truth."""
    filled_HW = np.zeros(truth_HW.shape, bool)
    for _, box in boxes(truth_HW.astype(np.int32)):
        filled_HW[box] = True
    return filled_HW


def box_instances(truth_HW: np.ndarray, labels_HW: np.ndarray) -> np.ndarray:
    """(H,W) bool: the filled bounding boxes of all instances; the truth itself where pixels belong to no instance."""
    filled_HW = truth_HW & (labels_HW == 0)
    for _, box in boxes(labels_HW):
        filled_HW[box] = True
    return filled_HW


def mask_statistics(image_HW3: np.ndarray, probability_HW: np.ndarray, mask_HW: np.ndarray) -> np.ndarray:
    """(4,) in 0..1: mean mask probability, R, G and B inside a bool mask; NaN where it is empty."""
    if not mask_HW.any():
        return np.full(4, np.nan)
    return np.array([probability_HW[mask_HW].mean(), *(image_HW3[mask_HW].mean(0) / 255.0)])


@dataclass(frozen=True, slots=True)
class BetaTest:
    """Per prompt, Beta distributions (a, b) of the four `mask_statistics` where the object is present."""

    shapes: Mapping[str, tuple[tuple[float, float], ...]]

    @classmethod
    def fit(cls, prompts: Sequence[str], statistics_N4: np.ndarray, fewest: int = 5) -> "BetaTest":
        """By moments, from pairs where the object is present; a prompt of fewer than `fewest` non-empty masks gets
        none, and is never called absent."""
        names_N = np.array(prompts)
        shapes = {}
        for name in dict.fromkeys(prompts):
            rows_K4 = statistics_N4[names_N == name]
            rows_K4 = rows_K4[~np.isnan(rows_K4).any(1)]
            if len(rows_K4) >= fewest:
                shapes[name] = tuple(_beta(column) for column in rows_K4.T)
        return cls(shapes)

    def p(self, prompt: str, statistics_4: np.ndarray) -> float:
        """Product^¼ of the four p-values of a one-sample Kolmogorov-Smirnov test, which for one observation is
        2·min(F, 1 - F); 0 for an empty mask, 1 for a prompt without distributions."""
        if np.isnan(statistics_4).any():
            return 0.0
        if prompt not in self.shapes:
            return 1.0
        tails = [
            2.0 * min(stats.beta.cdf(value, a, b), stats.beta.sf(value, a, b))
            for value, (a, b) in zip(statistics_4, self.shapes[prompt], strict=True)
        ]
        return float(np.prod(tails) ** 0.25)


def _beta(values_K: np.ndarray) -> tuple[float, float]:
    """Shape parameters by moments. Values that hardly vary get the narrowest that still can be told from a point."""
    mean = float(np.clip(values_K.mean(), 1e-3, 1 - 1e-3))
    variance = max(float(values_K.var()), 1e-6)
    common = max(mean * (1 - mean) / variance - 1, 1e-3)
    return mean * common, (1 - mean) * common
