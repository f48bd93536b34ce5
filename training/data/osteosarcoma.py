"""Osteosarcoma, viable, non-viable and no tumour: 37 images of 1024 px (UT Southwestern / UT Dallas, TCIA), CC BY 3.0.

Two cases: all viable tumour is of one and all non-viable tumour of the other, so no split by case can hold the classes
and a classifier may tell the cases apart rather than the tissue. Groups are near-duplicates; every figure is
`patient-unknown`.
"""

from training.data.dataset import PATIENT_UNKNOWN, Dataset, groups_by_likeness, images_of, labels_from

CLASSES = ("non-tumor", "non-viable tumor", "viable tumor")


def load() -> Dataset:
    """All images, sorted by file name. Raises DataMissing."""
    sources = images_of("he_osteosarcoma")
    labels_N = labels_from([source.label for source in sources], CLASSES)
    return Dataset(
        name="osteosarcoma",
        title="Osteosarcoma viability",
        sources=tuple(sources),
        labels_N=labels_N,
        strata_N=labels_N,
        groups_N=groups_by_likeness(sources),
        classes=CLASSES,
        strata=CLASSES,
        grouping=PATIENT_UNKNOWN,
        organ="bone",
        stain="HE",
        mpp=None,
        known_as=("Osteosarcoma-Tumor-Assessment",),
    )
