"""Smears in several focal planes or under several lights: one plane and one light are read, and the report says so;
what leaves the choice open is refused, with what to do."""

import html
import json
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from gateway.archive import FolderArchive
from gateway.domain.bethesda import HSIL
from gateway.operations.errors import InvalidSlide
from tests.analyses.frugal import FrugalArchive
from tests.analyses.test_screening import case_run
from tests.reports.pdf_text import pages
from tests.slides.made import BRIGHTFIELD, EPIFLUORESCENCE, optical_path
from tests.support.bags import OnnxEngine
from tests.support.screening import CERVIX, screened, screening, smear, write_smear

Change = Callable[[pydicom.Dataset], list[pydicom.Dataset]]
PLANES = "The slide has 3 focal planes or repeats; the middle one, or the first acquired, was read."
PATHS = "The slide has several optical paths; the one under brightfield illumination was read."
DARK, WHITE = 0, 255
"""What the other planes and lights show: taken for the smear, either would have no cell."""


def changed(folder: Path, change: Change) -> Path:
    """The slide in a folder, with other images in the place of each of its levels'."""
    for path in sorted(folder.glob("level-*.dcm")):
        for number, dataset in enumerate(change(pydicom.dcmread(path))):
            dataset.save_as(path if number == 0 else path.with_stem(f"{path.stem}-{number}"))
    return folder


def blank(dataset: pydicom.Dataset, value: int) -> bytes:
    return bytes([value]) * len(dataset.PixelData)


def planes_in_one_image(dataset: pydicom.Dataset) -> list[pydicom.Dataset]:
    """Below, through and above the cells."""
    dataset.TotalPixelMatrixFocalPlanes = 3
    dataset.NumberOfFrames = 3 * int(dataset.NumberOfFrames)
    dataset.PixelData = blank(dataset, DARK) + dataset.PixelData + blank(dataset, WHITE)
    return [dataset]


def planes_as_images(dataset: pydicom.Dataset) -> list[pydicom.Dataset]:
    """Each in an image of its own, the one through the cells acquired last."""
    images = []
    for number, (height_um, value) in enumerate(((3.0, WHITE), (-3.0, DARK), (0.0, None))):
        image = pydicom.dcmread(dataset.filename)
        image.SOPInstanceUID = generate_uid(entropy_srcs=[dataset.SOPInstanceUID, str(number)])
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.InstanceNumber = 10 * int(dataset.InstanceNumber) + number
        image.TotalPixelMatrixOriginSequence[0].ZOffsetInSlideCoordinateSystem = str(height_um)
        if value is not None:
            image.PixelData = blank(dataset, value)
        images.append(image)
    return images


def lights(*paths: Dataset) -> Change:
    """Two optical paths in one image, of which the second shows the smear."""

    def change(dataset: pydicom.Dataset) -> list[pydicom.Dataset]:
        dataset.NumberOfOpticalPaths = 2
        dataset.OpticalPathSequence = list(paths)
        del dataset.SharedFunctionalGroupsSequence[0].OpticalPathIdentificationSequence
        dataset.NumberOfFrames = 2 * int(dataset.NumberOfFrames)
        dataset.PixelData = blank(dataset, DARK) + dataset.PixelData
        return [dataset]

    return change


FLUORESCENT = lights(optical_path("F", EPIFLUORESCENCE), optical_path("B", BRIGHTFIELD))
OPEN = lights(optical_path("1", BRIGHTFIELD), optical_path("2", BRIGHTFIELD))


