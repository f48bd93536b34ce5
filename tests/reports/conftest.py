"""Realistic reports over the committed slide's real headers."""

import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pydicom
import pytest

from gateway.domain.codes import PRIVATE_SCHEME, Code
from gateway.domain.model import ModelVersion
from gateway.domain.order import Order, Patient, SlideReference, Specimen
from gateway.domain.report import (
    BoxPx,
    Evidence,
    Finding,
    FindingKind,
    Report,
    ReportState,
    SlideReading,
    Software,
    TissueClass,
    TissueResult,
)
from gateway.domain.slide import SlideHeader, TileGrid
from gateway.reports import UNCERTAIN, SlideSource, TileMap, result_objects, write_all

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "tests" / "data" / "cmu_small_he"
DATA = Path(os.environ.get("PATHSERVE_DATA", ROOT.parent / "shared" / "data"))

LABELS = (
    ("55603005", "SCT", "Adipose tissue", "#f2d16b", 12),
    ("lymphocytes", PRIVATE_SCHEME, "Lymphocytes", "#5b5fc7", 3),
    ("49909006", "SCT", "Mucus", "#7fc8c2", 0),
    ("91727004", "SCT", "Smooth muscle", "#d98a4e", 17),
    ("normal-mucosa", PRIVATE_SCHEME, "Normal colon mucosa", "#7bb661", 21),
    ("stroma", PRIVATE_SCHEME, "Cancer-associated stroma", "#c77db5", 9),
    ("tumor-epithel", PRIVATE_SCHEME, "Colorectal adenocarcinoma epithelium", "#c0392b", 31),
)
UNCERTAIN_TILES = 7
WITH_EVIDENCE = (0, 6)


def volume_headers(folder: Path) -> list[pydicom.Dataset]:
    """Headers of the VOLUME instances of a slide, finest first."""
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in sorted(folder.glob("*.dcm"))]
    volumes = [header for header in headers if header.ImageType[2] == "VOLUME"]
    return sorted(volumes, key=lambda header: -header.TotalPixelMatrixColumns)


def single(levels: Sequence[pydicom.Dataset]) -> tuple[tuple[str, ...], ...]:
    """The instances of levels that have one each."""
    return tuple((str(level.SOPInstanceUID),) for level in levels)


def header_of(image: pydicom.Dataset) -> SlideHeader:
    specimen = image.SpecimenDescriptionSequence[0]
    return SlideHeader(
        study_uid=image.StudyInstanceUID,
        series_uid=image.SeriesInstanceUID,
        frame_of_reference_uid=image.FrameOfReferenceUID,
        patient_id=image.PatientID,
        patient_id_issuer=image.get("IssuerOfPatientID"),
        patient_name=str(image.PatientName),
        patient_birth_date=image.PatientBirthDate,
        patient_sex=image.PatientSex,
        accession=image.AccessionNumber,
        container_id=image.ContainerIdentifier,
        specimen_id=specimen.SpecimenIdentifier,
        specimen_uid=specimen.SpecimenUID,
        manufacturer=image.Manufacturer,
        model_name=image.ManufacturerModelName,
        serial_number=image.DeviceSerialNumber,
    )


def reading_of(image: pydicom.Dataset) -> SlideReading:
    spacing_mm = float(image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing[0])
    field_px = 200
    return SlideReading(
        study=image.StudyInstanceUID,
        series=image.SeriesInstanceUID,
        read=True,
        header=header_of(image),
        container=image.ContainerIdentifier,
        stain="HE",
        site=Code("71854001", "SCT", "Colon structure"),
        grid=TileGrid(
            level=0,
            mpp=spacing_mm * 1000 * field_px / 224,
            tile_px=224,
            field_px=field_px,
            columns=image.TotalPixelMatrixColumns // field_px,
            rows=image.TotalPixelMatrixRows // field_px,
        ),
        level_mpp=spacing_mm * 1000,
        level_width_px=image.TotalPixelMatrixColumns,
        level_height_px=image.TotalPixelMatrixRows,
        sop_instance_uids=(image.SOPInstanceUID,),
        tissue_area_mm2=1.2345,
        tiles_read=sum(label[4] for label in LABELS) + UNCERTAIN_TILES,
    )


