"""What all derived objects have in common: patient and study as received, names, times, whose codes they use."""

from copy import deepcopy
from datetime import UTC, datetime
from io import BytesIO

import numpy as np
import pydicom
import pytest
from pydicom import Dataset

from gateway.domain.codes import PRIVATE_SCHEME, Code
from gateway.domain.report import Report
from gateway.reports import dicom_file, to_sr
from gateway.reports.derived import Kind, ObjectName, complete, copy_specimen, local_time
from gateway.reports.spatial import tile_under
from gateway.reports.sr_concepts import coded

NAMES = {
    "ISO_IR 100": "Müller^Jürgen",
    "ISO_IR 144": "Люкceмбypг",
    "ISO_IR 192": "Yamada^Tarou=山田^太郎=やまだ^たろう",
    "GB18030": "Wang^XiaoDong=王^小东",
    "\\ISO 2022 IR 87": "Yamada^Tarou=山田^太郎=やまだ^たろう",
    "\\ISO 2022 IR 149": "Hong^Gildong=洪^吉洞=홍^길동",
}


def read_again(dataset: Dataset) -> Dataset:
    """The dataset as a file gives it: every text still in the bytes of its own character set."""
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    buffer.seek(0)
    return pydicom.dcmread(buffer)


def completed(report: Report, image: Dataset, code: Code | None = None) -> Dataset:
    """An object with the specimen and one code, read again."""
    dataset = dicom_file.begin("1.2.840.10008.5.1.4.1.1.104.1", "DOC")
    copy_specimen(dataset, image)
    if code is not None:
        dataset.ConceptNameCodeSequence = [coded(code)]
    complete(dataset, report, image, ObjectName(report.analysis_id, Kind.PDF, str(image.StudyInstanceUID)))
    return read_again(dataset)


@pytest.mark.parametrize("character_set", NAMES)
def test_names_keep_their_characters(character_set: str, report: Report, image: Dataset) -> None:
    """Also those within sequences, which inherit the character set of the dataset around them."""
    foreign = deepcopy(image)
    foreign.SpecificCharacterSet = character_set.split("\\") if "\\" in character_set else character_set
    name = NAMES[character_set]
    foreign.PatientName = foreign.ReferringPhysicianName = name
    text = name.split("=")[1] if "=" in name else name
    foreign.StudyDescription = text
    foreign.SpecimenDescriptionSequence[0].SpecimenShortDescription = text
    foreign = read_again(foreign)
    written = completed(report, foreign)
    assert written.SpecificCharacterSet == "ISO_IR 192"
    assert (written.PatientName, written.ReferringPhysicianName) == (name, name)
    assert written.StudyDescription == text
    assert written.SpecimenDescriptionSequence[0].SpecimenShortDescription == text


@pytest.mark.parametrize("keyword", ["PatientName", "PatientID", "AccessionNumber", "StudyDate", "StudyID"])
def test_what_is_empty_or_absent_stays_without_a_value(keyword: str, report: Report, image: Dataset) -> None:
    for spoil in (lambda poor: setattr(poor, keyword, None), lambda poor: delattr(poor, keyword)):
        poor = deepcopy(image)
        spoil(poor)
        written = completed(report, poor)
        assert keyword in written
        assert not written[keyword].value


def test_optional_attributes_are_not_made_up(report: Report, image: Dataset) -> None:
    poor = deepcopy(image)
    for keyword in ("IssuerOfPatientID", "TimezoneOffsetFromUTC", "StudyDescription", "PatientAge"):
        if keyword in poor:
            delattr(poor, keyword)
        assert keyword not in completed(report, poor)
    poor.IssuerOfPatientID, poor.PatientAge = "HOSPITAL", "061Y"
    written = completed(report, poor)
    assert (written.IssuerOfPatientID, written.PatientAge) == ("HOSPITAL", "061Y")


