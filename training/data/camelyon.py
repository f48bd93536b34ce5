"""Metastases in lymph nodes: quarters of 32 tiles of CAMELYON with coarse masks (512 px), CC0.

The patients are unknown. A quarter (256 px) is `tumour` where at least three quarters of it are masked and `no tumour`
where at most one quarter is; what lies between has no label, because the masks are coarse.
"""

import numpy as np

from training.data.common import data_root, read_mask
from training.data.dataset import PATIENT_UNKNOWN, Dataset, groups_by_likeness, images_of, masks_of

CLASSES = ("no tumour", "tumour")
_SIDE_PX, _MOST, _LEAST = 256, 0.25, 0.75


def load() -> Dataset:
    """The quarters of all tiles, sorted by file name, then in reading order. Raises DataMissing."""
    sources = images_of("seg_camelyon_tumor")
    masks = masks_of(sources)
    labels, boxes = [], []
    for mask_file in masks:
        mask = read_mask(data_root(), mask_file) > 0
        for top in range(0, mask.shape[0] - _SIDE_PX + 1, _SIDE_PX):
            for left in range(0, mask.shape[1] - _SIDE_PX + 1, _SIDE_PX):
                share = mask[top : top + _SIDE_PX, left : left + _SIDE_PX].mean()
                labels.append(1 if share >= _LEAST else 0 if share <= _MOST else -1)
                boxes.append((left, top, left + _SIDE_PX, top + _SIDE_PX))
    each = len(boxes) // len(sources)
    labels_N = np.array(labels, np.int64)
    return Dataset(
        name="camelyon",
        title="Metastasis in lymph node",
        sources=tuple(source for source in sources for _ in range(each)),
        boxes_N4=np.array(boxes, np.int64),
        labels_N=labels_N,
        strata_N=labels_N,
        groups_N=np.repeat(groups_by_likeness(sources), each),
        classes=CLASSES,
        strata=CLASSES,
        grouping=PATIENT_UNKNOWN,
        organ="lymph node",
        stain="HE",
        mpp=None,
        known_as=("CAMELYON", "CAMELYON16", "CAMELYON17"),
        masks=tuple(mask for mask in masks for _ in range(each)),
        categories=("metastatic breast carcinoma region",),
    )
