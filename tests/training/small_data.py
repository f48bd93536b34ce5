"""A small stand-in for the data folder: seven classes of four small tiles each, with a MANIFEST.csv that holds."""

import csv
from pathlib import Path

import numpy as np
import simplejpeg

from training.data.crc9 import CLASSES
from training.files import sha256_file

TILE_PX = 48
COLUMNS = ("path", "dataset", "label", "sha256", "licence", "licence_tier")


def write_small_data(root: Path) -> None:
    """A class has its own colour."""
    (root / "he_crc9" / "images").mkdir(parents=True)
    rng, rows = np.random.default_rng(5), []
    for place, label in enumerate(CLASSES):
        colour = [190 if place >> channel & 1 else 60 for channel in range(3)]
        for number in range(4):
            tile = np.clip(colour + rng.normal(0, 18, (TILE_PX, TILE_PX, 3)), 0, 255).astype(np.uint8)
            path = f"he_crc9/images/{label.replace(' ', '-')}-{number}.jpg"
            (root / path).write_bytes(simplejpeg.encode_jpeg(tile, quality=95))
            entry = (path, "synthetic", label, sha256_file(root / path), "CC0", "A")
            rows.append(dict(zip(COLUMNS, entry, strict=True)))
    write_manifest(root, rows)


def read_manifest(root: Path) -> list[dict[str, str]]:
    with (root / "MANIFEST.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_manifest(root: Path, rows: list[dict[str, str]]) -> None:
    with (root / "MANIFEST.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
