"""Media with a DICOMDIR: its files, no others, all of them, and nothing outside the folder."""

import contextlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from pydicom.fileset import FileSet

from gateway.archive import FolderArchive, SeriesEntry
from gateway.archive.cache import FrameCache
from gateway.operations.errors import PathserveError, SlideNotInArchive, TruncatedFile
from gateway.slides import Slide
from gateway.slides.phantom import write_phantom


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A medium with two slides, as pydicom writes it: names of eight letters, three levels of folders."""
    folder = tmp_path_factory.mktemp("made")
    medium = FileSet()
    for number, seed in enumerate((1, 2)):
        truth = write_phantom(folder / str(number), width_px=600, height_px=500, seed=seed)
        for file in truth.files:
            dataset = pydicom.dcmread(file)
            dataset.PatientID, dataset.StudyID = "P0001", "1"
            dataset.StudyDate, dataset.StudyTime, dataset.SeriesNumber = "20260101", "120000", "1"
            medium.add(dataset)
    medium.write(folder / "medium")
    medium._stage["t"].cleanup()  # its staging folder, which it would leave to the garbage collector
    return folder / "medium"


@pytest.fixture
def medium(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "medium")
    return tmp_path / "medium"


def images(medium: Path) -> list[Path]:
    return sorted(path for path in medium.rglob("*") if path.is_file() and path.name != "DICOMDIR")


def fetch_all(medium: Path, cache: FrameCache) -> list[Path]:
    archive = FolderArchive(medium)
    return [path for entry in archive.entries() for path in archive.fetch(entry, cache).files]


def lower_case(medium: Path) -> None:
    for path in sorted(medium.rglob("*"), key=lambda path: -len(path.parts)):
        path.rename(path.with_name(path.name.lower()))


def with_version_numbers(medium: Path) -> None:
    for path in [*images(medium), medium / "DICOMDIR"]:
        path.rename(path.with_name(f"{path.name};1"))


@pytest.mark.parametrize("shown", [lambda medium: None, lower_case, with_version_numbers])
def test_every_file_that_it_names(medium: Path, cache: FrameCache, shown: Callable[[Path], None]) -> None:
    """However the system shows the medium's names."""
    expected = len(images(medium))
    shown(medium)
    files = fetch_all(medium, cache)
    assert len(files) == expected
    [first, _] = FolderArchive(medium).entries()
    with Slide.open(FolderArchive(medium).fetch(first, cache).files) as slide:
        assert slide.header.series_uid == first.series


def test_files_that_it_does_not_name_are_not_of_the_file_set(medium: Path, cache: FrameCache, tmp_path: Path) -> None:
    other = write_phantom(tmp_path / "other", width_px=300, height_px=300, seed=3)
    shutil.copytree(other.files[0].parent, medium / "COPIED")
    archive = FolderArchive(medium)
    assert other.study_uid not in {entry.study for entry in archive.entries()}
    (medium / "DICOMDIR").unlink()
    assert other.study_uid in {entry.study for entry in archive.entries()}


def test_media_below_a_folder_of_slides(medium: Path, tmp_path: Path) -> None:
    other = write_phantom(tmp_path / "other", width_px=300, height_px=300, seed=3)
    studies = {entry.study for entry in FolderArchive(tmp_path).entries()}
    assert other.study_uid in studies
    assert len(studies) == 1 + len(FolderArchive(medium).entries())


def test_a_missing_file_is_named_and_stops_its_slide_only(medium: Path, cache: FrameCache) -> None:
    archive = FolderArchive(medium)
    lost = images(medium)[0]
    series = pydicom.dcmread(lost, stop_before_pixels=True).SeriesInstanceUID
    lost.unlink()
    [mine] = [entry for entry in archive.entries() if entry.series == series]
    [other] = [entry for entry in archive.entries() if entry.series != series]
    with pytest.raises(SlideNotInArchive, match=lost.name):
        archive.fetch(mine, cache)
    assert archive.fetch(other, cache).files


def test_all_files_missing(medium: Path) -> None:
    study = FolderArchive(medium).entries()[0].study
    for path in images(medium):
        path.unlink()
    archive = FolderArchive(medium)
    for look in (archive.entries, lambda: archive.find_series(study)):
        with pytest.raises(SlideNotInArchive, match="which the DICOMDIR names, is missing"):
            look()


