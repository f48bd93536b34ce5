"""The folder archive: what it finds, what it stores, and what it refuses."""

import errno
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest

from gateway.archive import FolderArchive, SeriesEntry, open_archive
from gateway.archive.cache import FrameCache
from gateway.operations.errors import (
    ArchiveRefused,
    ArchiveUnavailable,
    Cancelled,
    DiskFull,
    InvalidSetting,
    InvalidSlide,
    NotDicom,
    NoVolumeImage,
    SlideNotInArchive,
    TruncatedFile,
)
from gateway.slides import Slide
from gateway.slides.phantom import PhantomTruth, write_phantom

REPORT = Path(pydicom.data.get_testdata_file("reportsi.dcm"))


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> PhantomTruth:
    return write_phantom(tmp_path_factory.mktemp("phantom"), width_px=600, height_px=500, seed=1)


@pytest.fixture
def slide(phantom: PhantomTruth, tmp_path: Path) -> PhantomTruth:
    folder = tmp_path / "archive" / "ward" / "slide one"
    shutil.copytree(phantom.files[0].parent, folder)
    return replace(phantom, files=tuple(folder / path.name for path in phantom.files))


@pytest.fixture
def archive(tmp_path: Path, slide: PhantomTruth) -> FolderArchive:
    (tmp_path / "archive" / "README.txt").write_text("not a slide")
    (tmp_path / "archive" / "report.dcm").write_bytes(REPORT.read_bytes())
    return FolderArchive(tmp_path / "archive")


@pytest.fixture
def result(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "report.sr.dcm"
    target.write_bytes(REPORT.read_bytes())
    return target


def stored(archive: FolderArchive) -> list[Path]:
    root = Path(archive.address.removeprefix("folder:"))
    return sorted(path.relative_to(root) for path in (root / "results").rglob("*") if path.is_file())


def test_open_archive(tmp_path):
    archive = open_archive(f"folder:{tmp_path}")
    assert archive.address == f"folder:{tmp_path}"
    with pytest.raises(InvalidSetting):
        open_archive("ftp://somewhere")


@pytest.mark.parametrize("address", ["folder:", "folder:~no-such-user-here/slides", "/slides", ""])
def test_an_address_that_is_none(address):
    """Least of all does an empty folder mean the working directory."""
    with pytest.raises(InvalidSetting):
        open_archive(address)


def test_finds_the_series_wherever_it_lies(archive, slide):
    found = archive.find_series(slide.study_uid)
    assert found == (SeriesEntry(slide.study_uid, slide.series_uid, len(slide.files)),)
    assert archive.find_series(slide.study_uid, [slide.series_uid]) == found
    assert archive.entries() == found


def test_fetch_gives_the_files_as_they_are(archive, slide, tmp_path):
    seen: list[tuple[int, int | None]] = []
    fetched = archive.fetch(
        archive.entries()[0],
        FrameCache(tmp_path / "cache", 2**30),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert fetched.files == tuple(sorted(slide.files))
    size = sum(path.stat().st_size for path in slide.files)
    assert seen == [(size, size)]
    assert not (tmp_path / "cache").exists()
    with Slide.open(fetched.files) as opened:
        assert opened.header.series_uid == slide.series_uid


def test_fetch_cancelled(archive, cache):
    with pytest.raises(Cancelled):
        archive.fetch(archive.entries()[0], cache, cancelled=lambda: True)


def test_the_same_instance_twice_counts_once(archive, slide, cache):
    copy = slide.files[0].with_name("copy.dcm")
    copy.write_bytes(slide.files[0].read_bytes())
    (entry,) = archive.find_series(slide.study_uid)
    assert entry.instances == len(slide.files)
    assert len(archive.fetch(entry, cache).files) == len(slide.files)


def test_two_copies_of_an_image_that_name_different_patients(archive, slide, cache):
    dataset = pydicom.dcmread(slide.files[0])
    dataset.PatientID = "CORRECTED"
    dataset.save_as(slide.files[0].with_name("corrected.dcm"))
    (entry,) = archive.find_series(slide.study_uid)
    with pytest.raises(InvalidSlide, match=r"corrected\.dcm"):
        archive.fetch(entry, cache)


def test_a_cut_file_beside_the_slide_is_not_passed_over(archive, slide, cache):
    """Without it the slide would lack a level, and nobody would know."""
    level = slide.files[0]
    level.write_bytes(level.read_bytes()[:300])
    with pytest.raises(TruncatedFile, match=level.name):
        archive.fetch(archive.entries()[0], cache)


def test_a_dicomdir_of_another_name_is_no_damage(archive, slide, cache):
    """Its records lead nowhere from here: it came from elsewhere."""
    directory = slide.files[0].with_name("DIRECTORY.OLD")
    shutil.copy(pydicom.data.get_testdata_file("DICOMDIR"), directory)
    fetched = archive.fetch(archive.entries()[0], cache)
    assert directory not in fetched.files
    with Slide.open([*fetched.files, directory]) as opened:
        assert opened.header.series_uid == slide.series_uid


def test_study_or_series_not_there(archive, slide, cache):
    with pytest.raises(SlideNotInArchive):
        archive.find_series("1.2.3")
    with pytest.raises(SlideNotInArchive, match=r"1\.2\.4"):
        archive.find_series(slide.study_uid, [slide.series_uid, "1.2.4"])
    with pytest.raises(SlideNotInArchive):
        archive.fetch(SeriesEntry("1.2.3", "1.2.4"), cache)


def test_new_changed_and_removed_files_are_noticed(archive, slide):
    assert len(archive.entries()) == 1
    other = write_phantom(slide.files[0].parents[1] / "two", width_px=300, height_px=300, seed=2)
    assert len(archive.entries()) == 2
    for path in other.files:
        path.unlink()
    assert len(archive.entries()) == 1


def test_headers_are_read_once(archive, monkeypatch):
    archive.entries()
    monkeypatch.setattr(
        "gateway.archive.folder_index.identify", lambda path: pytest.fail(f"{path.name} was read again")
    )
    assert len(archive.entries()) == 1


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("notes.txt", b"no slide here", NotDicom),
        ("report.dcm", REPORT.read_bytes(), NoVolumeImage),
        ("cut.dcm", REPORT.read_bytes()[:200], TruncatedFile),
    ],
)
def test_a_folder_without_a_slide_says_why(tmp_path, name, content, error):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error):
        FolderArchive(tmp_path).entries()


