"""Organ of origin: 39 images of 11 TCGA patients of MoNuSAC 2020 (Verma et al. 2021), of many sizes, CC BY-NC-SA 4.0.

Not for weights that ship (tier B). doi 10.1109/TMI.2021.3085712. One of its patients is in MoNuSeg as well.
"""

from training.data.dataset import Dataset
from training.data.organs import CLASSES, load_organs

CATEGORIES = ("epithelial nucleus", "lymphocyte", "macrophage", "neutrophil")


def load() -> Dataset:
    """All images, sorted by file name. Raises DataMissing."""
    return load_organs("monusac", "Organ of origin (MoNuSAC)", ("MoNuSAC", "TCGA"), CLASSES[:4], CATEGORIES)