def rewritten(medium: Path, change: Callable[[pydicom.Dataset], None]) -> None:
    """Change the last image's record in place: the offsets of the records stay right."""
    path = medium / "DICOMDIR"
    directory = pydicom.dcmread(path)
    record = directory.DirectoryRecordSequence[-1]
    assert record.DirectoryRecordType == "IMAGE"
    change(record)
    directory.save_as(path)


@pytest.mark.parametrize(
    "components",
    [["..", "OUTSIDE", "A", "IM000000"], ["../../etc/passwd"], ["PT000000", "..\\..", "A", "B"], ["/etc", "passwd"]],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
@pytest.mark.filterwarnings("ignore:The value length")
def test_nothing_outside_the_folder(medium: Path, cache: FrameCache, components: list[str]) -> None:
    def lead_out(record: pydicom.Dataset) -> None:
        record["ReferencedFileID"] = pydicom.DataElement("ReferencedFileID", "CS", components, validation_mode=0)

    rewritten(medium, lead_out)
    with pytest.raises(TruncatedFile, match="DICOMDIR"):
        fetch_all(medium, cache)


def test_a_link_out_of_the_folder_is_no_file_of_it(medium: Path, cache: FrameCache, tmp_path: Path) -> None:
    lost = images(medium)[0]
    lost.rename(tmp_path / "outside.dcm")
    lost.symlink_to(tmp_path / "outside.dcm")
    with pytest.raises(SlideNotInArchive, match=lost.name):
        fetch_all(medium, cache)


def test_a_link_to_itself(medium: Path, cache: FrameCache) -> None:
    lost = images(medium)[0]
    lost.unlink()
    lost.symlink_to(lost)
    with pytest.raises(SlideNotInArchive, match=lost.name):
        fetch_all(medium, cache)


def test_records_not_in_use_are_passed_over(medium: Path, cache: FrameCache) -> None:
    before = len(images(medium))
    rewritten(medium, lambda record: setattr(record, "RecordInUseFlag", 0))
    assert len(fetch_all(medium, cache)) == before - 1


@pytest.mark.parametrize("where", [0.2, 0.5, 0.9])
def test_a_damaged_directory_is_said(medium: Path, cache: FrameCache, where: float) -> None:
    path = medium / "DICOMDIR"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * where)])
    with pytest.raises(TruncatedFile, match="DICOMDIR"):
        fetch_all(medium, cache)


def test_records_in_a_circle(medium: Path, cache: FrameCache) -> None:
    def lead_back(record: pydicom.Dataset) -> None:
        record.OffsetOfTheNextDirectoryRecord = record.seq_item_tell

    rewritten(medium, lead_back)
    with pytest.raises(TruncatedFile, match="DICOMDIR"):
        fetch_all(medium, cache)


def test_any_damage_ends_in_a_typed_error(medium: Path, cache: FrameCache) -> None:
    path = medium / "DICOMDIR"
    data = path.read_bytes()
    for position in range(200, len(data), 97):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :])
        with contextlib.suppress(PathserveError):
            fetch_all(medium, cache)


def test_a_file_of_that_name_that_is_none(medium: Path, cache: FrameCache) -> None:
    before = len(images(medium))
    (medium / "DICOMDIR").write_text("made by hand")
    assert len(fetch_all(medium, cache)) == before


def test_results_are_stored_beside_the_medium(medium: Path) -> None:
    archive = FolderArchive(medium)
    before = archive.entries()
    archive.store(images(medium)[:1])
    assert (medium / "results").is_dir()
    assert archive.entries() == before
    assert isinstance(before[0], SeriesEntry)


@pytest.mark.validators
def test_a_directory_that_dcmtk_made(slide_folder: Path, cache: FrameCache, tmp_path: Path) -> None:
    if shutil.which("dcmmkdir") is None:
        pytest.skip("dcmtk is not installed (Debian: dcmtk)")
    (tmp_path / "SLIDE").mkdir()
    for number, file in enumerate(sorted(slide_folder.glob("*.dcm"))):
        shutil.copy(file, tmp_path / "SLIDE" / f"IM{number:06}")
    subprocess.run(["dcmmkdir", "-Pfl", "+r", "+id", ".", "SLIDE"], cwd=tmp_path, check=True, capture_output=True)
    assert len(fetch_all(tmp_path, cache)) == 8
    (tmp_path / "SLIDE" / "IM000003").unlink()
    with pytest.raises(SlideNotInArchive, match="IM000003"):
        fetch_all(tmp_path, cache)
