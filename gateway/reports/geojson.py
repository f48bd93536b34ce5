"""Report -> GeoJSON (RFC 7946) as QuPath reads it: the regions of one slide in pixels of the finest level."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from gateway.domain.bethesda import CLASSES
from gateway.domain.report import Report, ResultObject, Segmented, SlideClassification, TissueClass, TopTile
from gateway.domain.screened import ScreeningResult
from gateway.domain.uids import derive_uid
from gateway.operations.errors import PathserveError, StateError
from gateway.reports import sr_concepts as concept
from gateway.reports import wording
from gateway.reports.cells_ann import corners_of
from gateway.reports.derived import segment_role
from gateway.reports.masks import outlined
from gateway.reports.regions import Region, regions_of, signed_areas
from gateway.reports.spatial import CellMap, Outlines, SlideSource

_DECIMALS = 3
_TOP_TILE_COLOR = (227, 26, 28)
_ABOUT = '],"pathserve":'
"""What follows the regions. It stands once in a file: within a text its quotes would be escaped."""
_MOST_ABOUT, _BLOCK = 2**20, 2**20
_RINGS_AT_ONCE = 4096
_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def write_geojson(path: Path, report: Report, source: SlideSource) -> None:
    """Write a FeatureCollection, UTF-8: one locked annotation object a region, holes as inner rings; or one a tile that
    the slide's answer rests on; or of what was found by words one a region, and a detection an object; or a detection a
    cell.

    Coordinates are full-resolution pixels from the slide image's top left, which is QuPath's plane and not RFC 7946's
    WGS 84 (section 4 allows that by prior arrangement). Outer rings run anticlockwise by their coordinates' signs
    (section 3.1.6). Without a region the collection is empty. Raises PathserveError where the report lacks the grid,
    OSError.
    """
    with path.open("w", encoding="utf-8", newline="\n") as out:
        out.writelines(_parts(report, source))


def _parts(report: Report, source: SlideSource) -> Iterator[str]:
    """The text, a feature at a time: a slide of a hundred thousand regions is never held as a tree of objects."""
    yield '{"type":"FeatureCollection","features":['
    for number, feature in enumerate(_features(report, source)):
        yield ("," if number else "") + feature
    yield f"{_ABOUT}{_json(_about(report, source.series))}}}\n"


def _features(report: Report, source: SlideSource) -> Iterator[str]:
    """Whatever the slide has: regions of tissue, the tiles that its class rests on, what was found by words, cells."""
    result, classified = report.tissue_of(source.series), report.classes_of(source.series)
    to_finest = _Scale(source.image, source.levels[0])
    if result is not None:
        classes = {tissue.index: _Class(report, source, tissue, result.exploratory) for tissue in result.classes}
        for region in regions_of(report, source):
            yield classes[region.index].feature(region, to_finest)
    if classified is not None:
        for rank, tile in enumerate(classified.top_tiles, 1):
            yield _top_tile(report, classified, rank, tile, to_finest)
    yield from _segments(report, source, to_finest)
    screening = report.screening_of(source.series)
    if screening is not None and source.cells is not None:
        yield from _cells(report, screening, source, source.cells, to_finest)


def restate_geojson(source: Path, target: Path, report: Report, item: ResultObject) -> None:
    """Write a file of ours again, with what a later revision of the report says of itself; the regions stay.

    Raises OSError; StateError where the file is none of ours.
    """
    with source.open("rb") as old, target.open("wb") as new:
        old.seek(max(0, source.stat().st_size - _MOST_ABOUT))
        before = old.tell()
        at = old.read().rfind(_ABOUT.encode())
        if at < 0:
            raise StateError("A GeoJSON file of the analysis is not as it was written. Order the analysis again.")
        old.seek(0)
        left = before + at
        while left and (block := old.read(min(left, _BLOCK))):
            new.write(block)
            left -= len(block)
        new.write(f"{_ABOUT}{_json(_about(report, item.series))}}}\n".encode())


def _about(report: Report, series: str | None) -> dict[str, Any]:
    """A foreign member (section 6.1): who reads the file without QuPath finds what it is."""
    words = report.segments_of(series) if series else None
    results = (
        (report.tissue_of(series), report.classes_of(series), words, report.screening_of(series)) if series else ()
    )
    exploratory = any(result is not None and result.exploratory for result in results)
    return {
        "analysis": report.analysis_id,
        "series": series,
        "state": report.state.value,
        "revision": report.revision,
        "exploratory": exploratory,
        "statements": [
            wording.RESEARCH_USE,
            wording.standing(report),
            *([wording.EXPLORATORY] if exploratory else []),
            report.statement,
        ],
        **({"segments": [_segment(each) for each in words.segments]} if words else {}),
    }


def _segment(segmented: Segmented) -> dict[str, Any]:
    return {
        "name": segmented.triple,
        "prompt": segmented.prompt,
        "code": segmented.code.code,
        "scheme": segmented.code.scheme,
        "supported": segmented.supported,
        "present": segmented.present,
    }


def _segments(report: Report, source: SlideSource, to_finest: "_Scale") -> Iterator[str]:
    """What was found of each prompt: detections (QuPath keeps millions of them) where it has objects, else regions."""
    result = report.segments_of(source.series)
    for segmented, batches in outlined(report, source, simple=False):
        role = f"{source.series}/{segment_role(segmented)}"
        name = _json(segmented.triple)[:-1]  # open: the object's number ends it
        suffix = ' (exploratory)"' if result is not None and result.exploratory else '"'
        counted = segmented.objects is not None and segmented.objects.count
        kind = '"detection"' if counted else '"annotation","isLocked":true'
        shared = f'"classification":{_json({"name": segmented.triple, "color": _rgb(segmented.color)})}'
        number = 0
        for batch in batches:
            for at, rings in enumerate(_rings(batch, to_finest)):
                number += 1
                measured = {
                    "Area µm^2": float(batch.area_um2_N[at]),
                    "Mean probability": float(batch.probability_N[at]),
                }
                if np.isfinite(batch.irregularity_N[at]):
                    measured["Irregularity"] = float(batch.irregularity_N[at])
                properties = (
                    f'{{"objectType":{kind},"name":{name} {number}{suffix},{shared},"measurements":{_json(measured)}}}'
                )
                yield _feature(derive_uid(report.analysis_id, f"region/{role}/{number}"), rings, properties)


def _cells(
    report: Report, result: ScreeningResult, source: SlideSource, cells: CellMap, to_finest: "_Scale"
) -> Iterator[str]:
    """Each cell that was found as a detection, of which QuPath keeps millions, the surest first."""
    suffix = ' (exploratory)"' if result.exploratory else '"'
    names = {each.index: _json(each.code.display)[:-1] for each in result.classes}  # open: the cell's number ends it
    shared = {
        each.index: f'"classification":{_json({"name": each.code.display, "color": _rgb(CLASSES[each.index].color)})}'
        for each in result.classes
    }
    rings = to_finest.rings(corners_of(cells, source))
    every = zip(rings, cells.classes_N.tolist(), cells.scores_N.tolist(), strict=True)
    for number, (ring, at, score) in enumerate(every, 1):
        properties = (
            f'{{"objectType":"detection","name":{names[at]} {number}{suffix},{shared[at]},'
            f'"measurements":{{"Score":{score}}}}}'
        )
        uid = derive_uid(report.analysis_id, f"region/{source.series}/cell-{number}")
        yield _feature(uid, [ring], properties)


def _rings(batch: Outlines, to_finest: "_Scale") -> list[list[str]]:
    """The rings of each object of a batch: outer ones turn one way, holes the other, however they came."""
    ends_G = np.append(batch.first_G[1:], len(batch.points_P2))
    hole_G = np.diff(batch.object_G, prepend=-1) == 0
    turned_G = (signed_areas(batch.points_P2, batch.first_G) < 0) != hole_G
    rings_N: list[list[str]] = [[] for _ in batch.area_um2_N]
    for ring, at in enumerate(batch.object_G.tolist()):
        points_K2 = batch.points_P2[batch.first_G[ring] : ends_G[ring]]
        rings_N[at].append(to_finest.ring(points_K2[::-1] if turned_G[ring] else points_K2))
    return rings_N


def _rgb(color: str) -> list[int]:
    return [int(color[at : at + 2], 16) for at in (1, 3, 5)]


def _top_tile(report: Report, classified: SlideClassification, rank: int, tile: TopTile, to_finest: "_Scale") -> str:
    """One of the tiles that a slide's answer rests on."""
    box = tile.box
    left, top, right, bottom = box.x_px, box.y_px, box.x_px + box.width_px, box.y_px + box.height_px
    ring = to_finest.ring(np.array([[left, top], [right, top], [right, bottom], [left, bottom]]))
    code = concept.TOP_TILE
    uid = derive_uid(report.analysis_id, f"region/{classified.series}/top-tile/{rank}")
    properties = {
        "objectType": "annotation",
        "name": f"{code.display} {rank}{' (exploratory)' if classified.exploratory else ''}",
        "classification": {"name": code.display, "color": list(_TOP_TILE_COLOR)},
        "isLocked": True,
        "measurements": {"Attention": tile.attention, "Share of the weights %": tile.share * 100},
        "metadata": {"code": code.code, "scheme": code.scheme, "use": wording.document_title(report)},
    }
    return _feature(uid, [ring], _json(properties))


