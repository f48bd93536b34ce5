import json
import tempfile
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pydicom
import pytest

from gateway.domain.report import Report
from gateway.operations.errors import PathserveError
from gateway.reports import SlideSource
from gateway.reports.geojson import write_geojson
from gateway.reports.regions import regions_of
from tests.reports.conftest import COMMITTED, source_of, volume_headers
from tests.reports.drawn import POOR, REAL_SLIDES, drawn, poor, real_levels, ring_area


def to_geojson(report: Report, source: SlideSource) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tissue-1.geojson"
        write_geojson(path, report, source)
        return path.read_bytes()


def collection(report: Report, source: SlideSource) -> dict[str, Any]:
    """The parsed file, after every rule of RFC 7946 that concerns it, and QuPath's own."""
    text = to_geojson(report, source).decode()
    document: dict[str, Any] = json.loads(text)
    assert document["type"] == "FeatureCollection"
    finest = source.levels[0]
    for feature in document["features"]:
        assert feature["type"] == "Feature"
        assert str(UUID(feature["id"])) == feature["id"]
        assert feature["geometry"]["type"] == "Polygon"
        for number, ring in enumerate(feature["geometry"]["coordinates"]):
            assert ring[0] == ring[-1]
            assert len(ring) >= 5
            assert (ring_area(np.array(ring[:-1])) > 0) == (number == 0)  # 3.1.6: outer anticlockwise, holes clockwise
            assert np.min(ring) >= 0
            assert (np.max(ring, axis=0) <= [finest.TotalPixelMatrixColumns, finest.TotalPixelMatrixRows]).all()
        properties = feature["properties"]
        assert properties["objectType"] == "annotation"
        assert len(properties["classification"]["color"]) == 3
        assert all(0 <= channel <= 255 for channel in properties["classification"]["color"])
        assert all(isinstance(value, int | float) for value in properties["measurements"].values())
        assert all(isinstance(value, str) for value in properties["metadata"].values())
    ids = [feature["id"] for feature in document["features"]]
    assert len(set(ids)) == len(ids)
    return document


def areas(document: dict[str, Any]) -> Iterator[float]:
    for feature in document["features"]:
        yield sum(ring_area(np.array(ring[:-1])) for ring in feature["geometry"]["coordinates"])


@pytest.mark.parametrize("name", REAL_SLIDES)
def test_every_region_with_its_holes(name: str) -> None:
    report, source = drawn(real_levels(name), patch=20)
    document = collection(report, source)
    regions = list(regions_of(report, source))
    classes = {tissue.index: tissue for tissue in report.tissue[0].classes}
    assert any(len(region.rings) > 1 for region in regions)
    for feature, region in zip(document["features"], regions, strict=True):
        tissue, properties = classes[region.index], feature["properties"]
        rings = [np.array(ring[:-1]).tolist() for ring in feature["geometry"]["coordinates"]]
        assert rings == [ring.tolist() for ring in region.rings]
        assert properties["name"] == f"{tissue.code.display} {region.number}"
        assert properties["classification"]["name"] == tissue.code.display
        assert "#{:02x}{:02x}{:02x}".format(*properties["classification"]["color"]) == tissue.color
        assert properties["measurements"] == {
            "Mean probability": region.mean_probability,
            "Max probability": region.max_probability,
            "Tissue area mm^2": region.tissue_area_mm2,
            "Outline area mm^2": region.area_mm2,
            "Tiles": region.tiles,
        }


@pytest.mark.parametrize(
    ("finest", "factor"),
    [((8880, 11868), 4), ((8883, 11865), 4), ((8877, 11871), 4), ((6660, 8901), 3), ((3330, 4451), 1.5)],
)
def test_coordinates_are_those_of_the_finest_level(finest: tuple[int, int], factor: float) -> None:
    report, source = drawn(volume_headers(COMMITTED))
    above = deepcopy(source.image)
    above.TotalPixelMatrixColumns, above.TotalPixelMatrixRows = finest
    document = collection(report, replace(source, levels=(above, *source.levels), read=1))
    scaled = [ring for region in regions_of(report, source) for ring in region.rings]
    rings = [ring for feature in document["features"] for ring in feature["geometry"]["coordinates"]]
    for ring, expected in zip(rings, scaled, strict=True):
        assert np.abs(np.array(ring[:-1]) - np.minimum(expected * factor, finest)).max() < 1
        whole = factor != 1.5 and np.all(expected * factor < finest)
        assert not whole or all(isinstance(value, int) for point in ring for value in point)
    if factor == 4:
        assert sum(areas(document)) == pytest.approx(sum(map(ring_area, scaled)) * 16, rel=0.01)


def test_ids_are_the_analysis_own(report: Report, image: pydicom.Dataset) -> None:
    source = source_of(image, report.tissue[0])
    again = deepcopy(report)
    assert to_geojson(report, source) == to_geojson(again, source)
    one, other = collection(report, source), collection(replace(report, analysis_id="other"), source)
    assert not {item["id"] for item in one["features"]} & {item["id"] for item in other["features"]}


def test_outside_the_intended_use_every_region_says_so(exploratory: Report, image: pydicom.Dataset) -> None:
    document = collection(exploratory, source_of(image, exploratory.tissue[0]))
    assert document["pathserve"]["exploratory"] is True
    assert any(statement.startswith("Exploratory result.") for statement in document["pathserve"]["statements"])
    for feature in document["features"]:
        assert feature["properties"]["name"].endswith("(exploratory)")
        assert feature["properties"]["classification"]["name"].startswith("Tissue pattern")
        assert "exploratory" in feature["properties"]["metadata"]["use"]


@pytest.mark.parametrize("name", POOR)
def test_a_poor_header_changes_nothing(name: str) -> None:
    assert to_geojson(*poor(name)) == to_geojson(*drawn(volume_headers(COMMITTED)))


def test_without_a_region_the_collection_is_empty(report: Report, image: pydicom.Dataset) -> None:
    assert collection(report, source_of(image, None))["features"] == []


def test_a_level_without_a_size_is_refused(report: Report, image: pydicom.Dataset) -> None:
    empty = deepcopy(image)
    empty.TotalPixelMatrixRows = 0
    with pytest.raises(PathserveError, match="no size"):
        to_geojson(report, replace(source_of(image, report.tissue[0]), levels=(empty,)))
