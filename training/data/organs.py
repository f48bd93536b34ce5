"""What MoNuSeg and MoNuSAC share: images of TCGA patients, the organ as label, masks of nuclei; 0.25 µm per pixel."""

from training.data.common import data_root, read_table
from training.data.dataset import Dataset, groups_of, images_of, labels_from, masks_of

CLASSES = ("breast", "kidney", "lung", "prostate", "bladder", "colon", "stomach")


def load_organs(
    name: str, title: str, known_as: tuple[str, ...], classes: tuple[str, ...], categories: tuple[str, ...]
) -> Dataset:
    """All images of `seg_<name>`, sorted by file name, with the organ as label. Raises DataMissing."""
    sources = images_of(f"seg_{name}", "AB")
    rows = {row["image"]: row for row in read_table(data_root(), f"seg_{name}/index.csv")}
    labels_N = labels_from([rows[source.file]["organ"] for source in sources], classes)
    return Dataset(
        name=name,
        title=title,
        sources=tuple(sources),
        labels_N=labels_N,
        strata_N=labels_N,
        groups_N=groups_of(sources),
        classes=classes,
        strata=classes,
        grouping="patient",
        organ="several",
        stain="HE",
        mpp=0.25,
        known_as=known_as,
        masks=masks_of(sources),
        categories=categories,
    )