def _feature(uid: str, rings: Iterable[str], properties: str) -> str:
    """A polygon of rings with its properties, both encoded; its id is the UUID behind a UID of ours (PS3.5 B.2)."""
    return (
        f'{{"type":"Feature","id":"{UUID(int=int(uid.rsplit(".", 1)[1]))}",'
        f'"geometry":{{"type":"Polygon","coordinates":[{",".join(rings)}]}},"properties":{properties}}}'
    )


class _Scale:
    """From pixels of one level to those of the finest."""

    def __init__(self, level: Dataset, finest: Dataset) -> None:
        self._limits = int(finest.TotalPixelMatrixColumns), int(finest.TotalPixelMatrixRows)
        sizes = int(level.TotalPixelMatrixColumns), int(level.TotalPixelMatrixRows)
        if min(sizes) < 1 or min(self._limits) < 1:
            raise PathserveError("The slide's header gives a level no size. Check the slide.")
        self._factors = _factor(self._limits[0], sizes[0]), _factor(self._limits[1], sizes[1])

    def ring(self, ring_K2: npt.NDArray[np.number]) -> str:
        """A closed ring of positions, on the finest level and not beyond it."""
        scaled_K2 = self._scaled(ring_K2)
        whole_K2 = scaled_K2.astype(np.int64)
        corners: list[list[float]] = (whole_K2 if (whole_K2 == scaled_K2).all() else scaled_K2).tolist()
        return _json([*corners, corners[0]])

    def rings(self, rings_NK2: npt.NDArray[np.number]) -> Iterator[str]:
        """Many rings of equal length, as `ring`."""
        for start in range(0, len(rings_NK2), _RINGS_AT_ONCE):
            for corners in self._scaled(rings_NK2[start : start + _RINGS_AT_ONCE]).tolist():
                yield _json([*corners, corners[0]])

    def _scaled(self, points_K2: npt.NDArray[np.number]) -> npt.NDArray[np.float64]:
        scaled_K2: npt.NDArray[np.float64] = np.minimum(points_K2 * np.array(self._factors, np.float64), self._limits)
        return np.round(scaled_K2, _DECIMALS)


