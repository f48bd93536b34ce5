"""Where the data lies, and what MANIFEST.csv says of each file."""

import csv
import io
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from training.errors import DataMissing
from training.files import sha256_bytes

_CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Source:
    """One data file as a run's manifest names it. `tier` A (CC0, CC BY, Apache, MIT) may go into weights that ship;
    `group` is the manifest's word for what must stay together (patient, field, block), empty where it has none."""

    file: str
    dataset: str
    sha256: str
    licence: str
    tier: str
    label: str
    group: str = ""

    @property
    def set(self) -> str:
        """The set's folder: `he_oral`."""
        return self.file.split("/", 1)[0]


def data_root() -> Path:
    """The data folder: PATHSERVE_DATA, or `shared/data` beside the checkout. Raises DataMissing."""
    root = Path(os.environ.get("PATHSERVE_DATA") or _CHECKOUT.parent / "shared" / "data")
    if not (root / "MANIFEST.csv").is_file():
        raise DataMissing(
            "The training data are not there: no MANIFEST.csv in the data folder. "
            "Set PATHSERVE_DATA to the folder that holds it and run again."
        )
    return root


@cache
def manifest(root: Path) -> dict[str, Source]:
    """MANIFEST.csv's rows by path."""
    with (root / "MANIFEST.csv").open(newline="", encoding="utf-8") as file:
        return {
            row["path"]: Source(
                row["path"],
                row["dataset"],
                row["sha256"],
                row["licence"],
                row["licence_tier"],
                row["label"],
                row.get("group") or "",
            )
            for row in csv.DictReader(file)
        }


def sources_under(root: Path, folder: str) -> list[Source]:
    """The manifest's image rows below `folder`, sorted by path."""
    return sorted((row for path, row in manifest(root).items() if path.startswith(f"{folder}/")), key=lambda r: r.file)


def require_tier(source: Source, tiers: str) -> None:
    """Raises DataMissing where the source's licence tier is none of `tiers`."""
    if source.tier not in tiers:
        raise DataMissing(
            f"{source.file} is of licence tier {source.tier}; weights that ship are trained on tier A only."
        )


def read_source(root: Path, source: Source, tiers: str = "A") -> bytes:
    """A data file's bytes. Raises DataMissing where it is absent, differs from its row, or is of another tier."""
    require_tier(source, tiers)
    path = source.file
    try:
        data = (root / path).read_bytes()
    except OSError:
        raise DataMissing(f"{path} is named in MANIFEST.csv but cannot be read. Fetch the data again.") from None
    _require_same(data, source)
    return data


def read_table(root: Path, path: str) -> list[dict[str, str]]:
    """A label table's rows. Raises DataMissing where it is absent, or differs from the row that MANIFEST.csv has for
    it."""
    try:
        data = (root / path).read_bytes()
    except OSError:
        raise DataMissing(f"The data folder holds no {path}. Fetch the data again.") from None
    if path in manifest(root):
        _require_same(data, manifest(root)[path])
    return list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))


def _require_same(data: bytes, source: Source) -> None:
    if sha256_bytes(data) != source.sha256:
        raise DataMissing(f"{source.file} differs from its sha256 in MANIFEST.csv. Fetch the data again.")


def decode_jpeg(data: bytes) -> np.ndarray:
    """(H,W,3) uint8 RGB, by the same decoder that serves slides. Raises ValueError for what is no JPEG."""
    return simplejpeg.decode_jpeg(data, colorspace="RGB")


def read_image(root: Path, source: Source, tiers: str = "A") -> np.ndarray:
    """(H,W,3) uint8 RGB of a data file. Raises DataMissing, also where it is damaged."""
    data = read_source(root, source, tiers)
    try:
        return decode_jpeg(data)
    except ValueError:
        raise DataMissing(f"{source.file} cannot be decoded: it is damaged. Fetch the data again.") from None


def read_mask(root: Path, source: Source, tiers: str = "A") -> np.ndarray:
    """(H,W) uint8 or uint16 of a PNG: category numbers, or instances. Raises DataMissing, also where it is damaged."""
    mask = cv2.imdecode(np.frombuffer(read_source(root, source, tiers), np.uint8), cv2.IMREAD_UNCHANGED)
    if mask is None or mask.ndim != 2:
        raise DataMissing(f"{source.file} is not a mask of one channel. Fetch the data again.")
    return mask
