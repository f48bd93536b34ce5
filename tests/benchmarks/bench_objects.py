"""Segmentations of a whole slide at full resolution: seconds and peak memory of a fresh process that writes one.

Those of a prompt come from the file that its masks are kept in while windows are answered, and are written when the
last window is. So their seconds stand against those that the windows take on a GPU.
"""

import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import cv2
import highdicom as hd
import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom

from gateway.analyses.blending import CELL_PX, Cell
from gateway.analyses.mask_file import MaskFile
from gateway.analyses.mask_store import StoredMasks
from gateway.domain.codes import PRIVATE_SCHEME, Code
from gateway.domain.order import Order, Specimen
from gateway.domain.report import Report, ReportState, SegmentationResult, Segmented, SlideReading, Software
from gateway.reports.derived import Kind, ObjectName
from gateway.reports.masks_seg import write_mask_seg
from gateway.reports.pyramid import PyramidLevel
from gateway.reports.seg import Segment, write_segments
from gateway.reports.spatial import SlideSource
from gateway.reports.sr_concepts import TISSUE
from tests.benchmarks.rows import Row

_SIDE_PX, _HIGHDICOM_PX = 28_000, 7_000
_MOST_MB = 600
_WINDOW_STEP_PX, _WINDOW_S = 192, 0.001
"""Windows of 256 pixels share a quarter; a GPU answers each within about a millisecond (not measured here)."""

Tiles = list[npt.NDArray[np.uint8]]


def measure(slide: Path) -> list[Row]:
    """`slide` holds a slide of 28,000² pixels, whose header is what the masks are of."""
    rows = _measured_of_a_prompt(slide)
    for kind, floor_of in (
        ("BINARY", f"highdicom, a whole array of {_HIGHDICOM_PX:,}², by the pixel: {{:.2f}}"),
        ("FRACTIONAL", "imagecodecs, JPEG-LS of the same tiles in memory: {:.2f}"),
        ("LABELMAP", "imagecodecs, JPEG-LS of the same tiles in memory: {:.2f}"),
    ):
        got = _fresh(kind, slide)
        floor = floor_of.format(got["floor_s"])
        name = f"SEG {kind}, {_SIDE_PX:,}² mask, {got['megabytes']:.0f} MB"
        rows += [
            Row(name, got["seconds"], "s", floor, got["floor_s"] / got["seconds"], 1.0 if kind == "BINARY" else 0.8),
            Row(f"SEG {kind}: peak memory", got["peak_mb"], "MB", goal=_MOST_MB, lower_is_better=True),
        ]
    return rows


