"""Slides pulled from a real PACS."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
from prometheus_client import REGISTRY
from pydicom.encaps import generate_frames

from gateway.archive.cache import FrameCache
from gateway.archive.costs import Way
from gateway.archive.dicomweb import DicomWebArchive
from gateway.archive.partial import PartialInstance, is_partial
from gateway.archive.protocol import FetchedSeries, SeriesEntry
from gateway.operations.errors import Cancelled, StateError
from gateway.slides import Slide
from tests.archive.costs import frames_are_cheap, frames_are_dear
from tests.support.orthanc import Orthanc

pytestmark = pytest.mark.pacs


@pytest.fixture
def archive(orthanc: Orthanc) -> DicomWebArchive:
    return DicomWebArchive.from_address(orthanc.address)


@pytest.fixture
def entry(archive: DicomWebArchive, slide_uids: tuple[str, str]) -> SeriesEntry:
    [entry] = archive.find_series(slide_uids[0])
    return entry


@pytest.fixture
def finest(slide_folder: Path) -> pydicom.Dataset:
    """The instance with the most frames."""
    return max((pydicom.dcmread(file) for file in slide_folder.glob("*.dcm")), key=lambda found: found.NumberOfFrames)


def stored_frames(dataset: pydicom.Dataset) -> list[bytes]:
    return list(generate_frames(dataset.PixelData, number_of_frames=int(dataset.NumberOfFrames)))


def kept(cache: Path) -> dict[str, int]:
    """Every whole instance below the cache, with its inode."""
    return {path.name: path.stat().st_ino for path in cache.rglob("*.dcm")}


def asked(operation: str) -> int:
    """How many requests of this kind went out so far."""
    return int(REGISTRY.get_sample_value("pacs_request_duration_seconds_count", {"operation": operation}) or 0)


def files_by_sop(fetched: FetchedSeries) -> Mapping[str, Path]:
    return {str(pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID): file for file in fetched.files}


def test_fetched_files_are_the_stored_ones(
    archive: DicomWebArchive, entry: SeriesEntry, slide_folder: Path, cache: FrameCache, tmp_path: Path
) -> None:
    seen: list[tuple[int, int | None]] = []
    fetched = archive.fetch(entry, cache, progress=lambda done, total: seen.append((done, total)))

    assert [file.name for file in fetched.files] == sorted(file.name for file in slide_folder.glob("*.dcm"))
    assert all(file.is_relative_to(tmp_path / "cache") for file in fetched.files)
    for file in fetched.files:
        assert file.read_bytes() == (slide_folder / file.name).read_bytes()
    size = sum(file.stat().st_size for file in fetched.files)
    assert seen == sorted(seen, key=lambda step: step[0])
    assert seen[-1] == (size, size)


def test_an_interrupted_fetch_continues(
    archive: DicomWebArchive, entry: SeriesEntry, slide_folder: Path, cache: FrameCache, tmp_path: Path
) -> None:
    done = 0

    def progress(size: int, total: int | None) -> None:
        nonlocal done
        done = size

    with pytest.raises(Cancelled):
        archive.fetch(entry, cache, progress=progress, cancelled=lambda: done > 300_000)
    before = kept(tmp_path)
    assert 0 < len(before) < 8
    # What kill -9 in the middle of a file leaves behind.
    missing = next(file.name for file in slide_folder.glob("*.dcm") if file.name not in before)
    (next(iter(tmp_path.rglob("*.dcm"))).parent / f".{missing}.part").write_bytes(b"half of it")

    fetched = archive.fetch(entry, cache)
    after = kept(tmp_path)
    assert before.items() <= after.items()  # the same inodes: not fetched again
    assert sorted(after) == sorted(file.name for file in slide_folder.glob("*.dcm"))
    assert all(file.read_bytes() == (slide_folder / file.name).read_bytes() for file in fetched.files)
    archive.fetch(entry, cache)
    assert kept(tmp_path) == after


def test_headers_come_without_pixels_and_say_what_the_files_say(
    archive: DicomWebArchive, entry: SeriesEntry, slide_folder: Path, cache: FrameCache
) -> None:
    before = asked("retrieve"), asked("frames")
    fetched = archive.fetch(entry, cache, wanted={})
    assert (asked("retrieve"), asked("frames")) == before
    files = files_by_sop(fetched)
    assert len(files) == 8
    for stored in (pydicom.dcmread(file, stop_before_pixels=True) for file in slide_folder.glob("*.dcm")):
        assert is_partial(files[stored.SOPInstanceUID])
        header = pydicom.dcmread(files[stored.SOPInstanceUID])
        assert header.file_meta.TransferSyntaxUID == stored.file_meta.TransferSyntaxUID
        # Written in Unicode, but the same text.
        assert header.SpecificCharacterSet == "ISO_IR 192"
        header.SpecificCharacterSet = stored.SpecificCharacterSet = None
        if stored.ImageType[2] == "VOLUME":  # this PACS leaves out empty items, which the label has
            assert header.to_json_dict() == stored.to_json_dict()
    with Slide.open(fetched.files) as partial, Slide.open(sorted(slide_folder.glob("*.dcm"))) as whole:
        assert partial.header == whole.header
        assert partial.levels == whole.levels


@pytest.mark.parametrize("way", [Way.BATCHED, Way.WHOLE])
def test_frames_come_as_they_are_stored_in_few_requests(
    way: Way, archive: DicomWebArchive, entry: SeriesEntry, finest: pydicom.Dataset, cache: FrameCache
) -> None:
    (frames_are_cheap if way is Way.BATCHED else frames_are_dear)(cache, archive.address)
    archive.fetch(entry, cache, wanted={})
    wanted = {finest.SOPInstanceUID: list(range(0, finest.NumberOfFrames, 3))}
    before = asked("frames"), asked("retrieve"), asked("metadata")
    file = files_by_sop(archive.fetch(entry, cache, wanted=wanted))[finest.SOPInstanceUID]
    requests = asked("frames") - before[0], asked("retrieve") - before[1], asked("metadata") - before[2]
    assert requests == ((1, 0, 0) if way is Way.BATCHED else (0, 1, 0))  # the headers that are there serve
    if way is Way.WHOLE:
        assert not is_partial(file)
        assert not list(file.parent.glob(f"{finest.SOPInstanceUID}.*r*"))  # nothing of the partial one stays
    else:
        part, stored = PartialInstance(file), stored_frames(finest)
        data, extents_F2 = part.frames_file.read_bytes(), part.extents()
        for frame in wanted[finest.SOPInstanceUID]:
            assert data[slice(*extents_F2[frame])] == stored[frame]
        assert np.flatnonzero(extents_F2[:, 0] >= 0).tolist() == wanted[finest.SOPInstanceUID]
    archive.fetch(entry, cache, wanted=wanted)
    assert asked("frames") - before[0] + asked("retrieve") - before[1] == 1  # nothing is fetched twice


def test_a_slide_is_read_from_frames_as_from_files(
    archive: DicomWebArchive, entry: SeriesEntry, slide_folder: Path, cache: FrameCache
) -> None:
    frames_are_cheap(cache, archive.address)
    with Slide.open(archive.fetch(entry, cache, wanted={}).files) as slide:
        everything = {uid: None for level in slide.levels for uid in level.sop_instance_uids}
    fetched = archive.fetch(entry, cache, wanted=everything)
    files = files_by_sop(fetched)
    assert all(is_partial(files[uid]) for uid in everything)
    with (
        cache.hold(fetched.files),
        Slide.open(fetched.files) as partial,
        Slide.open(sorted(slide_folder.glob("*.dcm"))) as whole,
    ):
        for level in whole.levels:
            np.testing.assert_array_equal(partial.read_level(level.index), whole.read_level(level.index))


def correct_patient(orthanc: Orthanc, slide_folder: Path, folder: Path, name: str) -> None:
    """What a PACS does when a patient is corrected: other headers under the same UIDs."""
    folder.mkdir()
    for file in slide_folder.glob("*.dcm"):
        dataset = pydicom.dcmread(file)
        dataset.PatientName = name
        dataset.save_as(folder / file.name)
        orthanc.delete(dataset.SOPInstanceUID)
    orthanc.upload(folder)


def test_a_header_that_changed_in_the_pacs_is_made_anew(
    archive: DicomWebArchive,
    orthanc: Orthanc,
    entry: SeriesEntry,
    finest: pydicom.Dataset,
    slide_folder: Path,
    cache: FrameCache,
    tmp_path: Path,
) -> None:
    frames_are_cheap(cache, archive.address)
    archive.fetch(entry, cache, wanted={})
    [smallest] = [file.stem for file in [min(slide_folder.glob("*.dcm"), key=lambda file: file.stat().st_size)]]
    archive.fetch(entry, cache, wanted={finest.SOPInstanceUID: [0, 1]})
    settled = archive.fetch(entry, cache, wanted={})
    assert PartialInstance(files_by_sop(settled)[finest.SOPInstanceUID]).missing([0, 1]) == []
    correct_patient(orthanc, slide_folder, tmp_path / "corrected", "CORRECTED^NAME")
    try:
        files = files_by_sop(archive.fetch(entry, cache, wanted={}))
        assert {str(pydicom.dcmread(file).PatientName) for file in files.values()} == {"CORRECTED^NAME"}
        assert PartialInstance(files[finest.SOPInstanceUID]).missing([0, 1]) == [0, 1]
        assert smallest in files
    finally:
        for sop in files_by_sop(archive.fetch(entry, cache, wanted={})):
            orthanc.delete(sop)
        orthanc.upload(slide_folder)


def test_an_instance_that_left_the_pacs_leaves_the_cache(
    archive: DicomWebArchive, orthanc: Orthanc, entry: SeriesEntry, slide_folder: Path, cache: FrameCache
) -> None:
    gone = min(slide_folder.glob("*.dcm"), key=lambda file: file.stat().st_size)
    archive.fetch(entry, cache)
    orthanc.delete(gone.stem)
    try:
        smaller = SeriesEntry(entry.study, entry.series, 7)
        files = archive.fetch(smaller, cache, wanted={}).files
        assert gone.name not in [file.name for file in files]
        assert not (files[0].parent / gone.name).exists()
        assert len(files) == 7
    finally:
        orthanc.upload(slide_folder)


def damage_index(part: PartialInstance) -> None:
    index = part.header.with_name(part.header.name.replace(".header.dcm", ".index"))
    index.write_bytes(index.read_bytes()[:-8])


def damage_frames(part: PartialInstance) -> None:
    part.frames_file.write_bytes(part.frames_file.read_bytes()[:-1])


def damage_header(part: PartialInstance) -> None:
    part.header.write_bytes(part.header.read_bytes()[:-100])


def lose_header(part: PartialInstance) -> None:
    part.header.unlink()


def damage_records(part: PartialInstance) -> None:
    (part.header.parent / "series.json").write_text('{"version": 1, "instances": {"2.25.1": {"frames"')


@pytest.mark.parametrize("damage", [damage_index, damage_frames, damage_header, lose_header, damage_records])
def test_what_a_power_cut_damaged_is_fetched_again(
    damage: Callable[[PartialInstance], None],
    archive: DicomWebArchive,
    entry: SeriesEntry,
    finest: pydicom.Dataset,
    cache: FrameCache,
) -> None:
    frames_are_cheap(cache, archive.address)
    wanted: dict[str, Sequence[int]] = {finest.SOPInstanceUID: [3, 4, 5]}
    archive.fetch(entry, cache, wanted={})
    part = PartialInstance(files_by_sop(archive.fetch(entry, cache, wanted=wanted))[finest.SOPInstanceUID])
    damage(part)
    fetched = archive.fetch(entry, cache, wanted=wanted)
    assert part.header in fetched.files
    data, extents_F2 = part.frames_file.read_bytes(), part.extents()
    assert [data[slice(*extents_F2[frame])] for frame in (3, 4, 5)] == stored_frames(finest)[3:6]


def test_a_slide_that_can_never_fit_is_refused(
    archive: DicomWebArchive, entry: SeriesEntry, finest: pydicom.Dataset, tmp_path: Path
) -> None:
    cache = FrameCache(tmp_path / "cache", 600_000)
    archive.fetch(entry, cache, wanted={})
    # Some frames fit where the whole instance does not, whatever would be faster.
    archive.fetch(entry, cache, wanted={finest.SOPInstanceUID: [0, 1]})
    with pytest.raises(StateError, match="PATHSERVE_CACHE_BYTES"):
        archive.fetch(entry, cache, wanted={finest.SOPInstanceUID: None})
    sizes = [path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert sum(sizes) < 600_000