def test_each_kind_has_a_series_of_its_own(report: Report, image: Dataset) -> None:
    seen = []
    for kind in Kind:
        dataset = dicom_file.begin("1.2.840.10008.5.1.4.1.1.104.1", "DOC")
        complete(dataset, report, image, ObjectName(report.analysis_id, kind, str(image.SeriesInstanceUID)))
        seen.append(
            (dataset.SeriesNumber, dataset.SeriesDescription, dataset.SeriesInstanceUID, dataset.SOPInstanceUID)
        )
    for values in zip(*seen, strict=True):
        assert len(set(values)) == len(Kind)
    assert [number for number, *_ in seen] == [9001, 9002, 9003, 9004, 9005, 9006]


def test_a_slide_without_identity_stays_one(report: Report, image: Dataset) -> None:
    anonymous = deepcopy(image)
    anonymous.PatientIdentityRemoved, anonymous.DeidentificationMethod = "YES", ["basic profile", "retain dates"]
    written = completed(report, anonymous)
    assert written.PatientIdentityRemoved == "YES"
    assert list(written.DeidentificationMethod) == ["basic profile", "retain dates"]


def test_private_codes_name_their_scheme(report: Report, image: Dataset) -> None:
    own, public = Code("uncertain", PRIVATE_SCHEME, "Uncertain"), Code("85756007", "SCT", "Tissue")
    (item,) = completed(report, image, own).CodingSchemeIdentificationSequence
    assert item.CodingSchemeDesignator == PRIVATE_SCHEME
    assert item.CodingSchemeResponsibleOrganization == report.software.manufacturer
    (same,) = to_sr(report, [image]).CodingSchemeIdentificationSequence
    assert item == same
    assert "CodingSchemeIdentificationSequence" not in completed(report, image, public)


def test_the_scheme_of_a_laboratory_s_codes_comes_along(report: Report, image: Dataset) -> None:
    local = deepcopy(image)
    local.SpecimenDescriptionSequence[0].SpecimenTypeCodeSequence = [coded(Code("T1", "99LAB", "Biopsy"))]
    known = []
    for designator in ("99LAB", "99OTHER", PRIVATE_SCHEME):
        known.append(Dataset())
        known[-1].CodingSchemeDesignator, known[-1].CodingSchemeName = designator, f"codes of {designator}"
    local.CodingSchemeIdentificationSequence = known
    items = completed(report, local, Code("a", PRIVATE_SCHEME, "a")).CodingSchemeIdentificationSequence
    assert [item.CodingSchemeDesignator for item in items] == ["99LAB", PRIVATE_SCHEME]
    assert items[0].CodingSchemeName == "codes of 99LAB"


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        ("+0100", "2026-01-01 00:30"),
        ("-0330", "2025-12-31 20:00"),
        (None, "2025-12-31 23:30"),
        ("", "2025-12-31 23:30"),
        ("Z", "2025-12-31 23:30"),
    ],
)
def test_times_are_the_study_s_own(offset: str | None, expected: str) -> None:
    issued = datetime(2025, 12, 31, 23, 30, tzinfo=UTC)
    zoned = Dataset()
    if offset is not None:
        zoned.TimezoneOffsetFromUTC = offset
    assert f"{local_time(issued, zoned):%Y-%m-%d %H:%M}" == expected


@pytest.mark.parametrize(
    ("size_px", "level_px", "field_px", "count", "expected"),
    [
        (6, 6, 2, 3, [0, 0, 1, 1, 2, 2]),
        (3, 6, 2, 3, [0, 1, 2]),
        (3, 6, 4, 2, [0, 0, 1]),  # the second pixel's centre is 3 of the level's
        (2, 6, 3, 2, [0, 1]),
        (4, 7, 2, 3, [0, 1, 2, -1]),  # a rest of the level that is no whole tile
        (5, 1000, 100, 10, [1, 3, 5, 7, 9]),
    ],
)
def test_a_pixel_belongs_to_the_tile_under_its_centre(
    size_px: int, level_px: int, field_px: int, count: int, expected: list[int]
) -> None:
    assert np.array_equal(tile_under(size_px, level_px, field_px, count), expected)
