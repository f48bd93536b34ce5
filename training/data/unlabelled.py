"""Images with masks and without classes, of unknown patients: glomeruli and DSB2018."""

import numpy as np

from training.data.dataset import PATIENT_UNKNOWN, Dataset, groups_by_likeness, images_of, masks_of


def load_unlabelled(
    name: str, title: str, known_as: tuple[str, ...], organ: str, stratum: str, category: str, stain: str = "HE"
) -> Dataset:
    """All images of `seg_<name>`, sorted by file name; no item has a label. Raises DataMissing."""
    sources = images_of(f"seg_{name}")
    return Dataset(
        name=name,
        title=title,
        sources=tuple(sources),
        labels_N=np.full(len(sources), -1, np.int64),
        strata_N=np.zeros(len(sources), np.int64),
        groups_N=groups_by_likeness(sources),
        classes=(),
        strata=(stratum,),
        grouping=PATIENT_UNKNOWN,
        organ=organ,
        stain=stain,
        mpp=None,
        known_as=known_as,
        masks=masks_of(sources),
        categories=(category,),
    )
