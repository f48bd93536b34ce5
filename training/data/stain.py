"""How the images that a network learned from are stained, for the `stain_reference` of its card."""

from typing import Any

import numpy as np

from gateway.slides.quality import colours, measure
from gateway.slides.stain import stain_figures
from training.data.dataset import Dataset

IMAGES = 500
"""As many images say it as well as all: single groups of ten lie within 3 degrees of their laboratory's mean."""


def stain_reference(images: Dataset) -> dict[str, Any] | None:
    """The directions of haematoxylin and eosin as the gateway measures them on a slide (Macenko et al., ISBI 2009).

    None where too few pixels are stained. Raises DataMissing.
    """
    chosen = np.unique(np.linspace(0, len(images) - 1, min(len(images), IMAGES)).astype(int))
    rows_NF = np.concatenate([measure(images.read(int(index))[None]) for index in chosen])
    found = stain_figures(colours(rows_NF), None)
    if found is None:
        return None
    origin = f"Macenko 2009 over {len(chosen)} of {len(images)} images of {images.title}"
    return {"haematoxylin": list(found.haematoxylin), "eosin": list(found.eosin), "origin": origin}
