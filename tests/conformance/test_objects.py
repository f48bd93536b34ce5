"""Every object about every real slide: clean, readable by others, given back by a PACS, and the same content.

The report's answers are invented (`invented`), the slides' headers are real.
"""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest

from gateway.archive import open_archive
from gateway.reports.derived import Kind, ObjectName
from gateway.reports.encode import write_all
from gateway.slides.phantom import write_phantom
from tests.conformance.invented import Invented, invented
from tests.conftest import ROOT, data_path
from tests.support.dciodvfy import validate
from tests.support.orthanc import Orthanc, running_orthanc

SLIDES = ("cmu_small_he", "csf_breast_pap", "metaplasia_he")
AS_RECEIVED = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyInstanceUID",
    "StudyID",
    "StudyDate",
)
READERS = {
    Kind.SR: highdicom.sr.srread,
    Kind.SEG: highdicom.seg.segread,
    Kind.PM: highdicom.imread,
    Kind.ANN: highdicom.ann.annread,
}


@dataclass(frozen=True)
class Written:
    """What was written about one slide: the DICOM files by kind."""

    made: Invented
    folder: Path
    files: dict[Kind, Path]

    def read(self, kind: Kind) -> pydicom.Dataset:
        return pydicom.dcmread(self.files[kind])


def slide_files(name: str) -> list[Path]:
    folder = ROOT / "tests" / "data" / name if name == "cmu_small_he" else data_path("slides", name)
    return sorted(folder.glob("*.dcm"))


