"""The tiles that the machine is given: one file made by pack.py; seeded noise where it is absent."""

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SIDE_PX = 224


@dataclass(frozen=True, slots=True)
class TileSet:
    """images_NHWC uint8 RGB; labels_N int64, a class of the tissue head or -1; `real` is False for noise."""

    images_NHWC: np.ndarray
    labels_N: np.ndarray
    sources: dict[str, int]
    real: bool

    def describe(self) -> dict[str, Any]:
        return {"tiles": len(self.images_NHWC), "real": self.real, "sources": self.sources}


def load(path: Path | None, side_px: int = SIDE_PX, most: int | None = None) -> TileSet:
    """The tiles of a file of pack.py (JPEGs end to end, offsets, labels, sources), or 256 tiles of noise."""
    if path is None or not path.is_file():
        return noise(most or 256, side_px)
    with np.load(path, allow_pickle=False) as file:
        data, ends, labels, source, names = (file[key] for key in ("jpeg", "ends", "labels", "source", "names"))
    ends, labels, source = ends[:most], labels[:most], source[:most]
    raw = data.tobytes()
    decode = decoder()
    starts = [0, *ends[:-1].tolist()]
    with ThreadPoolExecutor() as pool:
        images = list(pool.map(lambda span: decode(raw[span[0] : span[1]]), zip(starts, ends.tolist(), strict=True)))
    cut = np.stack([image[:side_px, :side_px] for image in images])
    counts = {str(name): int(np.count_nonzero(source == index)) for index, name in enumerate(names)}
    return TileSet(cut, labels.astype(np.int64), counts, True)


def noise(count: int, side_px: int) -> TileSet:
    """Seeded noise with some structure: blocks of colour and fine grain."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 8, 8, 3)).repeat(-(-side_px // 8), 1).repeat(-(-side_px // 8), 2)
    grain = rng.integers(-24, 25, (count, side_px, side_px, 3))
    images = np.clip(coarse[:, :side_px, :side_px] + grain, 0, 255).astype(np.uint8)
    return TileSet(images, np.full(count, -1, np.int64), {"noise": count}, False)


def decoder() -> Any:
    """JPEG bytes to (H,W,3) uint8 RGB, by whichever decoder the machine has. Raises ImportError where it has none."""
    try:
        from PIL import Image

        return lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except ImportError:
        import cv2

        return lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
