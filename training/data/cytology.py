"""The cytology corpus that encoders learn from without labels: windows of smears and of a slide, Papanicolaou-stained.

    python -m training.data.cytology

prints what it holds. The smears are the train part of cric_cells (0.245 µm per pixel); the slide is cerebrospinal fluid
with carcinoma cells of the breast, not of the cervix, read at 0.25 µm per pixel (its spacing is assumed). A window's
side is of chance between two bounds, so that a cell is seen at the scale of a whole field and at that of its own crop:
arXiv 2502.09662 cuts tiles of one side, in which cells are far smaller than its slide classifier sees them.
"""

import hashlib
import json
import sys
from dataclasses import dataclass

import numpy as np

from training import command
from training.data.common import Source
from training.data.corpus import Corpus, Cut, describe, set_part, slide_part, tiled
from training.data.dataset import load
from training.data.seen import Seen

WINDOW_PX = (160, 480)
SLIDES = {"csf_breast_pap": ("Pathology Atlas, cerebrospinal fluid, metastasis of breast carcinoma", "MIT", None)}
_SET, _MPP = "cric_cells", 0.25
_WINDOWS = {_SET: 8, "csf_breast_pap": 4}
"""Windows cut from each tile: few of the slide, so that most are of the cervix."""
_BRIGHT, _DARK, _MOST_EMPTY = 240, 10, 0.85
_SEED = 2026


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """places_N4: int64 tile, left, top, side (px) of each window; sha256: of what went in and how it was cut;
    shuffled: whether a window's pixels change places, so that nothing but its colours is left."""

    tiles: Corpus
    places_N4: np.ndarray
    sha256: str
    shuffled: bool = False

    def __len__(self) -> int:
        return len(self.places_N4)

    @property
    def sources(self) -> tuple[Source, ...]:
        """The files."""
        return self.tiles.sources

    @property
    def seen(self) -> Seen:
        """What a run that learns from it writes into its manifest."""
        return self.tiles.seen

    def read(self, index: int) -> np.ndarray:
        """(side,side,3) uint8 RGB of one window; sides differ."""
        tile, left, top, side = self.places_N4[index].tolist()
        window = np.array(self.tiles.images_NHWC[tile, top : top + side, left : left + side])
        if not self.shuffled:
            return window
        pixels_P3 = np.random.default_rng((_SEED, index)).permutation(window.reshape(-1, 3))
        return pixels_P3.reshape(window.shape)

    def name(self, index: int) -> str:
        """The window's set, group and place, for logs."""
        return f"{self.tiles.name(int(self.places_N4[index, 0]))}/{index}"


def cytology_corpus(window_px: tuple[int, int] = WINDOW_PX, *, shuffled: bool = False) -> Windows:
    """The windows, whose sides lie between `window_px`; equal bounds give whole tiles of one side.

    Tiles and windows that are empty (`filled`) are left out. `shuffled` is for a negative control: the pixels of each
    window in an order of chance, the same whenever it is read. Raises DataMissing, and what gateway.slides raises.
    """
    parts = [set_part(load(_SET)), *(slide_part(name, SLIDES) for name in SLIDES)]
    least, most = window_px
    tiles = tiled(parts, Cut(most, round(0.8 * most), _MPP, filled, (_BRIGHT, _DARK, _MOST_EMPTY)))
    rng, places = np.random.default_rng(_SEED), []
    for tile, name in enumerate(tiles.sets_N.tolist()):
        for _ in range(_WINDOWS[name] if least < most else 1):
            side = int(rng.integers(least, most + 1))
            left, top = rng.integers(0, most - side + 1, 2).tolist()
            if filled(tiles.images_NHWC[tile, top : top + side, left : left + side]):
                places.append((tile, left, top, side))
    said = json.dumps([tiles.sha256, window_px, _WINDOWS, _SEED, *(["shuffled"] if shuffled else [])]).encode()
    return Windows(tiles, np.array(places, np.int64).reshape(-1, 4), hashlib.sha256(said).hexdigest(), shuffled)


def filled(tile_HWC: np.ndarray) -> bool:
    """Whether fewer than 85 % of a tile's pixels have a channel above 240 or below 10: glass, and black edges."""
    empty_HW = (tile_HWC.max(2) > _BRIGHT) | (tile_HWC.min(2) < _DARK)
    return float(empty_HW.mean()) < _MOST_EMPTY


def main() -> int:
    """Exit status 0, or 1 with one sentence on stderr."""

    def work() -> None:
        corpus = cytology_corpus()
        sides = np.percentile(corpus.places_N4[:, 3], (0, 50, 100)).astype(int).tolist()
        print(f"{describe(corpus.tiles)}\n\n{len(corpus)} windows, side (least, median, most): {sides} px")

    return command.status(work, "The corpus")


if __name__ == "__main__":
    sys.exit(main())
