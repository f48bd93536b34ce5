"""Simulated centres: one fixed change of colour, and of optics, for every field of a laboratory that is not ours.

A centre mixes the optical densities of the three channels, OD' = M·OD, as another stain would; a scanner besides
darkens and tints, blurs, and compresses once more. A table that rests on these says "simulated". They are linear in
optical density, which flatters whatever corrects colours linearly there.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg

_DENSITY_256 = -np.log(np.maximum(np.arange(256), 1) / 255).astype(np.float32)
"""Optical density (natural logarithm) by grey level; of black as of the next level."""
_GAMMA, _TINT, _SIGMA_PX, _QUALITY = 1.4, (0.93, 0.97, 0.86), 1.0, 35


@dataclass(frozen=True, slots=True)
class Centre:
    """rows: of M, by red, green, blue; scanner: whether the optics change too."""

    rows: tuple[tuple[float, float, float], ...]
    scanner: bool = False

    def __call__(self, image_HWC: np.ndarray) -> np.ndarray:
        """(H,W,3) uint8 RGB of a field, tile or crop: as this centre would have it. The same for the same image."""
        light_HWC = np.exp(-cv2.transform(_DENSITY_256[image_HWC], np.array(self.rows, np.float32)))
        if not self.scanner:
            return _bytes(light_HWC)
        light_HWC = light_HWC ** np.float32(_GAMMA) * np.array(_TINT, np.float32)
        blurred_HWC = cv2.GaussianBlur(light_HWC, (0, 0), _SIGMA_PX, borderType=cv2.BORDER_REFLECT_101)
        file = simplejpeg.encode_jpeg(_bytes(blurred_HWC), quality=_QUALITY, colorsubsampling="420")
        return simplejpeg.decode_jpeg(file, colorspace="RGB")


CENTRES = {
    "stain A": Centre(((1.25, 0.10, 0.0), (0.0, 0.75, 0.05), (0.05, 0.0, 1.1))),
    "stain B": Centre(((0.7, 0.0, 0.15), (0.1, 1.25, 0.0), (0.0, 0.15, 0.8))),
    "scanner": Centre(((0.9, 0.0, 0.0), (0.0, 1.05, 0.0), (0.0, 0.0, 1.2)), scanner=True),
    "both": Centre(((0.65, 0.1, 0.2), (0.1, 1.3, 0.0), (0.0, 0.1, 1.25)), scanner=True),
}
"""The centres that adaptation is measured on."""

GIEMSA = Centre(((0.45, 0.35, 0.05), (0.35, 0.75, 0.30), (0.10, 0.15, 0.20)))
"""Giemsa as a stain matrix, for stain gates: all hues of Papanicolaou fall together into blue to purple, whose density
is greatest in green and least in blue. The numbers are ours; no slide was measured for them."""


def _bytes(light_HWC: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(255 * light_HWC), 0, 255).astype(np.uint8)