def test_empty_and_missing_folders(tmp_path):
    with pytest.raises(SlideNotInArchive):
        FolderArchive(tmp_path).entries()
    gone = FolderArchive(tmp_path / "gone")
    for call in (gone.probe, gone.entries, lambda: gone.find_series("1.2")):
        with pytest.raises(ArchiveUnavailable) as caught:
            call()
        assert str(tmp_path) not in caught.value.detail
    FolderArchive(tmp_path).probe()


def test_store(archive, result):
    dataset = pydicom.dcmread(REPORT)
    archive.store([result])
    assert stored(archive) == [Path("results", dataset.StudyInstanceUID, f"{dataset.SOPInstanceUID}.dcm")]
    path = Path(archive.address.removeprefix("folder:")) / stored(archive)[0]
    assert path.read_bytes() == REPORT.read_bytes()


def test_storing_again_changes_nothing(archive, result):
    archive.store([result])
    path = Path(archive.address.removeprefix("folder:")) / stored(archive)[0]
    before = path.stat()
    archive.store([result])
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_another_object_under_the_same_uid_is_refused(archive, result):
    archive.store([result])
    path = Path(archive.address.removeprefix("folder:")) / stored(archive)[0]
    dataset = pydicom.dcmread(REPORT)
    dataset.ContentDate = "20300101"
    dataset.save_as(result)
    with pytest.raises(ArchiveRefused, match=r"report\.sr\.dcm is not what was sent \(it differs in ContentDate\)"):
        archive.store([result])
    assert path.read_bytes() == REPORT.read_bytes()


