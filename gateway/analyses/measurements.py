"""What is measured of the objects of a prompt, from their outlines."""

from collections.abc import Iterable

import numpy as np

from gateway.domain.report import ObjectFigures
from gateway.reports.spatial import Outlines


def figures_of(outlines: Iterable[Outlines], tissue_mm2: float) -> ObjectFigures:
    """The figures of all objects; of none there are no sizes. `tissue_mm2`: the tissue that was read.

    A few numbers an object are in memory, never its outline.
    """
    # Copies: a batch's arrays are views of all that was read with them.
    parts = [(batch.area_um2_N.copy(), batch.irregularity_N.copy()) for batch in outlines]
    area_N = np.concatenate([np.zeros(0), *(area for area, _ in parts)])
    if not len(area_N):
        return ObjectFigures(
            count=0,
            density_per_mm2=0.0,
            mean_area_um2=None,
            area_p10_um2=None,
            area_median_um2=None,
            area_p90_um2=None,
            irregularity=None,
        )
    irregularity_N = np.concatenate([irregularity for _, irregularity in parts])
    p10, median, p90 = np.percentile(area_N, [10, 50, 90]).tolist()
    return ObjectFigures(
        count=len(area_N),
        density_per_mm2=len(area_N) / tissue_mm2,
        mean_area_um2=float(area_N.mean()),
        area_p10_um2=p10,
        area_median_um2=median,
        area_p90_um2=p90,
        irregularity=float(np.average(irregularity_N, weights=area_N)),
    )