def result_of(slide: SlideReading, *, exploratory: bool = False, scale: float = 1.0) -> TissueResult:
    """Counts of LABELS as areas and shares; `scale` shrinks the tile's area, as partly covered tiles do."""
    assert slide.grid is not None
    assert slide.level_mpp is not None
    tile_mm2 = slide.grid.tile_area_mm2 * scale
    total = sum(label[4] for label in LABELS) + UNCERTAIN_TILES
    classes = []
    for index, (code, scheme, display, color, tiles) in enumerate(LABELS):
        shown = Code(f"pattern-{index + 1}", PRIVATE_SCHEME, f"Tissue pattern {index + 1}")
        evidence = tuple(
            Evidence(
                sop_instance_uid=slide.sop_instance_uids[0],
                box=BoxPx(x_px=200 * (index + rank), y_px=200 * rank, width_px=200, height_px=200),
                x_um=200 * (index + rank) * slide.level_mpp,
                y_um=200 * rank * slide.level_mpp,
                size_um=slide.grid.tile_um,
                probability=0.97 - 0.03 * rank - 0.01 * index,
            )
            for rank in range(2 if index in WITH_EVIDENCE else 0)
        )
        classes.append(
            TissueClass(
                index=index,
                code=shown if exploratory else Code(code, scheme, display),
                color=color,
                tiles=tiles,
                area_mm2=tiles * tile_mm2,
                share=tiles / total,
                mean_probability=0.913 - 0.021 * index if tiles else None,
                evidence=evidence,
            )
        )
    return TissueResult(
        series=slide.series,
        exploratory=exploratory,
        classes=tuple(classes),
        uncertain_tiles=UNCERTAIN_TILES,
        uncertain_area_mm2=UNCERTAIN_TILES * tile_mm2,
        uncertain_share=UNCERTAIN_TILES / total,
        tiles=total,
        area_mm2=total * tile_mm2,
        operating_point="default",
        min_probability=0.6,
    )


def report_of(
    slides: Sequence[SlideReading], results: Sequence[TissueResult], findings: Sequence[Finding] = ()
) -> Report:
    models = tuple(
        ModelVersion(
            name=name,
            version="1",
            kind=kind,
            target="onnx",
            precision="fp32",
            engine_sha256=f"{number}a" * 32,
            weights_sha256=f"{number}b" * 32,
            recipe=f"{name}-small.toml",
            recipe_sha256=f"{number}c" * 32,
            manifest_sha256=f"{number}d" * 32,
        )
        for number, (name, kind) in enumerate((("tile_encoder", "encoder"), ("tissue_head", "head")), 1)
    )
    header = next(slide.header for slide in slides if slide.header)
    return Report(
        schema_version="1",
        analysis_id="0b6cf9f0-5d0a-4b6e-9a49-3c3a4ee1d0f7",
        protocol="tissue-classification",
        state=ReportState.PRELIMINARY,
        issued=datetime(2026, 11, 26, 9, 30, 15, 250000, tzinfo=UTC),
        statement="Research use, not a medical device. Made for H&E sections of the colon at 0.5 µm per pixel.",
        exploratory=any(result.exploratory for result in results),
        software=Software(
            name="pathserve", manufacturer="pathserve developers", version="0.1.0", device_uid="2.25.329800735698586"
        ),
        models=models,
        order=Order(
            protocol="tissue-classification",
            specimens=(Specimen(slides=tuple(SlideReference(slide.study, (slide.series,)) for slide in slides)),),
            accession=header.accession,
            patient=Patient(id=header.patient_id),
        ),
        slides=tuple(slides),
        findings=tuple(findings),
        tissue=tuple(results),
    )


def source_of(image: pydicom.Dataset, result: TissueResult | None) -> SlideSource:
    """A slide of one level with the result's tiles one after the other on its grid; no tiles without a result."""
    grid = reading_of(image).grid
    assert grid is not None
    return SlideSource(
        series=image.SeriesInstanceUID,
        levels=(image,),
        instances=((image.SOPInstanceUID,),),
        read=0,
        tiles=None if result is None else tile_map(grid, result),
    )


