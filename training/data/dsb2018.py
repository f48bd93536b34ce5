"""Nuclei: the 106 stained tissue images of the Data Science Bowl 2018 (Caicedo et al. 2019), 320 x 256 px, CC0.

doi 10.1038/s41592-019-0612-7. Organs and patients are unknown.
"""

from training.data.dataset import Dataset
from training.data.unlabelled import load_unlabelled


def load() -> Dataset:
    """All images, sorted by file name. Raises DataMissing."""
    return load_unlabelled("dsb2018", "Nuclei in stained tissue", "unknown organ", "stained tissue", "nucleus")
