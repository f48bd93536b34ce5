"""Which composed slides the stain gate takes for Papanicolaou, by part of the split and centre:

    python -m training.smartccs.composed_stain --slides 6

Composed in memory of the fields as they are, then shown as each simulated centre and in a simulated matrix for Giemsa,
and measured as screening measures, by 64 pixels of each square at the detector's resolution. No patients.
"""

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np

from gateway.slides import pap_stain, quality
from gateway.slides.rescale import rescaled
from training import command
from training.data.split import PARTS
from training.errors import TaskInvalid
from training.smartccs.centres import CENTRES, GIEMSA
from training.smartccs.compose import SOURCE_CENTRE, drawn_class
from training.smartccs.compose_layout import lay_out
from training.smartccs.compose_paint import Painter
from training.smartccs.compose_scene import Scene
from training.smartccs.data import MPP

LOOKS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    SOURCE_CENTRE: lambda image: image,
    **CENTRES,
    "Giemsa": GIEMSA,
}
"""How a slide is shown: (H,W,3) uint8 RGB to the same. Giemsa is to be refused."""
TILE_PX, TILE_MPP = 256, 0.375
"""A quarter of a window, so that a slide of a quarter of the area gives as many pixels as one that is screened."""
SIDE_TILES = 8
_PREVALENCE = 0.4
_SAID: Mapping[str, str] = {"papanicolaou": "accepted", "too little": "not judged"}
"""By verdict; any other is a refusal."""


def composed(scene: Scene, seed: int, number: int, side_tiles: int = SIDE_TILES) -> tuple[str, np.ndarray]:
    """The block that a slide's background is of, and its pixels (S,S,3) uint8 RGB at 0.245 µm. The same for the same
    arguments. Raises DataMissing, TaskInvalid for too small a side."""
    rng = np.random.default_rng((seed, number))
    side_px = round(side_tiles * TILE_PX * TILE_MPP / MPP)
    layout = lay_out(scene, rng, side_px, drawn_class(scene, rng, _PREVALENCE))
    painter = Painter(scene, layout, int(rng.integers(2**31)))
    blocks = {scene.fields[patch.field].group for patch in layout.patches.values()}
    return ", ".join(sorted(blocks)), painter.draw(0, 0, side_px, side_px)


def seen(slide_SS3: np.ndarray) -> np.ndarray:
    """(P,3) uint8 RGB: the pixels that a slide is judged by."""
    side = round(len(slide_SS3) * MPP / TILE_MPP / TILE_PX)
    small = rescaled(slide_SS3, side * TILE_PX, side * TILE_PX)
    tiles = small.reshape(side, TILE_PX, side, TILE_PX, 3).swapaxes(1, 2).reshape(-1, TILE_PX, TILE_PX, 3)
    return quality.colours(quality.measure(np.ascontiguousarray(tiles)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, or 1 with one sentence on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m training.smartccs.composed_stain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--slides", type=int, default=6, metavar="N", help="of each part (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)

    def work() -> None:
        if chosen.slides < 1 or chosen.seed < 0:
            raise TaskInvalid("Ask for one slide at least, and a seed of 0 or more.")
        cv2.setNumThreads(1)
        for part in PARTS:
            _print(part, chosen.slides, chosen.seed)

    return command.status(work, "The slides")


def _print(part: str, slides: int, seed: int) -> None:
    """By centre how many slides are accepted, refused and not judged, then what was measured on each."""
    scene, verdicts = Scene(part), defaultdict(list)
    for number in range(slides):
        block, slide = composed(scene, seed, number)
        for name, look in LOOKS.items():
            verdicts[name].append((block, pap_stain.judge(seen(look(slide)))))
    for name, judged in verdicts.items():
        said = Counter(_SAID.get(stain.verdict, "refused") for _, stain in judged)
        print(
            f"{part}, {name}: {said['accepted']} accepted, {said['refused']} refused, {said['not judged']} not judged"
        )
        for block, stain in judged:
            share, spread_deg = stain.counterstain_share, stain.spread_deg
            print(f"    {block}: {stain.verdict}, counterstains {share:.3f}, hues {spread_deg:.0f}°")


if __name__ == "__main__":
    sys.exit(main())
