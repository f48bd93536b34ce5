import subprocess
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest
from highdicom.ko import KeyObjectSelectionDocument

from gateway.domain.report import Report
from gateway.operations.errors import PathserveError
from gateway.reports import SlideSource, to_sr
from gateway.reports.ann import write_annotations
from gateway.reports.derived import Kind, ObjectName
from gateway.reports.encapsulated import write_encapsulated_pdf
from gateway.reports.key_objects import write_key_objects
from gateway.reports.seg import write_seg
from tests.reports.conftest import source_of
from tests.reports.drawn import POOR, drawn, poor, real_levels
from tests.support.dciodvfy import needs_dciodvfy, validate
from tests.support.dicom import file_bytes


def objects_of(folder: Path, report: Report, *sources: SlideSource) -> list[Path]:
    """Real objects of one study: what is drawn on each slide, the report, the document."""
    images = [source.image for source in sources]
    files = []
    for number, source in enumerate(sources, 1):
        files += [folder / f"{number}.seg.dcm", folder / f"{number}.ann.dcm"]
        write_seg(files[-2], report, source, segmentation_type="BINARY")
        write_annotations(files[-1], report, source)
    files += [folder / "sr.dcm", folder / "pdf.dcm"]
    files[-2].write_bytes(file_bytes(to_sr(report, images)))
    write_encapsulated_pdf(files[-1], report, images[0], b"%PDF-1.7")
    return files


def check(path: Path, report: Report, images: list[pydicom.Dataset], files: list[Path]) -> pydicom.Dataset:
    """Every object, then every image, is listed once, by the right type, and resolves to its series."""
    document = KeyObjectSelectionDocument.from_dataset(pydicom.dcmread(path))
    listed = [*(pydicom.dcmread(file) for file in files), *images]
    found = document.content.get_references()
    assert [item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in found] == [
        item.SOPInstanceUID for item in listed
    ]
    for item, target in zip(found, listed, strict=True):
        assert item.ReferencedSOPSequence[0].ReferencedSOPClassUID == target.SOPClassUID
        assert (item.ValueType == "IMAGE") == ("Rows" in target)
        assert document.resolve_reference(target.SOPInstanceUID) == (
            images[0].StudyInstanceUID,
            target.SeriesInstanceUID,
            target.SOPInstanceUID,
        )
    (study,) = document.CurrentRequestedProcedureEvidenceSequence
    assert len(study.ReferencedSeriesSequence) == len({item.SeriesInstanceUID for item in listed})
    name = ObjectName(report.analysis_id, Kind.KO, str(images[0].StudyInstanceUID))
    assert (document.SOPInstanceUID, document.SeriesInstanceUID) == (name.sop_instance_uid, name.series_instance_uid)
    assert document.Manufacturer == report.software.manufacturer
    assert document.PatientName == images[0].PatientName
    return document


@pytest.mark.validators
@needs_dciodvfy
def test_lists_every_object_of_a_study_with_two_slides(
    two_slides: Report, image: pydicom.Dataset, second_image: pydicom.Dataset, tmp_path: Path
) -> None:
    sources = [source_of(of, result) for of, result in zip((image, second_image), two_slides.tissue, strict=True)]
    files = objects_of(tmp_path, two_slides, *sources)
    assert len(files) == 6
    write_key_objects(tmp_path / "ko.dcm", two_slides, [image, second_image], files)
    assert validate(tmp_path / "ko.dcm") == []
    check(tmp_path / "ko.dcm", two_slides, [image, second_image], files)
    dumped = subprocess.run(["dsrdump", str(tmp_path / "ko.dcm")], capture_output=True, text=True, check=True).stdout
    assert '"Manifest"' in dumped
    assert dumped.count("<contains IMAGE") == 4
    assert dumped.count("<contains COMPOSITE") == 4


@pytest.mark.validators
@needs_dciodvfy
@pytest.mark.parametrize("name", ["metaplasia_he", "csf_breast_pap"])
def test_validators_on_a_whole_slide(name: str, tmp_path: Path) -> None:
    report, source = drawn(real_levels(name))
    files = objects_of(tmp_path, report, source)
    write_key_objects(tmp_path / "ko.dcm", report, [source.image], files)
    assert validate(tmp_path / "ko.dcm") == []
    check(tmp_path / "ko.dcm", report, [source.image], files)


@pytest.mark.validators
@needs_dciodvfy
@pytest.mark.parametrize("name", POOR)
def test_a_poor_header_still_gives_an_object(name: str, tmp_path: Path) -> None:
    report, source = poor(name)
    files = [tmp_path / "a.dcm"]
    write_encapsulated_pdf(files[0], report, source.image, b"%PDF-1.7")
    write_key_objects(tmp_path / "ko.dcm", report, [source.image], files)
    assert validate(tmp_path / "ko.dcm") == []
    check(tmp_path / "ko.dcm", report, [source.image], files)


def test_says_what_it_is_and_how_sure(exploratory: Report, image: pydicom.Dataset, tmp_path: Path) -> None:
    files = objects_of(tmp_path, exploratory, source_of(image, exploratory.tissue[0]))
    write_key_objects(tmp_path / "ko.dcm", exploratory, [image], files)
    document = check(tmp_path / "ko.dcm", exploratory, [image], files)
    title = document.ConceptNameCodeSequence[0]
    assert (title.CodeValue, title.CodingSchemeDesignator) == ("113030", "DCM")
    texts = [item.TextValue for item in document.ContentSequence if item.ValueType == "TEXT"]
    (description,) = (text for text in texts if exploratory.analysis_id in text)
    for statement in ("Research use only", "Preliminary and unsigned", "Exploratory result"):
        assert statement in description
    assert document.SeriesDescription.endswith("exploratory: key objects")


def test_lists_every_part_of_a_level(report: Report, image: pydicom.Dataset, tmp_path: Path) -> None:
    parts = (image.SOPInstanceUID, "2.25.31", "2.25.32")
    divided = replace(report, slides=(replace(report.slides[0], sop_instance_uids=parts),))
    files = objects_of(tmp_path, divided, source_of(image, divided.tissue[0]))
    write_key_objects(tmp_path / "ko.dcm", divided, [image], files)
    instances = [deepcopy(image) for _ in parts]
    for instance, uid in zip(instances, parts, strict=True):
        instance.SOPInstanceUID = uid
    check(tmp_path / "ko.dcm", divided, instances, files)


def test_encoding_twice_gives_the_same_bytes(report: Report, image: pydicom.Dataset, tmp_path: Path) -> None:
    files = objects_of(tmp_path, report, source_of(image, report.tissue[0]))
    for name in "ab":
        write_key_objects(tmp_path / name, report, [image], files)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_objects_of_another_study_are_refused(
    second_study: tuple[Report, list[pydicom.Dataset]], tmp_path: Path
) -> None:
    report, (one, other) = second_study
    write_encapsulated_pdf(tmp_path / "a.dcm", report, other, b"%PDF-1.7")
    with pytest.raises(PathserveError, match="one study"):
        write_key_objects(tmp_path / "ko.dcm", report, [one], [tmp_path / "a.dcm"])
    with pytest.raises(PathserveError, match="one study"):
        write_key_objects(tmp_path / "ko.dcm", report, [one], [])
    assert not (tmp_path / "ko.dcm").exists()
