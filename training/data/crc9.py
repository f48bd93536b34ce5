"""Colorectal tissue tiles: seven classes of CRC-VAL-HE-7K (Kather et al. 2018), 224 px at 0.5 µm per pixel, CC BY 4.0.

The set's patients are unknown (its manifest gives one group for all tiles), so a group here is a set of
near-duplicates, and every figure made with it is labelled `patient-unknown`.
"""

from training.data.dataset import PATIENT_UNKNOWN, Dataset, groups_by_likeness, images_of, labels_from

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


def load() -> Dataset:
    """All tiles, sorted by file name. Raises DataMissing."""
    sources = images_of("he_crc9")
    labels_N = labels_from([source.label for source in sources], CLASSES)
    return Dataset(
        name="crc9",
        title="Colorectal tissue type",
        sources=tuple(sources),
        labels_N=labels_N,
        strata_N=labels_N,
        groups_N=groups_by_likeness(sources),
        classes=CLASSES,
        strata=CLASSES,
        grouping=PATIENT_UNKNOWN,
        organ="colon",
        stain="HE",
        mpp=0.5,
        known_as=("CRC-VAL-HE-7K", "CRC-VAL-HE", "NCT-CRC-HE"),
    )