def tile_map(grid: TileGrid, result: TissueResult) -> TileMap:
    """The tiles of a result in reading order, each as probable, and as far under tissue, as its class is on average."""
    classes = [*((tissue.index, tissue.tiles) for tissue in result.classes), (UNCERTAIN, result.uncertain_tiles)]
    classes_N = np.repeat([index for index, _ in classes], [tiles for _, tiles in classes]).astype(np.int32)
    numbers_N = np.arange(len(classes_N))
    probabilities_NC = np.full((len(classes_N), len(result.classes)), 0.01, np.float32)
    for tissue in result.classes:
        probabilities_NC[classes_N == tissue.index, tissue.index] = tissue.mean_probability or 0.0
    return TileMap(
        series=result.series,
        rows_N=(numbers_N // grid.columns).astype(np.int32),
        columns_N=(numbers_N % grid.columns).astype(np.int32),
        classes_N=classes_N,
        probabilities_NC=probabilities_NC,
        tissue_N=np.full(len(classes_N), result.area_mm2 / result.tiles / grid.tile_area_mm2, np.float32),
    )


def encoded(
    report: Report, sources: Sequence[SlideSource], pictures: Mapping[str, bytes] | None = None
) -> tuple[Report, dict[str, bytes]]:
    """The report with its files named, and what all of them hold, by name."""
    named = replace(report, objects=result_objects(report.slides, sources))
    with TemporaryDirectory() as folder:
        write_all(Path(folder), named, sources, pictures or {}, segmentation_type="BINARY")
        return named, {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


@pytest.fixture(scope="session")
def image() -> pydicom.Dataset:
    """Header of the finest level of the committed slide."""
    return volume_headers(COMMITTED)[0]


@pytest.fixture(scope="session")
def second_image(image: pydicom.Dataset) -> pydicom.Dataset:
    """A second slide of the same study and patient: another series, instance, container and specimen."""
    other = deepcopy(image)
    other.SeriesInstanceUID = "2.25.901"
    other.SOPInstanceUID = "2.25.902"
    other.ContainerIdentifier = "ACC0001-A2-1"
    specimen = deepcopy(image.SpecimenDescriptionSequence[0])
    specimen.SpecimenUID = "2.25.903"
    specimen.SpecimenIdentifier = "ACC0001-A2-1"
    other.SpecimenDescriptionSequence = [specimen]
    return other


@pytest.fixture(scope="session")
def report(image: pydicom.Dataset) -> Report:
    """One slide inside the intended use."""
    slide = reading_of(image)
    finding = Finding(
        kind=FindingKind.CONFIDENCE,
        code=Code("uncertain-area", PRIVATE_SCHEME, "Uncertain area"),
        text="7.0 % of the tissue area that was read reached no operating point.",
        series=slide.series,
    )
    return report_of([slide], [result_of(slide)], [finding])


@pytest.fixture(scope="session")
def exploratory(image: pydicom.Dataset) -> Report:
    """One slide whose organ is unknown: only exploratory codes."""
    slide = replace(reading_of(image), site=None)
    finding = Finding(
        kind=FindingKind.INTENDED_USE,
        code=Code("organ-unknown", PRIVATE_SCHEME, "Organ unknown"),
        text="The organ is not known, so the slide lies outside the intended use of the model.",
        series=slide.series,
    )
    return report_of([slide], [result_of(slide, exploratory=True)], [finding])


@pytest.fixture(scope="session")
def two_slides(image: pydicom.Dataset, second_image: pydicom.Dataset) -> Report:
    """Two slides of one study that were read, and a third that was not."""
    first, second = reading_of(image), reading_of(second_image)
    unread = replace(
        first, series="2.25.77", read=False, reason="The series has no VOLUME image.", header=None, container=None
    )
    return report_of([first, second, unread], [result_of(first), result_of(second, scale=0.5)])


@pytest.fixture(scope="session")
def second_study(image: pydicom.Dataset, two_slides: Report) -> tuple[Report, list[pydicom.Dataset]]:
    """Two slides of two studies, and their source images."""
    other = deepcopy(image)
    other.StudyInstanceUID = "2.25.904"
    other.SeriesInstanceUID = "2.25.905"
    other.SOPInstanceUID = "2.25.906"
    first, second = reading_of(image), reading_of(other)
    return report_of([first, second], [result_of(first), result_of(second, scale=0.5)]), [image, other]


@pytest.fixture(scope="session")
def whole_slide() -> tuple[Report, pydicom.Dataset]:
    """A whole slide's report and the header of the level that was read."""
    folder = DATA / "slides" / "metaplasia_he"
    if not folder.is_dir():
        pytest.skip("data set not present: slides/metaplasia_he (set PATHSERVE_DATA)")
    source = volume_headers(folder)[0]
    slide = reading_of(source)
    return report_of([slide], [result_of(slide)]), source
