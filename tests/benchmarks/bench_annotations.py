"""Seconds and peak memory of what is drawn by the hundred thousand, and of the PDF. `python -m …` measures one case."""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
from pydicom.sr.codedict import codes

from gateway.domain.codes import NO_UNITS, Code
from gateway.domain.report import Report
from gateway.reports import SlideSource, TileMap, picture, thumbnail_jpeg, tissue_map
from gateway.reports.ann import Group, write_annotations, write_groups
from gateway.reports.derived import Kind, ObjectName
from gateway.reports.geojson import write_geojson
from gateway.reports.pdf import to_pdf
from gateway.reports.sr_concepts import MEAN_PROBABILITY
from tests.benchmarks.rows import Row
from tests.reports.conftest import COMMITTED, LABELS, volume_headers
from tests.reports.drawn import drawn

POLYGONS, CORNERS = 200_000, 12
GRID = 632  # every second tile of a board this wide: 199,712 regions


def measure() -> list[Row]:
    """The rows; each case in a process of its own, so that its peak memory is its own."""
    ours, library = _case("polygons"), _case("highdicom")
    regions, geojson, document = _case("regions"), _case("geojson"), _case("pdf")
    name = f"ANN of {POLYGONS:,} polygons"
    return [
        Row(f"{name}, peak memory", ours["peak_mb"], "MB", goal=1000, lower_is_better=True),
        Row(name, ours["s"], "s", "highdicom", ours["s"] / library["s"], 0.5, lower_is_better=True),
        Row("ANN of the regions of 199,712 tiles apart", regions["s"], "s", goal=10, lower_is_better=True),
        Row("ANN of these regions, peak memory", regions["peak_mb"], "MB", goal=1000, lower_is_better=True),
        Row("GeoJSON of these regions", geojson["s"], "s"),
        Row("PDF of a slide with its pictures", document["s"] * 1000, "ms", goal=300, lower_is_better=True),
    ]


def _case(name: str) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.bench_annotations", name]
    figures: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return figures


def _polygons() -> np.ndarray:
    """(N, 12, 2) corners of irregular outlines, as a cell detector leaves them: whole and half pixels."""
    random = np.random.default_rng(1)
    angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    radius = random.uniform(8, 16, (POLYGONS, CORNERS, 1))
    centres = random.uniform(100, 80_000, (POLYGONS, 1, 2))
    return np.round((centres + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)) * 2) / 2


def _written(folder: Path, report: Report, source: SlideSource) -> float:
    points, scores = _polygons(), np.linspace(0, 1, POLYGONS, dtype=np.float32)
    start = time.perf_counter()
    group = Group(
        uid="2.25.1",
        label="Nuclei",
        description="",
        graphic="POLYGON",
        points_P2=points.reshape(-1, 2),
        first_N=np.arange(POLYGONS) * CORNERS,
        category=Code("91723000", "SCT", "Anatomical Structure"),
        property_type=Code("84640000", "SCT", "Nucleus"),
        color="#00ff00",
        measurements=[(MEAN_PROBABILITY, NO_UNITS, scores)],
    )
    write_groups(folder / "a.dcm", report, source.image, ObjectName("a", Kind.ANN, "a"), [group])
    return time.perf_counter() - start


def _written_by_highdicom(folder: Path, report: Report, source: SlideSource) -> float:
    points, scores = list(_polygons().astype(np.float32)), np.linspace(0, 1, POLYGONS, dtype=np.float32)
    start = time.perf_counter()
    group = hd.ann.AnnotationGroup(
        number=1,
        uid="2.25.1",
        label="Nuclei",
        annotated_property_category=codes.SCT.AnatomicalStructure,
        annotated_property_type=codes.SCT.Nucleus,
        graphic_type="POLYGON",
        graphic_data=points,
        algorithm_type="AUTOMATIC",
        algorithm_identification=hd.AlgorithmIdentificationSequence("a", codes.DCM.ArtificialIntelligence, "1"),
        measurements=[hd.ann.Measurements(codes.SCT.Area, scores, codes.UCUM.NoUnits)],
    )
    document = hd.ann.MicroscopyBulkSimpleAnnotations(
        [source.image], "2D", [group], "2.25.2", 1, "2.25.3", 1, "a", "a", "1", "1"
    )
    document.save_as(folder / "a.dcm")
    return time.perf_counter() - start


def _apart(report: Report, source: SlideSource) -> tuple[Report, SlideSource]:
    """Every second tile of a large board: as many regions as tiles, the most that there can be."""
    slide = report.slides[0]
    assert slide.grid is not None
    field = slide.grid.field_px
    grid = replace(slide.grid, rows=GRID, columns=GRID)
    slide = replace(slide, grid=grid, level_width_px=GRID * field, level_height_px=GRID * field)
    rows_N, columns_N = np.nonzero(np.add.outer(np.arange(GRID), np.arange(GRID)) % 2 == 0)
    tiles = TileMap(
        series=slide.series,
        rows_N=rows_N.astype(np.int32),
        columns_N=columns_N.astype(np.int32),
        classes_N=np.zeros(len(rows_N), np.int32),
        probabilities_NC=np.full((len(rows_N), len(LABELS)), 0.5, np.float32),
        tissue_N=np.ones(len(rows_N), np.float32),
    )
    return replace(report, slides=(slide,)), replace(source, tiles=tiles)


def _document(report: Report, source: SlideSource) -> float:
    slide, tiles = report.slides[0], source.tiles
    assert slide.grid is not None
    assert tiles is not None
    thumbnail = np.random.default_rng(1).integers(0, 255, (96, 128, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    size = source.image.TotalPixelMatrixColumns, source.image.TotalPixelMatrixRows
    colors = {number: label[3] for number, label in enumerate(LABELS)}
    pictures = {
        "thumbnail.jpg": thumbnail_jpeg(thumbnail),
        "map.png": tissue_map(thumbnail, slide.grid, tiles.rows_N, tiles.columns_N, tiles.classes_N, colors, size),
    }
    roles = zip(("thumbnail", "tissue-map"), pictures.items(), strict=True)
    records = tuple(picture(role, name, data, slide.series) for role, (name, data) in roles)
    report = replace(report, pictures=records)
    # The first call, which loads the library and its fonts: the next ones of the same report would only be remembered.
    start = time.perf_counter()
    to_pdf(report, pictures)
    return time.perf_counter() - start


def _main(case: str) -> None:
    report, source = drawn(volume_headers(COMMITTED))
    with tempfile.TemporaryDirectory() as folder:
        match case:
            case "polygons":
                seconds = _written(Path(folder), report, source)
            case "highdicom":
                seconds = _written_by_highdicom(Path(folder), report, source)
            case "pdf":
                seconds = _document(report, source)
            case _:
                report, source = _apart(report, source)
                start = time.perf_counter()
                if case == "regions":
                    write_annotations(Path(folder) / "a.dcm", report, source)
                else:
                    write_geojson(Path(folder) / "a.geojson", report, source)
                seconds = time.perf_counter() - start
    # VmHWM starts afresh with the program; ru_maxrss begins at the size of the process that started it.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(json.dumps({"s": seconds, "peak_mb": int(status["VmHWM"].split()[0]) / 1024}))


if __name__ == "__main__":
    _main(sys.argv[1])
