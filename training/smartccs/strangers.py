"""What is no cervical smear, to hold adaptation against: squares of H&E tissue, and noise.

A gate has to find both out of scope; and a site that is fitted to the statistics of tissue, instead of the source's,
must not be as good.
"""

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gateway.domain.bethesda import NILM
from gateway.slides.site_colour import ColourMap, Counts, counted
from gateway.slides.site_fit import moments
from gateway.slides.site_state import Source
from training.data.dataset import load as load_set
from training.files import sha256_bytes
from training.smartccs.data import MPP, Field, read_field
from training.smartccs.embed import Look, kept, tissue_counts
from training.smartccs.slide_fit import site_cells
from training.smartccs.trial import Trial

TISSUE = "crc9"
"""Colorectal tissue, H&E, 0.5 µm per pixel."""
_SQUARES, _SIDE_UM, _SEED = 8, 92 * MPP, 2026
"""Of each tile so many squares, as large on the slide as an annotated cell's."""


def tissue_fields(name: str = TISSUE) -> tuple[Field, ...]:
    """A set's tiles as fields whose cells are squares at places of chance, all called NILM. Raises DataMissing."""
    tiles, rng, fields = load_set(name), np.random.default_rng(_SEED), []
    mpp = tiles.mpp or MPP
    for source, group in zip(tiles.sources, tiles.groups_N.tolist(), strict=True):
        extent_2 = np.array(read_field(source).shape[1::-1])
        side = min(_SIDE_UM / mpp, float(extent_2.min()))
        boxes_S4 = np.hstack([rng.uniform(0, extent_2 - side, (_SQUARES, 2)), np.full((_SQUARES, 2), side)])
        fields.append(Field(source, str(group), "validation", mpp, boxes_S4, np.full(_SQUARES, NILM)))
    return tuple(fields)


TISSUE_LOOK = Look("squares of tissue")


def sources_of_tissue(trial: Trial) -> tuple[Source, ...]:
    """By head: the source with the moments of tissue in place of its own. Raises DataMissing."""
    features_ND, found = kept(trial.eye, tissue_fields(), TISSUE_LOOK).features_ND, []
    for each in trial.answerers:
        cells = site_cells(each.head, features_ND)
        moment = moments(features_ND, cells.weigh(features_ND))
        mean_D, deviation_D = (values.astype(np.float32) for values in (moment.mean_D, moment.deviation_D))
        found.append(replace(each.source, mean_D=mean_D, deviation_D=deviation_D))
    return tuple(found)


def noise(image_HWC: np.ndarray) -> np.ndarray:
    """An image of the same shape, (H,W,3) uint8, that is noise; the same for the same image."""
    return np.random.default_rng(zlib.crc32(image_HWC.tobytes())).integers(0, 256, image_HWC.shape, np.uint8)


NOISE_LOOK = Look("annotated places of noise", colour=noise)


def mapped(look: Look, colour: ColourMap) -> Look:
    """A look with its colours mapped, after whatever it does to them."""
    said, before = sha256_bytes(colour.table().tobytes()), look.colour
    then = colour if before is None else lambda image_HWC: colour(before(image_HWC))
    return replace(look, name=f"{look.name}, colours {said}", colour=then)


def all_counts(fields: Sequence[Field], look: Look) -> Counts:
    """The values of the pixels under the tissue of fields; of all pixels where no tissue is found in any."""
    counts_3V = tissue_counts(fields, look)
    if counts_3V.any():
        return counts_3V
    return np.sum([counted(look.picture(field)) for field in fields], axis=0)
