"""The tiles that an engine is compared and calibrated on: cut from whole slides and from the public tier A patches.

Slides are read through gateway.slides, at the model's own resolution: exactly the tiles that it will be served.
Patches (MANIFEST.csv) are cut without overlap and without scaling. Every eighth tile of an unlabelled patch set is held
back for calibration, so that no engine is judged on what it was calibrated on. Everything is named before it is read: a
set of tiles is a list of places, streamed in batches, and the same data give the same set.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import simplejpeg

from gateway.slides import Slide, TilePlan, find_tissue, plan_tiles, stream_tiles
from training.data import crc9
from training.data.common import Source, data_root, decode_jpeg, read_source, sources_under
from training.errors import DataMissing
from training.files import sha256_file

BATCH = 32
SLIDES = ("cmu_small_he", "csf_breast_pap", "metaplasia_he")
LABELLED = "he_crc9"
PATCHES = (
    LABELLED,
    "he_breakhis",
    "he_oral",
    "he_osteosarcoma",
    "seg_camelyon_tumor",
    "seg_consep",
    "seg_dsb2018",
    "seg_ebhi",
    "seg_glomeruli",
    "cytology_cric",
)
_MOST, _MOST_CALIBRATING = 1500, 100
"""Of one patch set, spread over it: half of all tiles would else be one set of smears."""
_HELD_BACK = 8


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Tiles of one source: images_BHWC uint8 RGB; labels_B int64, a class of `crc9.CLASSES` or -1."""

    source: str
    images_BHWC: np.ndarray
    labels_B: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """Patches cut into tiles: place k of `places_N3` is (picture, top, left)."""

    name: str
    root: Path
    pictures: tuple[Source, ...]
    places_N3: np.ndarray
    tile_px: int

    def __len__(self) -> int:
        return len(self.places_N3)

    def describe(self, chosen_N: np.ndarray) -> str:
        files = "".join(f"{picture.file} {picture.sha256}\n" for picture in self.pictures)
        return files + json.dumps(self.places_N3[chosen_N].tolist())

    def read(self, chosen_N: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        """(image, label) of the chosen places, in their order. Raises DataMissing."""
        image_HWC, held = np.empty(0), -1
        for picture, top, left in self.places_N3[chosen_N].tolist():
            if picture != held:
                image_HWC, held = decode_jpeg(read_source(self.root, self.pictures[picture])), picture
            label = crc9.CLASSES.index(self.pictures[picture].label) if self.name == LABELLED else -1
            yield image_HWC[top : top + self.tile_px, left : left + self.tile_px], label


@dataclass(frozen=True, slots=True, eq=False)
class WholeSlide:
    """A slide's tiles under tissue, in the order of its plan."""

    name: str
    files: tuple[Path, ...]
    plan: TilePlan

    def __len__(self) -> int:
        return len(self.plan)

    def describe(self, chosen_N: np.ndarray) -> str:
        return "".join(f"{sha256_file(file)}\n" for file in self.files) + self.plan.digest + str(chosen_N.tolist())

    def read(self, chosen_N: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        """Only the frames under the chosen tiles are decoded. Raises what gateway.slides raises."""
        kept = {name: getattr(self.plan, name)[chosen_N] for name in ("rows_N", "columns_N", "tissue_N")}
        with Slide.open(self.files) as slide:
            for batch in stream_tiles(slide, replace(self.plan, **kept), batch=BATCH):
                for image_HWC in batch.images_BHWC:
                    yield image_HWC, -1


Origin = Pictures | WholeSlide


@dataclass(frozen=True, slots=True, eq=False)
class TileSet:
    """Chosen tiles of several sources; `chosen` are rising indices into each."""

    origins: tuple[Origin, ...]
    chosen: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return sum(map(len, self.chosen))

    @property
    def sources(self) -> dict[str, int]:
        """Tiles per source."""
        return {origin.name: len(chosen_N) for origin, chosen_N in zip(self.origins, self.chosen, strict=True)}

    @property
    def digest(self) -> str:
        """sha256 over the sources' files and the chosen places."""
        digest = hashlib.sha256()
        for origin, chosen_N in zip(self.origins, self.chosen, strict=True):
            digest.update(f"{origin.name}\n{origin.describe(chosen_N)}\n".encode())
        return digest.hexdigest()

    def sample(self, count: int, seed: int) -> "TileSet":
        """`count` of the tiles (all, where there are fewer), drawn without replacement over all sources."""
        ends = np.cumsum([len(chosen_N) for chosen_N in self.chosen])
        drawn_N = np.sort(np.random.default_rng(seed).permutation(len(self))[:count])
        parts = np.split(drawn_N, np.searchsorted(drawn_N, ends[:-1]))
        starts = [0, *ends[:-1].tolist()]
        chosen = tuple(every[part - start] for every, part, start in zip(self.chosen, parts, starts, strict=True))
        return TileSet(self.origins, chosen)

    def batches(self) -> Iterator[Batch]:
        """All tiles, source by source, at most BATCH at a time: never more than a few batches are in memory."""
        for origin, chosen_N in zip(self.origins, self.chosen, strict=True):
            images: list[np.ndarray] = []
            labels: list[int] = []
            for image_HWC, label in origin.read(chosen_N) if len(chosen_N) else ():
                images.append(image_HWC)
                labels.append(label)
                if len(images) == BATCH:
                    yield Batch(origin.name, np.stack(images), np.array(labels))
                    images, labels = [], []
            if images:
                yield Batch(origin.name, np.stack(images), np.array(labels))


def whole_slide(folder: Path, mpp: float, tile_px: int) -> WholeSlide:
    """The tiles of a folder of DICOM files. Raises what gateway.slides raises of a slide that cannot be read."""
    files = tuple(sorted(folder.glob("*.dcm")))
    with Slide.open(files) as slide:
        return WholeSlide(folder.name, files, plan_tiles(slide, find_tissue(slide), mpp=mpp, tile_px=tile_px))


def agreement_tiles(mpp: float, tile_px: int) -> TileSet:
    """What engines are compared on: every slide's tiles, and the patches that are not held back.

    Raises DataMissing where there are no data, or where a file is not as MANIFEST.csv says.
    """
    root = data_root()
    slides = [whole_slide(root / "slides" / name, mpp, tile_px) for name in SLIDES if (root / "slides" / name).is_dir()]
    patches = [_pictures(root, name, tile_px) for name in PATCHES]
    chosen = [np.arange(len(slide)) for slide in slides] + [_thinned(_judged(patch), _MOST) for patch in patches]
    return TileSet((*slides, *patches), tuple(chosen))


def calibration_tiles(tile_px: int, count: int, seed: int) -> TileSet:
    """`count` tiles of those that are held back, by seed; tier A alone. Raises DataMissing."""
    root = data_root()
    patches = tuple(_pictures(root, name, tile_px) for name in PATCHES)
    held_back = [np.setdiff1d(np.arange(len(patch)), _judged(patch)) for patch in patches]
    chosen = tuple(_thinned(every_N, _MOST_CALIBRATING) for every_N in held_back)
    tiles = TileSet(patches, chosen).sample(count, seed)
    if len(tiles) < count:
        raise DataMissing(f"The data folder holds {len(tiles)} tiles to calibrate on, and {count} are needed.")
    return tiles


def _judged(patch: Pictures) -> np.ndarray:
    every = np.arange(len(patch))
    return every if patch.name == LABELLED else every[every % _HELD_BACK != _HELD_BACK // 2]


def _thinned(every_N: np.ndarray, most: int) -> np.ndarray:
    if len(every_N) <= most:
        return every_N
    return every_N[np.linspace(0, len(every_N) - 1, most).astype(int)]


def _pictures(root: Path, name: str, tile_px: int) -> Pictures:
    pictures = tuple(row for row in sources_under(root, f"{name}/images") if row.tier == "A")
    places = []
    for index, picture in enumerate(pictures):
        height_px, width_px, _, _ = simplejpeg.decode_jpeg_header(read_source(root, picture))
        places += [
            (index, top, left)
            for top in range(0, height_px - tile_px + 1, tile_px)
            for left in range(0, width_px - tile_px + 1, tile_px)
        ]
    return Pictures(name, root, pictures, np.array(places, np.int64).reshape(-1, 3), tile_px)
