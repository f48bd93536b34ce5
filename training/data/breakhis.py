"""Benign against malignant tumours of the breast: 30 images of 20 patients of BreaKHis (Spanhol et al. 2016).

CC BY 4.0, doi 10.1109/TBME.2015.2496264. A group is a patient. 30 images carry no strong claim.
"""

import numpy as np

from training.data.common import data_root, read_table
from training.data.dataset import Dataset, groups_of, images_of, labels_from

CLASSES = ("benign", "malignant")
SUBTYPES = (
    "fibroadenoma",
    "phyllodes tumor",
    "tubular adenoma",
    "ductal carcinoma",
    "lobular carcinoma",
    "mucinous carcinoma",
    "papillary carcinoma",
)


def load() -> Dataset:
    """All images, sorted by file name; the cohort is the magnification. Raises DataMissing."""
    sources = images_of("he_breakhis")
    rows = {f"he_breakhis/{row['file']}": row for row in read_table(data_root(), "he_breakhis/labels.csv")}
    return Dataset(
        name="breakhis",
        title="Benign or malignant breast tumour",
        sources=tuple(sources),
        labels_N=labels_from([source.label for source in sources], CLASSES),
        strata_N=labels_from([rows[source.file]["subtype"] for source in sources], SUBTYPES),
        groups_N=groups_of(sources),
        classes=CLASSES,
        strata=SUBTYPES,
        grouping="patient",
        organ="breast",
        stain="HE",
        mpp=None,
        known_as=("BreaKHis",),
        cohort_N=np.array([rows[source.file]["magnification"] for source in sources]),
    )