def test_many_writers_leave_one_whole_object(archive, result):
    threads = [threading.Thread(target=archive.store, args=([result],)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stored(archive)) == 1


def test_results_are_not_slides(archive, slide):
    archive.store(slide.files[:1])
    assert len(stored(archive)) == 1
    assert archive.find_series(slide.study_uid)[0].instances == len(slide.files)


@pytest.mark.parametrize("uid", ["../../../etc", "1.2/../../x", "1..2", "1.2.3\\..\\x"])
@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SOPInstanceUID"])
@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_uids_cannot_lead_out_of_the_folder(archive, result, uid, keyword):
    dataset = pydicom.dcmread(REPORT)
    dataset[keyword] = pydicom.DataElement(dataset[keyword].tag, "UI", uid, validation_mode=0)
    dataset.save_as(result, enforce_file_format=False)
    with pytest.raises(ArchiveRefused):
        archive.store([result])
    assert stored(archive) == []


def test_what_is_not_dicom_is_not_stored(archive, tmp_path):
    (tmp_path / "page.html").write_text("<html>")
    with pytest.raises(ArchiveRefused):
        archive.store([tmp_path / "page.html"])


@pytest.mark.parametrize(("code", "error"), [(errno.ENOSPC, DiskFull), (errno.EACCES, ArchiveUnavailable)])
def test_a_full_or_closed_disk_leaves_nothing_behind(archive, result, monkeypatch, code, error):
    def refuse(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("gateway.archive.folder.os.fsync", refuse)
    with pytest.raises(error):
        archive.store([result])
    assert stored(archive) == []


def test_a_file_system_without_links(archive, result, monkeypatch):
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr("gateway.archive.folder.os.link", refuse)
    archive.store([result])
    archive.store([result])
    assert len(stored(archive)) == 1


def test_links_that_leave_the_folder_are_not_followed(tmp_path, slide):
    outside = write_phantom(tmp_path / "outside", width_px=300, height_px=300, seed=7)
    top = tmp_path / "archive"
    (top / "folder-link").symlink_to(tmp_path / "outside")
    (top / "file-link.dcm").symlink_to(outside.files[0])
    (top / "dangling.dcm").symlink_to(tmp_path / "nowhere")
    (top / "loop").symlink_to(top)
    (top / "inside.dcm").symlink_to(slide.files[0])
    entries = FolderArchive(top).entries()
    assert [entry.study for entry in entries] == [slide.study_uid]


def test_the_archive_itself_may_be_reached_by_a_link(tmp_path, slide):
    (tmp_path / "link").symlink_to(tmp_path / "archive")
    assert len(FolderArchive(tmp_path / "link").entries()) == 1


def test_a_file_that_cannot_be_read_stops_its_slide_only(archive, slide, cache, tmp_path, monkeypatch):
    other = write_phantom(tmp_path / "archive" / "other", width_px=300, height_px=300, seed=8)
    opened = Path.open

    def refuse(path: Path, *arguments: object):
        if path.name == "label.dcm" and path.parent.name == "other":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments)

    monkeypatch.setattr(Path, "open", refuse)
    [mine] = archive.find_series(slide.study_uid)
    assert len(archive.fetch(mine, cache).files) == len(slide.files)
    [theirs] = archive.find_series(other.study_uid)
    with pytest.raises(ArchiveUnavailable, match=r"label\.dcm"):
        archive.fetch(theirs, cache)


def test_a_folder_that_is_closed_to_us_is_passed_over(archive, slide, tmp_path, monkeypatch):
    (tmp_path / "archive" / "lost+found").mkdir()
    listed = os.scandir

    def refuse(folder: Path):
        if Path(folder).name == "lost+found":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr("gateway.archive.folder.os.scandir", refuse)
    assert archive.find_series(slide.study_uid)[0].instances == len(slide.files)


@pytest.mark.parametrize(
    "damage",
    [
        (b"\x20\x00\x0e\x00UI", b"\x20\x00\x0e\x00\x55\x03"),
        (b"\x08\x00\x60\x00CS", b"\x08\x00\x60\x00\x43\x76"),
    ],
)
def test_a_damaged_header_does_not_stop_the_archive(archive, slide, tmp_path, damage):
    """A value representation that does not exist is told only when the value is asked for."""
    data = slide.files[0].read_bytes()
    assert data.count(damage[0]) == 1
    (tmp_path / "archive" / "damaged.dcm").write_bytes(data.replace(*damage))
    assert archive.find_series(slide.study_uid)[0].instances == len(slide.files)
