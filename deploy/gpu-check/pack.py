"""Pack real tiles for a machine that has no data: `python deploy/gpu-check/pack.py [--out .gpu/tiles.npz]`.

Reads the public data sets of licence tier A (PATHSERVE_DATA) and the whole slides' largest levels, cuts them into tiles
of 224 × 224 pixels without overlap, and encodes them again as JPEG: they serve to compare engines with one another, and
for no claim about image quality. The labelled colorectal tiles keep their own bytes. Slide frames with hardly any
tissue are left out. The file: `jpeg` (bytes end to end), `ends`, `labels` (a class of the tissue head, or -1),
`source`, `names`. Needs pydicom and simplejpeg.
"""

import argparse
import csv
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import simplejpeg
from pydicom.encaps import generate_frames
from tileset import SIDE_PX

HERE = Path(__file__).resolve().parent
LABELLED = "he_crc9"
CLASSES = (
    "adipose",
    "lymphocytes",
    "mucus",
    "smooth muscle",
    "normal colon mucosa",
    "cancer-associated stroma",
    "colorectal adenocarcinoma epithelium",
)
"""The order of the tissue head's outputs."""
SLIDES = ("cmu_small_he", "metaplasia_he", "csf_breast_pap")
SETS = {  # name: at most so many tiles, spread over the set
    "seg_consep": 432,
    "seg_ebhi": 172,
    "seg_camelyon_tumor": 128,
    "seg_glomeruli": 216,
    "he_breakhis": 180,
    "he_oral": 516,
    "he_osteosarcoma": 592,
    "cytology_cric": 800,
}


def pictures(root: Path, name: str) -> Iterator[tuple[bytes, str]]:
    """(JPEG, label) of one set's pictures of licence tier A, sorted by path."""
    with (root / "MANIFEST.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["path"].startswith(f"{name}/images/")]
    for row in sorted(rows, key=lambda row: row["path"]):
        if row["licence_tier"] == "A" and row["path"].endswith(".jpg"):
            yield (root / row["path"]).read_bytes(), row["label"]


def frames(folder: Path) -> Iterator[bytes]:
    """The JPEG frames of a slide's largest level."""
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in sorted(folder.glob("*.dcm"))]
    volumes = [header for header in headers if "VOLUME" in header.ImageType]
    whole = pydicom.dcmread(max(volumes, key=lambda header: header.TotalPixelMatrixColumns).filename)
    yield from generate_frames(whole.PixelData, number_of_frames=int(whole.NumberOfFrames))


def cut(image_HWC: np.ndarray) -> Iterator[np.ndarray]:
    """The picture's whole tiles, row by row."""
    for top in range(0, image_HWC.shape[0] - SIDE_PX + 1, SIDE_PX):
        for left in range(0, image_HWC.shape[1] - SIDE_PX + 1, SIDE_PX):
            yield np.ascontiguousarray(image_HWC[top : top + SIDE_PX, left : left + SIDE_PX])


def tissue_share(image_HWC: np.ndarray) -> float:
    """Share of pixels that are coloured: tissue by its stain, not by its darkness."""
    return float(np.mean(np.ptp(image_HWC.astype(np.int16), axis=2) > 20))


def gather(root: Path, quality: int) -> dict[str, list[tuple[bytes, int]]]:
    """(JPEG, label) of every tile, by source."""

    def encode(image_HWC: np.ndarray) -> tuple[bytes, int]:
        return simplejpeg.encode_jpeg(image_HWC, quality=quality, colorsubsampling="420"), -1

    found = {LABELLED: [(data, CLASSES.index(label)) for data, label in pictures(root, LABELLED)]}
    for name, most in SETS.items():
        images = [tile for data, _ in pictures(root, name) for tile in cut(simplejpeg.decode_jpeg(data))]
        found[name] = [encode(images[k]) for k in np.unique(np.linspace(0, len(images) - 1, most).astype(int))]
    for name in SLIDES:
        tiles = (tile for data in frames(root / "slides" / name) for tile in cut(simplejpeg.decode_jpeg(data)))
        found[name] = [encode(tile) for tile in tiles if tissue_share(tile) > 0.25]
    return found


def pack(found: dict[str, list[tuple[bytes, int]]]) -> dict[str, np.ndarray]:
    """The arrays of the file."""
    every = [entry for entries in found.values() for entry in entries]
    return {
        "jpeg": np.frombuffer(b"".join(data for data, _ in every), np.uint8),
        "ends": np.cumsum([len(data) for data, _ in every]).astype(np.int64),
        "labels": np.array([label for _, label in every], np.int64),
        "source": np.repeat(np.arange(len(found)), [len(entries) for entries in found.values()]),
        "names": np.array(list(found)),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="pack.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE.parents[1] / ".gpu" / "tiles.npz")
    parser.add_argument("--quality", type=int, default=55, help="of the JPEGs (1 to 100)")
    chosen = parser.parse_args(arguments)
    root = Path(os.environ.get("PATHSERVE_DATA") or HERE.parents[2] / "shared" / "data")
    if not (root / "MANIFEST.csv").is_file():
        print("The data are not there: set PATHSERVE_DATA to the folder that holds MANIFEST.csv.", file=sys.stderr)
        return 1
    found = gather(root, chosen.quality)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(chosen.out, **pack(found))
    for name, entries in found.items():
        print(f"{name:20} {len(entries):5} tiles {sum(len(data) for data, _ in entries) / 2**20:6.1f} MiB")
    size = chosen.out.stat().st_size
    print(f"{sum(map(len, found.values()))} tiles, {size / 2**20:.1f} MiB in {chosen.out.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
