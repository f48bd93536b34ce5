"""Organ of origin: 30 images of 30 TCGA patients of MoNuSeg 2018 (Kumar et al. 2017), 1000 px, CC BY-NC-SA 4.0.

Not for weights that ship (tier B). doi 10.1109/TMI.2017.2677499. Seven organs; three of them have two patients only.
"""

from training.data.dataset import Dataset
from training.data.organs import CLASSES, load_organs


def load() -> Dataset:
    """All images, sorted by file name. Raises DataMissing."""
    return load_organs("monuseg", "Organ of origin (MoNuSeg)", ("MoNuSeg", "TCGA"), CLASSES, ("nucleus",))