@pytest.fixture(scope="module", params=SLIDES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write(slide_files(request.param), tmp_path_factory)


@pytest.fixture(scope="module")
def concatenated(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """What was written about a slide whose levels are three instances each."""
    truth = write_phantom(tmp_path_factory.mktemp("phantom"), width_px=2048, height_px=1536, levels=3, parts=3)
    return write([path for path in truth.files if path.name.startswith("level")], tmp_path_factory)


def write(slide: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Written:
    made = invented(slide, tmp_path_factory.mktemp("work"))
    folder = tmp_path_factory.mktemp("objects")
    write_all(folder, made.report, [made.source], made.pictures, segmentation_type="BINARY")
    files = {kind: path for kind in Kind for path in folder.glob(f"*.{kind.extension}.dcm")}
    return Written(made, folder, files)


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as server:
        yield server


def test_every_kind_is_written(written: Written) -> None:
    assert set(written.files) == set(Kind)


@pytest.mark.validators
@pytest.mark.parametrize("kind", Kind)
def test_validator_finds_no_error(written: Written, kind: Kind) -> None:
    assert validate(written.files[kind]) == []


@pytest.mark.validators
@pytest.mark.parametrize("kind", Kind)
def test_validator_finds_no_error_where_levels_are_concatenations(concatenated: Written, kind: Kind) -> None:
    assert validate(concatenated.files[kind]) == []


@pytest.mark.validators
@pytest.mark.parametrize("kind", Kind)
def test_dcmtk_reads_it(written: Written, kind: Kind) -> None:
    program = "dsrdump" if kind in (Kind.SR, Kind.KO) else "dcmdump"
    done = subprocess.run([program, str(written.files[kind])], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"E: " not in done.stderr


@pytest.mark.parametrize("kind", Kind)
def test_it_belongs_to_the_patient_and_the_study_of_the_slide(written: Written, kind: Kind) -> None:
    image, found = written.made.source.image, written.read(kind)
    for keyword in AS_RECEIVED:
        assert found[keyword].value == (image[keyword].value if keyword in image else None), keyword
    software = written.made.report.software
    assert (found.Manufacturer, found.ManufacturerModelName) == (software.manufacturer, software.name)
    assert (found.DeviceSerialNumber, found.SoftwareVersions) == (software.device_uid, software.version)


def test_each_lies_in_a_series_of_its_own_under_the_analysis_name(written: Written) -> None:
    image, analysis = written.made.source.image, written.made.report.analysis_id
    found = {kind: written.read(kind) for kind in Kind}
    assert len({dataset.SeriesInstanceUID for dataset in found.values()} | {image.SeriesInstanceUID}) == len(Kind) + 1
    for kind, dataset in found.items():
        of = image.SeriesInstanceUID if kind in (Kind.SEG, Kind.PM, Kind.ANN) else image.StudyInstanceUID
        name = ObjectName(analysis, kind, of)
        assert (dataset.SOPInstanceUID, dataset.SeriesInstanceUID) == (name.sop_instance_uid, name.series_instance_uid)
        assert "exploratory" in dataset.SeriesDescription.lower()


@pytest.mark.parametrize("kind", [Kind.SEG, Kind.PM, Kind.ANN])
def test_it_lies_on_the_slide(written: Written, kind: Kind) -> None:
    image, found = written.made.source.image, written.read(kind)
    assert found.FrameOfReferenceUID == image.FrameOfReferenceUID
    assert found.ContainerIdentifier == image.ContainerIdentifier
    levels = {str(level.SOPInstanceUID) for level in written.made.source.levels}
    [series] = found.ReferencedSeriesSequence
    named = {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence}
    assert series.SeriesInstanceUID == image.SeriesInstanceUID
    assert named
    assert named <= levels


@pytest.mark.parametrize("kind", [Kind.SEG, Kind.PM])
def test_what_lies_on_a_concatenated_level_names_all_parts(concatenated: Written, kind: Kind) -> None:
    source, found = concatenated.made.source, concatenated.read(kind)
    [at] = [at for at, level in enumerate(source.levels) if level.TotalPixelMatrixRows == found.TotalPixelMatrixRows]
    parts = source.instances[at]
    assert at > source.read
    assert len(set(parts)) == 3
    [derivation] = found.SharedFunctionalGroupsSequence[0].DerivationImageSequence
    [series] = found.ReferencedSeriesSequence
    for items in (found.SourceImageSequence, derivation.SourceImageSequence, series.ReferencedInstanceSequence):
        assert tuple(item.ReferencedSOPInstanceUID for item in items) == parts


@pytest.mark.parametrize("kind", [Kind.SR, Kind.KO])
def test_the_evidence_names_all_parts_of_the_level_that_was_read(concatenated: Written, kind: Kind) -> None:
    source = concatenated.made.source
    [study] = concatenated.read(kind).CurrentRequestedProcedureEvidenceSequence
    named = {item.SeriesInstanceUID: item.ReferencedSOPSequence for item in study.ReferencedSeriesSequence}
    parts = {item.ReferencedSOPInstanceUID for item in named[source.series]}
    assert parts == set(source.instances[source.read])
    assert len(parts) == 3


@pytest.mark.parametrize("kind", sorted(READERS, key=lambda kind: kind.name))
def test_highdicom_reads_it(written: Written, kind: Kind) -> None:
    assert READERS[kind](written.files[kind]).SOPInstanceUID == written.read(kind).SOPInstanceUID


def test_segmentation_says_what_the_report_says(written: Written) -> None:
    [tissue] = written.made.report.tissue
    seg = highdicom.seg.segread(written.files[Kind.SEG])
    shown = {entry.code.code: entry for entry in tissue.classes}
    spacing_mm = [float(value) for value in seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing]
    drawn = seg.get_total_pixel_matrix(combine_segments=False)
    seen = set()
    for index, number in enumerate(seg.segment_numbers):
        described = seg.get_segment_description(number)
        code = described.segmented_property_type.value
        if code not in shown:
            continue
        seen.add(code)
        area_mm2 = np.count_nonzero(drawn[..., index]) * spacing_mm[0] * spacing_mm[1]
        # A segment covers whole tiles, the report counts their part under tissue.
        assert area_mm2 >= shown[code].area_mm2 * 0.9 if shown[code].tiles else area_mm2 == 0, code
    assert seen == set(shown)


def test_annotations_say_what_the_report_says(written: Written) -> None:
    [tissue] = written.made.report.tissue
    ann = highdicom.ann.annread(written.files[Kind.ANN])
    found = {group.annotated_property_type.value for group in ann.get_annotation_groups()}
    assert found >= {entry.code.code for entry in tissue.classes if entry.tiles}
    assert not found & {entry.code.code for entry in tissue.classes if not entry.tiles}


def test_structured_report_says_what_the_report_says(written: Written) -> None:
    text = json.dumps(written.read(Kind.SR).to_json_dict())
    [tissue] = written.made.report.tissue
    for entry in tissue.classes:
        assert entry.code.code in text


def test_document_is_the_pdf_beside_it(written: Written) -> None:
    document = written.read(Kind.PDF)
    data = (written.folder / "report.pdf").read_bytes()
    assert bytes(document.EncapsulatedDocument)[: document.EncapsulatedDocumentLength] == data
    assert data.startswith(b"%PDF-")


def test_key_objects_list_every_other_object(written: Written) -> None:
    selection = written.read(Kind.KO)
    listed = {
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for item in selection.ContentSequence
        if "ReferencedSOPSequence" in item
    }
    assert {written.read(kind).SOPInstanceUID for kind in Kind if kind is not Kind.KO} <= listed


@pytest.mark.pacs
def test_pacs_gives_each_back_byte_for_byte(written: Written, orthanc: Orthanc) -> None:
    order = [path for kind, path in written.files.items() if kind is not Kind.KO] + [written.files[Kind.KO]]
    archive = open_archive(orthanc.address)
    archive.store(order)
    for path in order:
        assert orthanc.file(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID) == path.read_bytes()
    before = orthanc.instances()
    archive.store(order)
    assert orthanc.instances() == before


@pytest.mark.validators
def test_label_map_is_clean_too(written: Written, tmp_path: Path) -> None:
    write_all(tmp_path, written.made.report, [written.made.source], written.made.pictures, segmentation_type="LABELMAP")
    [path] = tmp_path.glob("*.seg.dcm")
    assert validate(path) == []
    binary = highdicom.seg.segread(written.files[Kind.SEG]).get_total_pixel_matrix(combine_segments=False)
    labels = highdicom.seg.segread(path).get_total_pixel_matrix(combine_segments=False)
    np.testing.assert_array_equal(labels[..., -binary.shape[-1] :], binary)
