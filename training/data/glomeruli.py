"""Glomeruli of the kidney: 24 tiles of 768 px with masks (public kidney data of Kaggle); CC BY 4.0.

The patients are unknown. Stained with periodic acid-Schiff.
"""

from training.data.dataset import Dataset
from training.data.unlabelled import load_unlabelled


def load() -> Dataset:
    """All tiles, sorted by file name. Raises DataMissing."""
    return load_unlabelled(
        "glomeruli", "Glomeruli", ("HuBMAP kidney",), "kidney", "cortex with glomeruli", "glomerulus", stain="PAS"
    )
