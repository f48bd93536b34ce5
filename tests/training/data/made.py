"""A made data folder: oral and breast images, and smears with cells, as MANIFEST.csv and the label tables name them.

An image is a mosaic of its own colours, so that no two are alike unless a test makes them so.
"""

import csv
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from training.files import sha256_file

COLUMNS = ("path", "dataset", "label", "group", "sha256", "licence", "licence_tier")


@dataclass
class Made:
    """`rows` is what MANIFEST.csv is to say; `finish` writes it."""

    root: Path
    rows: list[dict[str, str]] = field(default_factory=list)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    def mosaic(self, height_px: int, width_px: int, cell_px: int = 28) -> np.ndarray:
        """An image of coloured squares, pink to purple."""
        cells = self.rng.integers((90, 20, 90), (255, 200, 255), (-(-height_px // cell_px), -(-width_px // cell_px), 3))
        return np.ascontiguousarray(cells.repeat(cell_px, 0).repeat(cell_px, 1)[:height_px, :width_px].astype(np.uint8))

    def image(self, path: str, picture: np.ndarray, label: str = "", group: str = "", tier: str = "A") -> None:
        self._add(path, simplejpeg.encode_jpeg(picture, quality=92), label, group, tier)

    def mask(self, path: str, mask: np.ndarray) -> None:
        self._add(path, cv2.imencode(".png", mask)[1].tobytes(), "", "", "A")

    def table(self, path: str, rows: list[dict[str, str]]) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        with (self.root / path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def vouch(self, path: str, label: str = "", group: str = "", tier: str = "A") -> None:
        """A row of MANIFEST.csv for a file that is there."""
        entry = (path, "made", label, group, sha256_file(self.root / path), "CC0", tier)
        self.rows.append(dict(zip(COLUMNS, entry, strict=True)))

    def finish(self) -> Path:
        self.table("MANIFEST.csv", self.rows)
        return self.root

    def _add(self, path: str, data: bytes, label: str, group: str, tier: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_bytes(data)
        self.vouch(path, label, group, tier)


def oral(made: Made, groups: int = 20, each: int = 2) -> None:
    """`groups` pieces of tissue of `each` images, 224 px; every second piece is carcinoma."""
    labels, rows = ("normal oral epithelium", "oral squamous cell carcinoma"), []
    for group in range(groups):
        for number in range(each):
            file = f"images/{group:02}_{number}.jpg"
            made.image(f"he_oral/{file}", made.mosaic(224, 224), labels[group % 2], f"oral_{group:02}")
            rows.append({"file": file, "magnification": "100x" if group < groups // 2 else "400x"})
    made.table("he_oral/labels.csv", rows)


def breakhis(made: Made) -> None:
    """Twelve patients with an image each, 280 x 400 px, in turn benign and malignant."""
    kinds, rows = (("benign", "fibroadenoma"), ("malignant", "ductal carcinoma")), []
    for patient in range(12):
        label, subtype = kinds[patient % 2]
        file = f"images/{patient:02}.jpg"
        made.image(f"he_breakhis/{file}", made.mosaic(280, 400), label, f"breakhis_{patient:02}")
        rows.append({"file": file, "subtype": subtype, "magnification": "400x"})
    made.table("he_breakhis/labels.csv", rows)


def smears(made: Made) -> None:
    """Six fields of three blocks, 200 x 300 px; a normal and an abnormal cell in each, and one at the very edge."""
    rows = []
    for number in range(6):
        file = f"cric_{number:03}.jpg"
        made.image(f"cytology_cric/images/{file}", made.mosaic(200, 300), "", f"cric_block_{number // 2:02}")
        cells = (("NILM", 100, 80), ("LSIL" if number % 2 else "HSIL", 180.4, 120), ("NILM", 2, 199))
        rows += [{"file_name": file, "label": label, "x": str(x), "y": str(y)} for label, x, y in cells]
    made.table("cytology_cric/cells.csv", rows)
    names = dict.fromkeys(row["file_name"] for row in rows)
    made.table("cytology_cric/fields.csv", [{"file_name": name, "leak_risk": "0"} for name in names])


def consep(made: Made) -> None:
    """Three fields of two patches, 256 px, with six nuclei each of the field's kind; the last patch has two nuclei."""
    for number in range(6):
        name = f"train_{number // 2}_{number % 2:03}"
        mask, instances = np.zeros((256, 256), np.uint8), np.zeros((256, 256), np.uint16)
        for nucleus in range(2 if number == 5 else 6):
            box = slice(20, 40), slice(20 + 30 * nucleus, 40 + 30 * nucleus)
            mask[box], instances[box] = 2 + number // 2, 300 + nucleus
            mask[20:23, box[1]] = 1  # a rim of another kind does not change what the nucleus is
        made.image(f"seg_consep/images/{name}.jpg", made.mosaic(256, 256), "", f"consep_train_{number // 2}")
        made.mask(f"seg_consep/masks/{name}.png", mask)
        made.mask(f"seg_consep/instances/{name}.png", instances)
