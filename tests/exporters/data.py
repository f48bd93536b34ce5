"""A data folder of a test's own: coloured pictures, named as MANIFEST.csv names them; and a graph that takes them."""

import csv
from pathlib import Path

import numpy as np
import simplejpeg
from torch import nn

from exporters.tiles import LABELLED
from training.data.crc9 import CLASSES, DATASET
from training.files import sha256_bytes
from training.graphs import Graph, TensorSpec

TILE_PX = 32
FIELDS = ("path", "dataset", "sha256", "licence", "licence_tier", "label")


def write_data(root: Path, sets: dict[str, int], side_px: int, seed: int = 0) -> Path:
    """`sets` says how many pictures of `side_px` each patch set has; the labelled set's take turns with the classes."""
    rng = np.random.default_rng(seed)
    rows = []
    for name, count in sets.items():
        (root / name / "images").mkdir(parents=True)
        for place in range(count):
            coarse = rng.integers(60, 256, (side_px // 8, side_px // 8, 3), dtype=np.uint8)
            picture = np.ascontiguousarray(coarse.repeat(8, 0).repeat(8, 1))
            data = simplejpeg.encode_jpeg(picture, quality=90)
            path = f"{name}/images/{place:03}.jpg"
            (root / path).write_bytes(data)
            labelled = name == LABELLED
            rows.append(
                {
                    "path": path,
                    "dataset": DATASET if labelled else name,
                    "sha256": sha256_bytes(data),
                    "licence": "CC0",
                    "licence_tier": "A",
                    "label": CLASSES[place % len(CLASSES)] if labelled else "",
                }
            )
    with (root / "MANIFEST.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    return root


def tile_graph(network: nn.Module) -> Graph:
    """An encoder of tiles of TILE_PX."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, TILE_PX, TILE_PX, 3), dtype=np.uint8)
    return Graph(
        model="small",
        kind="encoder",
        network=network,
        inputs=(TensorSpec("image", "UINT8", (TILE_PX, TILE_PX, 3)),),
        outputs=(TensorSpec("embedding", "FP32", (8,)),),
        samples=lambda sizes: {"image": images[: sizes["batch"]]},
        card={"tile_px": TILE_PX, "mpp": 0.5, "labels": [], "operating_points": [], "data": []},
    )
