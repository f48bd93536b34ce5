"""Colorectal biopsies: 43 images of 32 patients of EBHI-Seg (Shi et al. 2023), 512 px, with region masks, CC BY 4.0.

36 images are polyps; the five other categories have one to three images each, so that the only task by patient is
neoplasia (adenocarcinoma, both grades of intraepithelial neoplasia, serrated adenoma: 6 images of 5 patients) against
polyps and normal gland. Most polyps were published through another copy of the set than the rest: a classifier may tell
the copies apart. No main board should rest on it.
"""

import numpy as np

from training.data.common import data_root, read_table
from training.data.dataset import Dataset, groups_of, images_of, labels_from, masks_of

CATEGORIES = (
    "colorectal adenocarcinoma region",
    "high-grade intraepithelial neoplasia region",
    "low-grade intraepithelial neoplasia region",
    "normal colorectal gland region",
    "colorectal polyp region",
    "serrated adenoma region",
)
CLASSES = ("polyp or normal", "neoplasia")
_NOT_NEOPLASIA = (3, 4)


def load() -> Dataset:
    """All images, sorted by file name. Raises DataMissing."""
    sources = images_of("seg_ebhi")
    rows = {row["image"]: row for row in read_table(data_root(), "seg_ebhi/index.csv")}
    strata_N = labels_from([rows[source.file]["categories"] for source in sources], CATEGORIES)
    return Dataset(
        name="ebhi",
        title="Colorectal neoplasia",
        sources=tuple(sources),
        labels_N=(~np.isin(strata_N, _NOT_NEOPLASIA)).astype(np.int64),
        strata_N=strata_N,
        groups_N=groups_of(sources),
        classes=CLASSES,
        strata=tuple(category.removesuffix(" region") for category in CATEGORIES),
        grouping="patient",
        organ="colon",
        stain="HE",
        mpp=None,
        known_as=("EBHI-Seg", "EBHI"),
        masks=masks_of(sources),
        categories=CATEGORIES,
    )
