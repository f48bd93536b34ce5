"""Nuclei: the 106 stained tissue images of the Data Science Bowl 2018 (Caicedo et al. 2019), 320 x 256 px, CC0.

doi 10.1038/s41592-019-0612-7. Organs and patients are unknown. Two stains: haematoxylin and eosin, and a purple one
whose ground is purple as well; the set does not name them, so the cohort is told by the ground's colour.
"""

from dataclasses import replace

import numpy as np

from training.data.dataset import Dataset
from training.data.unlabelled import load_unlabelled

PURPLE = "purple"
_BLUER = 18
"""Grey levels by which the purple ground's blue exceeds its red."""


def load() -> Dataset:
    """All images, sorted by file name; the cohort is the stain, `HE` or `purple`. Raises DataMissing."""
    dataset = load_unlabelled(
        "dsb2018", "Nuclei in stained tissue", ("DSB2018", "BBBC038"), "unknown organ", "stained tissue", "nucleus"
    )
    bluer_N = [np.median(image[..., 2].astype(np.int64) - image[..., 0]) for image in dataset.images()]
    return replace(dataset, cohort_N=np.where(np.array(bluer_N) < _BLUER, "HE", PURPLE))