def slide(folder: Path, change: Change, root: str = "planes") -> Path:
    """A smear with one abnormal cell."""
    return changed(write_smear(folder, smear([(HSIL, 120, 130)], size_um=400), root=root, organ=CERVIX), change)


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        (planes_in_one_image, "focal-plane-chosen", PLANES),
        (planes_as_images, "focal-plane-chosen", PLANES),
        (FLUORESCENT, "optical-path-chosen", PATHS),
    ],
    ids=["planes in one image", "planes as images", "two lights"],
)
async def test_what_was_read_is_what_shows_the_cells_and_every_encoding_says_so(
    screening_models: Path, tmp_path: Path, change: Change, code: str, text: str
) -> None:
    """From an archive that brings no other frames than those."""
    plain = write_smear(tmp_path / "plain", smear([(HSIL, 120, 130)], size_um=400), root="planes", organ=CERVIX)
    said = []
    for name, folder in (("alone", plain), ("chosen", slide(tmp_path / "slide", change))):
        archive = FrugalArchive(folder)
        async with case_run(folder, screening_models, tmp_path / name, OnnxEngine(screening_models), archive) as run:
            await run.fetch()
            await run.infer()
            await run.report()
        report = json.loads((run.artifacts / "report.json").read_text())
        said.append((archive.frames_brought, report["screenings"][0]["detected"], report["probabilities"]))
    assert said[0] == said[1]
    assert report["category"]["label"] == "HSIL"
    [finding] = [each for each in report["findings"] if each["code"]["code"] == code]
    assert (finding["kind"], finding["text"]) == ("quality", text)
    assert text in html.unescape((run.artifacts / "report.html").read_text())
    assert "".join(text.split()) in "".join(pages((run.artifacts / "report.pdf").read_bytes()))
    structured = pydicom.dcmread(run.artifacts / "report.sr.dcm")
    assert any(text in str(each.value) for each in structured.iterall() if each.keyword == "TextValue")
    drawn = pydicom.dcmread(run.artifacts / "cells-1.ann.dcm")
    [referenced] = {str(each.ReferencedSOPInstanceUID) for each in drawn.ReferencedImageSequence}
    finest = [pydicom.dcmread(path, stop_before_pixels=True) for path in folder.glob("level-0*.dcm")]
    read = [each for each in finest if str(each.SOPInstanceUID) == referenced]
    assert len(read) == 1
    if change is planes_as_images:
        assert float(read[0].TotalPixelMatrixOriginSequence[0].ZOffsetInSlideCoordinateSystem) == 0


async def test_what_leaves_the_light_open_is_refused_with_what_to_do(screening_models: Path, tmp_path: Path) -> None:
    plain = write_smear(tmp_path / "plain", smear([], size_um=400), root="planes", organ=CERVIX)
    folder = slide(tmp_path / "slide", OPEN)
    engine = OnnxEngine(screening_models)
    sentence = r"has 2 optical paths and its header calls 2 of them brightfield, .* Send the slide's brightfield images"
    async with case_run(plain, screening_models, tmp_path, engine, FolderArchive(folder)) as run:
        with pytest.raises(InvalidSlide, match=sentence):
            await run.fetch()
    assert engine.calls == {}
    assert not run.artifacts.exists()


async def test_a_plane_that_is_read_and_shows_nothing_is_not_called_negative(
    screening_models: Path, tmp_path: Path
) -> None:
    """The middle one need not be the one that shows the cells."""

    def middle_is_empty(dataset: pydicom.Dataset) -> list[pydicom.Dataset]:
        cells = dataset.PixelData
        dataset.TotalPixelMatrixFocalPlanes = 3
        dataset.NumberOfFrames = 3 * int(dataset.NumberOfFrames)
        dataset.PixelData = cells + blank(dataset, 243) + cells
        return [dataset]

    folder = slide(tmp_path / "slide", middle_is_empty)
    with screening(folder, screening_models, tmp_path / "task", site=CERVIX) as task:
        outcome = await screened(task, OnnxEngine(screening_models))
    assert outcome.screening is not None
    assert (outcome.screening.abnormal, outcome.screening.categories) == (None, ())
    assert {"focal-plane-chosen", "unsatisfactory-empty"} <= {finding.code.code for finding in outcome.findings}
