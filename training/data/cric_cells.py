"""Cells of conventional Pap smears: 3840 nuclei in 161 fields of CRIC Cervix (Rezende et al. 2021), CC BY 4.0.

doi 10.1038/s41597-021-00933-8; 0.245 µm per pixel. An item is the square of 92 px (22.5 µm) that the set draws around
an annotated nucleus, resized to 224 px (0.10 µm per pixel). A group is a block of images (13 blocks); the patients are
not told. Carcinoma lies in two blocks, so six classes cannot stand in three parts: the task is NILM or abnormal.
"""

import numpy as np

from training.data.common import data_root, read_table
from training.data.dataset import Dataset, groups_of, images_of, labels_from

BETHESDA = ("NILM", "ASC-US", "LSIL", "ASC-H", "HSIL", "SCC")
CLASSES = ("NILM", "abnormal")
BOX_PX, TILE_PX = 92, 224


def load() -> Dataset:
    """All cells, sorted by field, then as the table lists them. Raises DataMissing."""
    images = {source.file: source for source in images_of("cytology_cric")}
    rows = read_table(data_root(), "cytology_cric/cells.csv")
    rows.sort(key=lambda row: row["file_name"])
    sources = tuple(images[f"cytology_cric/images/{row['file_name']}"] for row in rows)
    strata_N = labels_from([row["label"] for row in rows], BETHESDA)
    corners_N2 = np.rint([(float(row["x"]), float(row["y"])) for row in rows]).astype(np.int64) - BOX_PX // 2
    return Dataset(
        name="cric_cells",
        title="Abnormal cervical cells",
        sources=sources,
        boxes_N4=np.hstack([corners_N2, corners_N2 + BOX_PX]),
        tile_px=TILE_PX,
        labels_N=np.minimum(strata_N, 1),
        strata_N=strata_N,
        groups_N=groups_of(sources),
        classes=CLASSES,
        strata=BETHESDA,
        grouping="image block",
        organ="cervix",
        stain="PAP",
        mpp=0.245 * BOX_PX / TILE_PX,
        known_as=("CRIC",),
    )
