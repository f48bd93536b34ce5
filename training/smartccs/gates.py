"""What the gates before cervical screening find, on good smears, on simulated bad ones, and on other stains.

`python -m training.smartccs.gates` prints what docs/slides.md says of them: how often groups of images of a source are
taken for Papanicolaou, the figures of smears before and after each damage, and the estimate of squamous cells beside
the nuclei that are annotated. The limits were chosen on these images: none is held out.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from scipy.stats import binomtest

from gateway.slides import Slide, find_tissue, pap_stain, plan_tiles, smear_quality, stream_tiles
from gateway.slides.rescale import rescaled
from gateway.slides.window_stream import stream_windows
from gateway.slides.windows import plan_windows
from training.data.common import data_root
from training.data.dataset import images_of
from training.smartccs import damage
from training.smartccs.centres import CENTRES, GIEMSA
from training.smartccs.data import MPP, Field, load, read_field
from training.smartccs.detecting import scaled

Change = Callable[[np.ndarray], np.ndarray]

TILE_PX, TILE_MPP = 512, 0.375
HE_SETS = (
    *("he_breakhis", "he_crc9", "he_oral", "he_osteosarcoma", "seg_camelyon_tumor", "seg_consep", "seg_dsb2018"),
    *("seg_ebhi", "seg_glomeruli", "seg_monusac", "seg_monuseg"),
)
SLIDES = {"csf_breast_pap": 0.375, "cmu_small_he": 0.5, "metaplasia_he": 0.5}
"""Real slides, and the µm a pixel that they are read at."""
_TOGETHER, _PIXELS, _TILES = 10, 4000, 40
"""How many images of an H&E set are judged together, how many pixels of each image, and the most tiles of a slide."""
COARSE_MPP = 0.5
"""Of a scan at 20×, whose windows are enlarged for the detector."""
DAMAGES: Mapping[str, Change] = {
    "as they are": lambda image: image,
    **CENTRES,
    "blurred, 0.5 µm": lambda image: damage.blurred(image, TILE_MPP, 0.5),
    "blurred, 0.75 µm": lambda image: damage.blurred(image, TILE_MPP, 0.75),
    "blurred, 1.5 µm": lambda image: damage.blurred(image, TILE_MPP, 1.5),
    "blood, 0.3 layers": lambda image: damage.bloody(image, TILE_MPP, 0.3, 0.05),
    "blood, 1 layer": lambda image: damage.bloody(image, TILE_MPP, 1.0, 0.2),
    "blood, 2 layers": lambda image: damage.bloody(image, TILE_MPP),
    "air-dried": lambda image: damage.air_dried(image, TILE_MPP),
    **{f"pen, {ink}": lambda image, ink=ink: damage.marked(image, TILE_MPP, ink, seed=3) for ink in damage.INKS},
}
COARSE: Mapping[str, Change] = {
    "20×": lambda image: image,
    "20×, blurred, 0.5 µm": lambda image: damage.blurred(image, COARSE_MPP, 0.5),
    "20×, blurred, 0.75 µm": lambda image: damage.blurred(image, COARSE_MPP, 0.75),
}
"""Of such scans, before they are enlarged."""
COARSE_SLIDES = ("cmu_small_he", "metaplasia_he")
"""Real slides whose finest level is so. No smear is."""
_SHARES = ("obscured_share", "blood_share", "blurred_share", "air_dried_share", "pen_share")


def main() -> None:
    """Print the tables."""
    cv2.setNumThreads(1)
    fields = [(picture.field, picture.image_HWC) for picture in scaled(load(), TILE_MPP)]
    _print("stain", _stains(fields))
    _print("figures", _damages(fields))
    _print("cells", _cells(fields))


def _print(title: str, rows: Sequence[Sequence[str]]) -> None:
    print(f"\n### {title}\n")
    for number, row in enumerate(rows):
        print("| " + " | ".join(row) + " |")
        if not number:
            print("|" + "---|" * len(row))


def _stains(fields: Sequence[tuple[Field, np.ndarray]]) -> list[list[str]]:
    rows = [["source", "groups", "taken for Papanicolaou"]]
    centres: dict[str, Change] = {"as they are": lambda image: image, **CENTRES, "GIEMSA": GIEMSA}
    for name, centre in centres.items():
        rows.append(_verdicts(f"cytology_cric, {name}", ((field.group, centre(image)) for field, image in fields)))
    for folder in HE_SETS:
        images = ((str(n // _TOGETHER), read_field(source)) for n, source in enumerate(images_of(folder, "AB")))
        rows.append(_verdicts(folder, images))
    for folder, mpp in SLIDES.items():
        rows.append(_verdicts(folder, (("slide", image) for image in _tiles(data_root() / "slides" / folder, mpp))))
    return rows


def _verdicts(source: str, images: Iterator[tuple[str, np.ndarray]]) -> list[str]:
    """A row: the source, how many groups of its images there are, and the part of them taken for Papanicolaou."""
    rng, by_group = np.random.default_rng(0), defaultdict(list)
    for group, image in images:
        pixels_P3 = image.reshape(-1, 3)
        by_group[group].append(pixels_P3[rng.choice(len(pixels_P3), min(_PIXELS, len(pixels_P3)), replace=False)])
    verdicts = [pap_stain.judge(np.concatenate(pixels)).verdict for pixels in by_group.values()]
    accepted, judged = verdicts.count("papanicolaou"), len(verdicts) - verdicts.count("too little")
    exact = binomtest(accepted, judged).proportion_ci()
    return [source, str(judged), f"{accepted / judged:.2f} [{exact.low:.2f}, {exact.high:.2f}]"]


def _tiles(folder: Path, mpp: float) -> Iterator[np.ndarray]:
    with Slide.open(sorted(folder.glob("*.dcm"))) as slide:
        plan = plan_tiles(slide, find_tissue(slide), mpp=mpp, tile_px=TILE_PX)
        tiles = (image for batch in stream_tiles(slide, plan, batch=4) for image in batch.images_BHWC)
        for _, image in zip(range(_TILES), tiles, strict=False):
            yield image


def _windows(folder: Path) -> Iterator[np.ndarray]:
    """As the detector sees them."""
    with Slide.open(sorted(folder.glob("*.dcm"))) as slide:
        plan = plan_windows(
            slide, find_tissue(slide), mpp=TILE_MPP, side_px=TILE_PX, region=None, min_tissue=0.1, overlap_px=0
        )
        batches = stream_windows(slide, plan, batch=4, resize=rescaled)
        for _, image in zip(range(_TILES), (image for batch in batches for image in batch.images_BHWC), strict=False):
            yield image


def _damages(fields: Sequence[tuple[Field, np.ndarray]]) -> list[list[str]]:
    shares = (name.removesuffix("_share") for name in _SHARES)
    rows = [["smears", "squamous cells", *shares, "focus, median (least)", "ms a tile"]]
    for name, change in DAMAGES.items():
        tiles = ((field.group, change(image[:TILE_PX, :TILE_PX].copy())) for field, image in fields)
        rows.append(_damaged(name, tiles))
    coarse, side = scaled(load(), COARSE_MPP), round(TILE_PX * TILE_MPP / COARSE_MPP)
    for name, change in COARSE.items():
        tiles = (
            (picture.field.group, rescaled(change(picture.image_HWC[:side, :side].copy()), TILE_PX, TILE_PX))
            for picture in coarse
        )
        rows.append(_damaged(name, tiles))
    slides = [(folder, data_root() / "slides" / folder) for folder in COARSE_SLIDES]
    return rows + [_damaged(folder, ((folder, window) for window in _windows(path))) for folder, path in slides]


def _damaged(name: str, tiles: Iterator[tuple[str, np.ndarray]]) -> list[str]:
    """A row: the figures of all tiles, in brackets the least and the greatest of a block."""
    by_block, seconds = defaultdict(list), 0.0
    for block, tile_HWC in tiles:
        began = time.process_time()
        by_block[block].append(smear_quality.measure(tile_HWC[None], TILE_MPP))
        seconds += time.process_time() - began
    rows_NF = np.concatenate([row for rows_N1F in by_block.values() for row in rows_N1F])
    blocks, whole = [_figures(rows_N1F) for rows_N1F in by_block.values()], _figures([rows_NF])
    shares = [
        f"{getattr(whole, share):.2f} ({min(each):.2f} to {max(each):.2f})"
        for share in _SHARES
        for each in [[getattr(block, share) for block in blocks]]
    ]
    focus_N = rows_NF[:, smear_quality.FIGURES.index("focus")]
    focus = f"{np.median(focus_N):.3f} ({focus_N.min():.3f})"
    return [name, str(whole.squamous_cells), *shares, focus, f"{1000 * seconds / len(rows_NF):.1f}"]


def _cells(fields: Sequence[tuple[Field, np.ndarray]]) -> list[list[str]]:
    """Of each block the nuclei that are annotated in the fields' first tiles, and the estimate."""
    rows = [["block", "part", "fields", "annotated", "estimated", "estimated over annotated"]]
    by_block, parts, annotated = defaultdict(list), {}, Counter[str]()
    for field, image in fields:
        by_block[field.group].append(smear_quality.measure(image[None, :TILE_PX, :TILE_PX].copy(), TILE_MPP))
        middles_N2 = (field.corners[:, :2] + field.corners[:, 2:]) / 2 * MPP / TILE_MPP
        annotated[field.group] += int((middles_N2 < TILE_PX).all(1).sum())
        parts[field.group] = field.part
    for block, rows_N1F in sorted(by_block.items()):
        known, estimated = annotated[block], _figures(rows_N1F).squamous_cells
        rows.append([block, parts[block], str(len(rows_N1F)), str(known), str(estimated), f"{estimated / known:.2f}"])
    return rows


def _figures(rows_N1F: Sequence[np.ndarray]) -> smear_quality.SmearFigures:
    return smear_quality.summarise(np.concatenate(rows_N1F), (TILE_PX * TILE_MPP) ** 2)


if __name__ == "__main__":
    main()
