"""Nuclei of colorectal adenocarcinoma: 432 patches of 27 fields of CoNSeP (Graham et al. 2019), 256 px, Apache-2.0.

arXiv 1812.06499; 0.25 µm per pixel. A group is a field (1000 px); the patients behind the fields are not told. The
label of a patch is the kind of most of its nuclei. Patches of fewer than five nuclei have none, and so have the six in
which "other" nuclei are most: three parts of a split by field cannot hold them.
"""

import numpy as np

from training.data.common import data_root, read_mask
from training.data.dataset import Dataset, groups_of, images_of, masks_of

CATEGORIES = ("other nucleus", "inflammatory cell", "epithelial nucleus", "spindle-shaped nucleus")
STRATA = ("other nuclei", "inflammatory cells", "epithelial nuclei", "spindle-shaped nuclei")
CLASSES = STRATA[1:]
_FEWEST = 5


def load() -> Dataset:
    """All patches, sorted by file name. Raises DataMissing."""
    sources = images_of("seg_consep")
    masks, instances = masks_of(sources), masks_of(sources, "instances")
    strata_N = np.full(len(sources), -1, np.int64)
    for place, (mask, instance) in enumerate(zip(masks, instances, strict=True)):
        counts = nuclei(read_mask(data_root(), mask), read_mask(data_root(), instance))
        if counts.sum() >= _FEWEST:
            strata_N[place] = counts.argmax()
    return Dataset(
        name="consep",
        title="Kind of most nuclei in colorectal cancer",
        sources=tuple(sources),
        labels_N=np.maximum(strata_N - 1, -1),
        strata_N=strata_N,
        groups_N=groups_of(sources),
        classes=CLASSES,
        strata=STRATA,
        grouping="field",
        organ="colon",
        stain="HE",
        mpp=0.25,
        known_as=("CoNSeP",),
        masks=masks,
        categories=CATEGORIES,
    )


def nuclei(mask_HW: np.ndarray, instances_HW: np.ndarray) -> np.ndarray:
    """(K,) int64: how many nuclei there are of each category; a nucleus is of the category of most of its pixels."""
    inside = instances_HW > 0
    ids, places = np.unique(instances_HW[inside], return_inverse=True)
    votes = np.zeros((len(ids), len(CATEGORIES) + 1), np.int64)
    np.add.at(votes, (places, mask_HW[inside]), 1)
    return np.bincount(votes[:, 1:].argmax(1), minlength=len(CATEGORIES))
