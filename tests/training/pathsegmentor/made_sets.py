"""Small stand-ins for all sets of segmentation, in their folders' layouts: each object has a colour of its own."""

from pathlib import Path

import cv2
import numpy as np

from tests.training.data.made import Made
from training.data.ebhi import CATEGORIES

_COLOURS = ((60, 30, 90), (30, 30, 160), (110, 20, 110), (90, 90, 60), (20, 80, 130), (140, 60, 20))
_EBHI = (5, 5, 5, 5, 5, 1, 1, 4)
_ORGANS = ("breast", "kidney", "lung", "prostate")


def write_sets(root: Path) -> Path:
    """Write them all; the data folder."""
    made = Made(root)
    for field in range(6):
        for patch in range(2):
            _image(made, "consep", f"train_{field}_{patch:03}", (160, 160), range(1, 5), f"consep_train_{field}")
    for number in range(8):
        _image(made, "dsb2018", f"{number:02}", (128, 160), (1,))
    for number in range(6):
        _image(made, "glomeruli", f"glom_{number}", (240, 240), (1,), radius_px=40, each=1)
        _image(made, "camelyon_tumor", f"camelyon_{number}", (512, 512), (1,), radius_px=90, each=2, instances=False)
    rows = []
    for number, category in enumerate(_EBHI):
        _image(made, "ebhi", f"{number}", (240, 240), (category,), f"ebhi_{number}", radius_px=45, instances=False)
        rows.append({"image": f"seg_ebhi/images/{number}.jpg", "categories": CATEGORIES[category - 1]})
    made.table("seg_ebhi/index.csv", rows)
    for name, categories, size in (("monuseg", (1,), (200, 200)), ("monusac", range(1, 5), (110, 130))):
        rows = []
        for number, organ in enumerate(_ORGANS):
            patient = f"TCGA-{name[-2:].upper()}-000{number}"
            _image(made, name, f"{patient}-01Z", size, categories, patient, tier="B")
            rows.append({"image": f"seg_{name}/images/{patient}-01Z.jpg", "organ": organ})
        made.table(f"seg_{name}/index.csv", rows)
    return made.finish()


def _image(
    made: Made,
    name: str,
    stem: str,
    size: tuple[int, int],
    categories: "range | tuple[int, ...]",
    group: str = "",
    *,
    radius_px: int = 7,
    each: int = 3,
    instances: bool = True,
    tier: str = "A",
) -> None:
    """A pale red mosaic with `each` discs of every category; the first disc alone is sure to lie on top."""
    height, width = size
    picture = np.ascontiguousarray(made.mosaic(height, width) // 3 + np.array([150, 110, 130], np.uint8))
    mask, ids = np.zeros(size, np.uint8), np.zeros(size, np.uint16)
    for number, category in enumerate([category for category in categories for _ in range(each)][::-1], 1):
        x, y = (int(made.rng.integers(radius_px, length - radius_px)) for length in (width, height))
        cv2.circle(picture, (x, y), radius_px, _COLOURS[category - 1], -1)
        cv2.circle(mask, (x, y), radius_px, category, -1)
        cv2.circle(ids, (x, y), radius_px, number, -1)
    folder = f"seg_{name}"
    made.image(f"{folder}/images/{stem}.jpg", picture, "", group, tier)
    made.mask(f"{folder}/masks/{stem}.png", mask)
    if instances:
        made.mask(f"{folder}/instances/{stem}.png", ids)
