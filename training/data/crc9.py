"""Colorectal tissue tiles: seven classes of CRC-VAL-HE-7K (Kather et al. 2018), 224 px at 0.5 µm per pixel, CC BY 4.0.

The set's patients are unknown (its manifest gives one group for all tiles), so a group here is a set of
near-duplicates, and every figure made with it is labelled `patient-unknown`.
"""

import numpy as np

from training.data.common import Tiles, data_root, decode_jpeg, near_duplicate_groups, read_source, sources_under
from training.errors import DataMissing

DATASET = "CRC-VAL-HE-7K (Kather 2018, zenodo 1214456)"
"""The set's name in MANIFEST.csv."""

CLASSES = (
    "adipose",
    "lymphocytes",
    "mucus",
    "smooth muscle",
    "normal colon mucosa",
    "cancer-associated stroma",
    "colorectal adenocarcinoma epithelium",
)
"""The set's own class names, in the order of the head's outputs."""


def load() -> Tiles:
    """All tiles, sorted by file name. Raises DataMissing."""
    root = data_root()
    sources = sources_under(root, "he_crc9/images")
    if not sources:
        raise DataMissing("The data folder holds no he_crc9 set. Fetch the data again.")
    images = np.stack([decode_jpeg(read_source(root, source)) for source in sources])
    return Tiles(
        images_NHWC=images,
        labels_N=np.array([CLASSES.index(source.label) for source in sources], np.int64),
        groups_N=near_duplicate_groups(images),
        classes=CLASSES,
        grouping="patient-unknown",
        mpp=0.5,
        sources=tuple(sources),
    )