def _measured_of_a_prompt(slide: Path) -> list[Row]:
    got = _fresh("PROMPT", slide)
    windows = (_SIDE_PX // _WINDOW_STEP_PX) ** 2
    name = f"SEG of a prompt, masks and probabilities, {_SIDE_PX:,}² px, {got['megabytes']:.0f} MB"
    floor_s = windows * _WINDOW_S
    floor = f"{windows:,} windows, a millisecond each: {floor_s:.0f}"
    return [
        Row(name, got["seconds"], "s", floor, got["seconds"] / floor_s, lower_is_better=True),
        Row("SEG of a prompt: peak memory", got["peak_mb"], "MB", goal=_MOST_MB, lower_is_better=True),
    ]


def _fresh(kind: str, slide: Path) -> dict[str, float]:
    """What a new process measures."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_objects", kind, str(slide)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    got: dict[str, float] = json.loads(run.stdout)
    return got


def _tiles(side_px: int, top: int) -> Tiles:
    """Sixteen tiles: half of them empty as most of a slide is, half of smooth blobs with values up to `top`."""
    random = np.random.default_rng(0)
    tiles = [np.zeros((side_px, side_px), np.uint8) for _ in range(8)]
    for _ in range(8):
        noise = cv2.GaussianBlur(random.random((side_px, side_px), np.float32), (0, 0), 12)
        share = np.clip((noise - noise.mean()) / (4 * noise.std()) + 0.5, 0, 1)
        tiles.append(np.rint(share * top).astype(np.uint8))
    return [tiles[number] for number in random.permutation(16)]


def _level(slide: Path) -> tuple[Report, PyramidLevel]:
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in sorted(slide.glob("*.dcm"))]
    image = max(
        (header for header in headers if header.ImageType[2] == "VOLUME"), key=lambda one: one.TotalPixelMatrixRows
    )
    if (image.TotalPixelMatrixRows, image.TotalPixelMatrixColumns) != (_SIDE_PX, _SIDE_PX):
        raise RuntimeError(f"the slide of this benchmark has {_SIDE_PX}² pixels")
    reading = SlideReading(study=image.StudyInstanceUID, series=image.SeriesInstanceUID, read=True)
    report = Report(
        schema_version="1.0",
        analysis_id="bench-objects",
        protocol="segmentation",
        state=ReportState.PRELIMINARY,
        issued=datetime(2026, 11, 26, tzinfo=UTC),
        statement="A mask that is made up.",
        exploratory=True,
        software=Software(name="pathserve", manufacturer="pathserve", version="0", device_uid="2.25.1"),
        models=(),
        order=Order(protocol="segmentation", specimens=(Specimen(slides=()),)),
        slides=(reading,),
        findings=(),
    )
    return report, PyramidLevel(image, (image.SOPInstanceUID,))


def _of_a_prompt(slide: Path, folder: Path) -> tuple[float, float]:
    """Seconds and megabytes of both segmentations of a prompt whose mask covers half of the slide in smooth blobs."""
    report, level = _level(slide)
    across = -(-_SIDE_PX // CELL_PX)
    cycle = itertools.cycle(_tiles(CELL_PX, 255))
    with MaskFile.writing(folder / "masks.db", {}, 1) as file:
        for row, column in itertools.product(range(across), range(across)):
            file.add_cell(Cell(row, column, next(cycle)[None]))
        file.commit()
    series = level.image.SeriesInstanceUID
    masks = StoredMasks(
        series=series, level=0, pixel_px=1, rows=_SIDE_PX, columns=_SIDE_PX, indices=(0,), path=folder / "masks.db",
        belongs_to={},
    )  # fmt: skip
    segmented = Segmented(
        index=0, prompt="mask", triple="mask", category=TISSUE, code=Code("mask", PRIVATE_SCHEME, "Mask"),
        color="#336699", supported=True, present=True, presence=1, min_presence=0.5, mpp=0.25, area_mm2=1,
        area_fraction=1, mean_probability=1, objects=None,
    )  # fmt: skip
    result = SegmentationResult(series=series, exploratory=True, segments=(segmented,), area_mm2=1)
    report = replace(report, segmentations=(result,))
    source = SlideSource(
        series=series, levels=(level.image,), instances=(level.instances,), read=0, tiles=None, masks=(masks,)
    )
    paths = {"BINARY": folder / "segments-1-1.seg.dcm", "FRACTIONAL": folder / "probabilities-1-1.seg.dcm"}
    seconds = _seconds(
        lambda: [write_mask_seg(path, report, source, masks, segmentation_type=form) for form, path in paths.items()]
    )
    return seconds, sum(path.stat().st_size for path in paths.values()) / 1e6


def _write(path: Path, kind: str, slide: Path, frames: Iterator[npt.NDArray[np.uint8]]) -> float:
    """Seconds for the whole object, from its header to the closed file."""
    report, level = _level(slide)
    segment = Segment(
        label="mask",
        category=TISSUE,
        property_type=Code("mask", PRIVATE_SCHEME, "Mask"),
        description="",
        color="#336699",
    )
    return _seconds(
        lambda: write_segments(
            path,
            report,
            level,
            ObjectName(report.analysis_id, Kind.SEG, "2.25.1"),
            [segment] * (7 if kind == "LABELMAP" else 1),
            frames,
            segmentation_type=kind,
        )
    )


def _highdicom_s(slide: Path, tiles: Tiles) -> float:
    """Seconds that highdicom takes for the same area of pixels, from those for a smaller array."""
    _, level = _level(slide)
    across = -(-_HIGHDICOM_PX // 512)
    cycle = itertools.cycle(tiles)
    pixels = np.block([[next(cycle) for _ in range(across)] for _ in range(across)])[:_HIGHDICOM_PX, :_HIGHDICOM_PX]
    image = level.image
    image.TotalPixelMatrixRows = image.TotalPixelMatrixColumns = _HIGHDICOM_PX
    image.NumberOfFrames = (-(-_HIGHDICOM_PX // image.Rows)) * (-(-_HIGHDICOM_PX // image.Columns))
    family = hd.sr.CodedConcept("123110", "DCM", "Artificial Intelligence")
    description = hd.seg.SegmentDescription(
        1, "mask", hd.sr.CodedConcept("85756007", "SCT", "Tissue"), hd.sr.CodedConcept("85756007", "SCT", "Tissue"),
        "AUTOMATIC", hd.AlgorithmIdentificationSequence("mask", family, "0"),
    )  # fmt: skip

    def write() -> None:
        made = hd.seg.Segmentation(
            [image], pixels[None], "BINARY", [description], series_instance_uid="2.25.1", series_number=1,
            sop_instance_uid="2.25.2", instance_number=1, manufacturer="m", manufacturer_model_name="m",
            software_versions="1", device_serial_number="1", tile_pixel_array=True, tile_size=(512, 512),
            dimension_organization_type="TILED_FULL", omit_empty_frames=False,
        )  # fmt: skip
        with tempfile.NamedTemporaryFile() as file:
            made.save_as(file)

    write()
    return _seconds(write) * (_SIDE_PX / _HIGHDICOM_PX) ** 2


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _peak_mb() -> float:
    """VmHWM starts afresh with the program."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def _main(kind: str, slide: Path) -> None:
    if kind == "PROMPT":
        with tempfile.TemporaryDirectory() as folder:
            seconds, megabytes = _of_a_prompt(slide, Path(folder))
        print(json.dumps({"seconds": seconds, "peak_mb": _peak_mb(), "megabytes": megabytes}))
        return
    tiles = _tiles(512, {"BINARY": 1, "FRACTIONAL": 255, "LABELMAP": 7}[kind])
    count = (-(-_SIDE_PX // 512)) ** 2
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mask.seg.dcm")
        seconds = _write(path, kind, slide, itertools.islice(itertools.cycle(tiles), count))
        megabytes = path.stat().st_size / 1e6
    peak_mb = _peak_mb()  # before the floor is measured, which has its own memory
    if kind == "BINARY":
        floor_s = _highdicom_s(slide, tiles)
    else:
        frames = itertools.islice(itertools.cycle(tiles), count)
        floor_s = _seconds(lambda: [len(imagecodecs.jpegls_encode(frame)) for frame in frames])
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb, "megabytes": megabytes, "floor_s": floor_s}))


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]))
