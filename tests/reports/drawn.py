"""Slides with patchy tile maps over real headers, and headers that are poor."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import cv2
import numpy as np
import pydicom
import pytest

from gateway.domain.report import Report, SlideReading, TissueResult
from gateway.domain.slide import TileGrid
from gateway.reports import UNCERTAIN, SlideSource, TileMap
from tests.reports.conftest import COMMITTED, DATA, reading_of, report_of, result_of, single, volume_headers

REAL_SLIDES = ("cmu_small_he", "metaplasia_he", "csf_breast_pap")


def real_levels(name: str) -> list[pydicom.Dataset]:
    """The headers of a real slide's levels, finest first; skips where the slide is not at hand."""
    folder = COMMITTED if name == COMMITTED.name else DATA / "slides" / name
    if not folder.is_dir():
        pytest.skip(f"data set not present: slides/{name} (set PATHSERVE_DATA)")
    return volume_headers(folder)


def patches(grid: TileGrid, series: str, *, seed: int = 1, classes: int = 7, patch: int = 4) -> TileMap:
    """Nine in ten tiles of the grid, in patches of one class of about `patch` tiles, some uncertain."""
    random = np.random.default_rng(seed)
    coarse = random.random((grid.rows // patch + 2, grid.columns // patch + 2, classes), dtype=np.float32)
    smooth = cv2.resize(coarse, (grid.columns, grid.rows), interpolation=cv2.INTER_CUBIC)
    rows_N, columns_N = np.nonzero(random.random((grid.rows, grid.columns)) < 0.9)
    probabilities_NC = np.exp(4 * smooth.reshape(grid.rows, grid.columns, classes)[rows_N, columns_N])
    probabilities_NC /= probabilities_NC.sum(axis=1, keepdims=True)
    certain_N = probabilities_NC.max(axis=1) > 1.7 / classes
    order = random.permutation(len(rows_N))  # the pipeline reads by strips; no encoder may rely on an order
    return TileMap(
        series=series,
        rows_N=rows_N[order].astype(np.int32),
        columns_N=columns_N[order].astype(np.int32),
        classes_N=np.where(certain_N, probabilities_NC.argmax(axis=1), UNCERTAIN)[order].astype(np.int32),
        probabilities_NC=probabilities_NC[order],
        tissue_N=random.uniform(0.3, 1, len(rows_N)).astype(np.float32)[order],
    )


def ring_area(ring_K2: np.ndarray) -> float:
    """The signed area of an open ring of corners (x, y), by the shoelace formula."""
    x, y = np.asarray(ring_K2, dtype=np.float64).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2


def agreeing(slide: SlideReading, tiles: TileMap, *, exploratory: bool = False) -> TissueResult:
    """The result that these tiles add up to, as the protocol computes it."""
    assert slide.grid is not None
    result = result_of(slide, exploratory=exploratory)
    area_N = tiles.tissue_N.astype(np.float64) * slide.grid.tile_area_mm2
    classes = []
    for tissue in result.classes:
        chosen_N = tiles.classes_N == tissue.index
        found = tiles.probabilities_NC[chosen_N, tissue.index]
        classes.append(
            replace(
                tissue,
                tiles=int(chosen_N.sum()),
                area_mm2=float(area_N[chosen_N].sum()),
                share=float(area_N[chosen_N].sum() / area_N.sum()),
                mean_probability=float(found.mean()) if len(found) else None,
            )
        )
    return replace(result, classes=tuple(classes), tiles=len(area_N), area_mm2=float(area_N.sum()))


def drawn(levels: list[pydicom.Dataset], *, exploratory: bool = False, patch: int = 4) -> tuple[Report, SlideSource]:
    """A report of one slide over these headers, and what lies where on it."""
    slide = reading_of(levels[0])
    grid = slide.grid
    assert grid is not None
    # As the protocol lays it: the last row and column reach beyond the level.
    width, height = levels[0].TotalPixelMatrixColumns, levels[0].TotalPixelMatrixRows
    grid = replace(grid, columns=-(-width // grid.field_px), rows=-(-height // grid.field_px))
    slide = replace(slide, grid=grid)
    tiles = patches(grid, slide.series, patch=patch)
    report = report_of([slide], [agreeing(slide, tiles, exploratory=exploratory)])
    return report, SlideSource(series=slide.series, levels=tuple(levels), instances=single(levels), read=0, tiles=tiles)


def _without(*keywords: str) -> Callable[[pydicom.Dataset], None]:
    def change(image: pydicom.Dataset) -> None:
        for keyword in keywords:
            del image[keyword]

    return change


def _several_specimens(image: pydicom.Dataset) -> None:
    other = deepcopy(image.SpecimenDescriptionSequence[0])
    other.SpecimenIdentifier, other.SpecimenUID = "B", "2.25.77"
    image.SpecimenDescriptionSequence.append(other)


def _names(image: pydicom.Dataset) -> None:
    image.SpecificCharacterSet = "ISO_IR 192"
    image.PatientName = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    image.PatientID = "Ж" * 32  # dciodvfy counts bytes, the standard characters
    image.ContainerIdentifier = "Ω" * 32


def _long(image: pydicom.Dataset) -> None:
    image.PatientID = image.ContainerIdentifier = image.SpecimenDescriptionSequence[0].SpecimenIdentifier = "W" * 64
    image.AccessionNumber = image.StudyID = "A" * 16


def _odd_orientation(image: pydicom.Dataset) -> None:
    image.ImageOrientationSlide = [1, 1, 0, 1, 1, 0]


POOR = {
    "no frame of reference": _without("FrameOfReferenceUID"),
    "no specimen": _without("SpecimenDescriptionSequence", "ContainerIdentifier", "ContainerTypeCodeSequence"),
    "no study or patient": _without("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    "no device": _without("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions"),
    "odd orientation": _odd_orientation,
    "several specimens": _several_specimens,
    "names of many scripts": _names,
    "values as long as they may be": _long,
}
"""What is wrong with a header, and how it gets so."""


def poor(name: str) -> tuple[Report, SlideSource]:
    """A report over the committed slide, and its source with headers as POOR[name] makes them."""
    report, source = drawn(volume_headers(COMMITTED))
    levels = tuple(deepcopy(level) for level in source.levels)
    for level in levels:
        POOR[name](level)
    return report, replace(source, levels=levels)
