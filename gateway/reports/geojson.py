"""Report -> GeoJSON (RFC 7946) as QuPath reads it: the regions of one slide in pixels of the finest level."""

import json
from typing import Any
from uuid import UUID

from pydicom import Dataset

from gateway.domain.report import Report, TissueClass
from gateway.domain.uids import derive_uid
from gateway.operations.errors import PathserveError
from gateway.reports import wording
from gateway.reports.regions import Region, Ring, regions_of
from gateway.reports.spatial import SlideSource

_DECIMALS = 3
_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def to_geojson(report: Report, source: SlideSource) -> bytes:
    """A FeatureCollection, UTF-8: one locked annotation object a region, holes as inner rings.

    Coordinates are full-resolution pixels from the slide image's top left, which is QuPath's plane and not RFC 7946's
    WGS 84 (section 4 allows that by prior arrangement). Outer rings run anticlockwise by their coordinates' signs
    (section 3.1.6). Without a region the collection is empty. Raises PathserveError where the report lacks the grid.
    """
    result = next((result for result in report.tissue if result.series == source.series), None)
    classes = {tissue.index: tissue for tissue in result.classes} if result else {}
    exploratory = bool(result and result.exploratory)
    to_finest = _Scale(source.image, source.levels[0])
    # One feature at a time: a slide of a hundred thousand regions is never held as a tree of objects.
    features = ",".join(
        _json(_feature(report, source, classes[region.index], region, exploratory, to_finest))
        for region in regions_of(report, source)
    )
    # A foreign member (section 6.1): who reads the file without QuPath finds what it is.
    about = {
        "analysis": report.analysis_id,
        "series": source.series,
        "state": report.state.value,
        "exploratory": exploratory,
        "statements": [
            wording.RESEARCH_USE,
            wording.PRELIMINARY,
            *([wording.EXPLORATORY] if exploratory else []),
            report.statement,
        ],
    }
    return f'{{"type":"FeatureCollection","features":[{features}],"pathserve":{_json(about)}}}\n'.encode()


class _Scale:
    """From pixels of one level to those of the finest."""

    def __init__(self, level: Dataset, finest: Dataset) -> None:
        self._limits = int(finest.TotalPixelMatrixColumns), int(finest.TotalPixelMatrixRows)
        sizes = int(level.TotalPixelMatrixColumns), int(level.TotalPixelMatrixRows)
        if min(sizes) < 1 or min(self._limits) < 1:
            raise PathserveError("The slide's header gives a level no size. Check the slide.")
        self._factors = _factor(self._limits[0], sizes[0]), _factor(self._limits[1], sizes[1])

    def ring(self, ring_K2: Ring) -> list[list[float]]:
        """A closed ring of positions, on the finest level and not beyond it."""
        (across, down), (right, bottom) = self._factors, self._limits
        corners = [[_tidy(min(x * across, right)), _tidy(min(y * down, bottom))] for x, y in ring_K2.tolist()]
        return [*corners, corners[0]]


def _factor(large: int, small: int) -> float:
    """How many finest pixels a pixel spans: a whole number where the smaller size is the larger one's, rounded."""
    whole = round(large / small)
    return whole if abs(whole * small - large) < whole else large / small


def _tidy(value: float) -> float:
    return int(value) if value == int(value) else round(value, _DECIMALS)


def _feature(
    report: Report, source: SlideSource, tissue: TissueClass, region: Region, exploratory: bool, to_finest: _Scale
) -> dict[str, Any]:
    uid = derive_uid(report.analysis_id, f"region/{source.series}/class-{region.index}/{region.number}")
    name = f"{tissue.code.display} {region.number}"
    return {
        "type": "Feature",
        "id": str(UUID(int=int(uid.rsplit(".", 1)[1]))),
        "geometry": {"type": "Polygon", "coordinates": [to_finest.ring(ring) for ring in region.rings]},
        "properties": {
            "objectType": "annotation",
            "name": f"{name} (exploratory)" if exploratory else name,
            "classification": {
                "name": tissue.code.display,
                "color": [int(tissue.color[at : at + 2], 16) for at in (1, 3, 5)],
            },
            "isLocked": True,
            "measurements": {
                "Mean probability": region.mean_probability,
                "Max probability": region.max_probability,
                "Tissue area mm^2": region.tissue_area_mm2,
                "Outline area mm^2": region.area_mm2,
                "Tiles": region.tiles,
            },
            "metadata": {
                "code": tissue.code.code,
                "scheme": tissue.code.scheme,
                "use": wording.document_title(report),
            },
        },
    }