def _factor(large: int, small: int) -> float:
    """How many finest pixels a pixel spans: a whole number where the smaller size is the larger one's, rounded."""
    whole = round(large / small)
    return whole if abs(whole * small - large) < whole else large / small


class _Class:
    """What the features of one class share, written once."""

    def __init__(self, report: Report, source: SlideSource, tissue: TissueClass, exploratory: bool) -> None:
        self._analysis_id = report.analysis_id
        self._role = f"region/{source.series}/class-{tissue.index}"
        self._name = _json(tissue.code.display)[:-1]  # open: the region's number ends it
        self._suffix = ' (exploratory)"' if exploratory else '"'
        self._classification = _json({"name": tissue.code.display, "color": _rgb(tissue.color)})
        self._metadata = _json(
            {"code": tissue.code.code, "scheme": tissue.code.scheme, "use": wording.document_title(report)}
        )

    def feature(self, region: Region, to_finest: _Scale) -> str:
        uid = derive_uid(self._analysis_id, f"{self._role}/{region.number}")
        properties = (
            f'{{"objectType":"annotation","name":{self._name} {region.number}{self._suffix},'
            f'"classification":{self._classification},"isLocked":true,'
            f'"measurements":{{"Mean probability":{region.mean_probability},'
            f'"Max probability":{region.max_probability},"Tissue area mm^2":{region.tissue_area_mm2},'
            f'"Outline area mm^2":{region.area_mm2},"Tiles":{region.tiles}}},"metadata":{self._metadata}}}'
        )
        return _feature(uid, map(to_finest.ring, region.rings), properties)
