"""Oral squamous cell carcinoma against normal epithelium: 516 images of 224 px (Rahman et al. 2020), CC0 / CC BY 4.0.

A group is a connected component of overlapping tissue, not a patient: tiles of one patient may lie on both sides of a
split. Joined with its near-duplicates, one group holds both labels: the set has label noise. The images were resized,
so their µm per pixel is unknown.
"""

import numpy as np

from training.data.common import data_root, read_table
from training.data.dataset import Dataset, groups_of, images_of, labels_from

CLASSES = ("normal oral epithelium", "oral squamous cell carcinoma")


def load() -> Dataset:
    """All images, sorted by file name; the cohort is the magnification. Raises DataMissing."""
    sources = images_of("he_oral")
    rows = {f"he_oral/{row['file']}": row for row in read_table(data_root(), "he_oral/labels.csv")}
    labels_N = labels_from([source.label for source in sources], CLASSES)
    return Dataset(
        name="oral",
        title="Oral squamous cell carcinoma",
        sources=tuple(sources),
        labels_N=labels_N,
        strata_N=labels_N,
        groups_N=groups_of(sources),
        classes=CLASSES,
        strata=CLASSES,
        grouping="connected tissue",
        organ="oral cavity",
        stain="HE",
        mpp=None,
        known_as=("Oral OSCC",),
        cohort_N=np.array([rows[source.file]["magnification"] for source in sources]),
    )
