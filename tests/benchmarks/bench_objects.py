"""Segmentations of a whole slide at full resolution: seconds and peak memory of a fresh process that writes one."""

import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import cv2
import highdicom as hd
import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom

from gateway.domain.codes import PRIVATE_SCHEME, Code
from gateway.domain.order import Order, Specimen
from gateway.domain.report import Report, ReportState, SlideReading, Software
from gateway.reports.derived import Kind, ObjectName
from gateway.reports.pyramid import PyramidLevel
from gateway.reports.seg import Segment, write_segments
from gateway.reports.sr_concepts import TISSUE
from tests.benchmarks.rows import Row

_SIDE_PX, _HIGHDICOM_PX = 28_000, 7_000
_MOST_MB = 600

Tiles = list[npt.NDArray[np.uint8]]


def measure(slide: Path) -> list[Row]:
    """`slide` holds a slide of 28,000² pixels, whose header is what the masks are of."""
    rows = []
    for kind, floor_of in (
        ("BINARY", f"highdicom, a whole array of {_HIGHDICOM_PX:,}², by the pixel: {{:.2f}}"),
        ("FRACTIONAL", "imagecodecs, JPEG-LS of the same tiles in memory: {:.2f}"),
        ("LABELMAP", "imagecodecs, JPEG-LS of the same tiles in memory: {:.2f}"),
    ):
        command = [sys.executable, "-m", "tests.benchmarks.bench_objects", kind, str(slide)]
        root = Path(__file__).parents[2]
        run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
        got = json.loads(run.stdout)
        floor = floor_of.format(got["floor_s"])
        name = f"SEG {kind}, {_SIDE_PX:,}² mask, {got['megabytes']:.0f} MB"
        rows += [
            Row(name, got["seconds"], "s", floor, got["floor_s"] / got["seconds"], 1.0 if kind == "BINARY" else 0.8),
            Row(f"SEG {kind}: peak memory", got["peak_mb"], "MB", goal=_MOST_MB, lower_is_better=True),
        ]
    return rows


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


def _main(kind: str, slide: Path) -> None:
    tiles = _tiles(512, {"BINARY": 1, "FRACTIONAL": 255, "LABELMAP": 7}[kind])
    count = (-(-_SIDE_PX // 512)) ** 2
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mask.seg.dcm")
        seconds = _write(path, kind, slide, itertools.islice(itertools.cycle(tiles), count))
        megabytes = path.stat().st_size / 1e6
    # VmHWM starts afresh with the program; read before the floor is measured, which has its own memory.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak_mb = int(status["VmHWM"].split()[0]) / 1024
    if kind == "BINARY":
        floor_s = _highdicom_s(slide, tiles)
    else:
        frames = itertools.islice(itertools.cycle(tiles), count)
        floor_s = _seconds(lambda: [len(imagecodecs.jpegls_encode(frame)) for frame in frames])
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb, "megabytes": megabytes, "floor_s": floor_s}))


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]))
