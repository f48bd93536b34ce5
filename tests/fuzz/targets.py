"""What a damaged input is given to: the product's own rooms, as the workflow calls them."""

import shutil
from contextlib import suppress
from pathlib import Path
from random import Random

import numpy as np
import pydicom
from pydicom.encaps import generate_frames

from gateway.archive import FolderArchive, SeriesEntry
from gateway.archive.cache import FrameCache
from gateway.archive.compare import check_same
from gateway.archive.dicomweb import DicomWebArchive
from gateway.archive.dicomweb_http import Limits
from gateway.archive.partial import PartialInstance
from gateway.domain.report import Signature
from gateway.operations.errors import ArchiveError, SlideError, SlideNotInArchive, StateError
from gateway.reports.encode import write_all, write_revision
from gateway.reports.headers import keep, kept
from gateway.slides import Slide, TissueMask, frames_of, overview_levels, plan_tiles, stream_tiles
from tests.conformance.invented import invented
from tests.fuzz.damage import DAMAGES
from tests.fuzz.judge import Task
from tests.fuzz.rogue import ANSWERS, KINDS, Rogue, running

LIMITS = Limits(connect_s=1.0, read_s=1.0, attempts=2, backoff_s=0.05, visible_s=0.5, instance_bytes=64 << 20)
_TILES = 12
_CACHE_BYTES = 256 << 20
_SAID = ("SOPInstanceUID", "PixelData", "EncapsulatedDocument", "ContentSequence", "AnnotationGroupSequence")
"""What a result says, whatever an archive may alter of its patient and study."""


def read_folder(case: Path) -> None:
    """A folder archive: find every series, fetch it, read it."""
    archive = FolderArchive(case / "in")
    for entry in archive.entries():
        [found] = archive.find_series(entry.study, (entry.series,))
        fetched = archive.fetch(found, FrameCache(case / "cache", _CACHE_BYTES))
        read_slide(list(fetched.files), entry.series)


def read_slide(files: list[Path], series: str | None = None) -> None:
    """Open, look at all of it, and read some tiles, wherever tissue may be."""
    with Slide.open(files, series) as slide:
        slide.thumbnail()
        picture, um_per_px = slide.overview(8.0)
        everywhere = TissueMask(np.ones(picture.shape[:2], np.bool_), um_per_px, 1.0)
        plan = plan_tiles(slide, everywhere, mpp=max(slide.levels[0].mpp, 0.25), tile_px=64)
        for _ in zip(stream_tiles(slide, plan, batch=4, max_frames=32), range(_TILES // 4), strict=False):
            pass


def read_partial(case: Path) -> None:
    """An instance of which some frames were fetched, as the cache would hand it over."""
    read_slide(sorted((case / "in").glob("*.header.dcm")))


def report_slide(case: Path) -> None:
    """Read a slide to its end, write every object about it and have them signed: what is poor in its header goes into
    all of them."""
    work, out = case / "work", case / "out"
    made = invented(sorted((case / "in").glob("*.dcm")), work)
    write_all(out, made.report, [made.source], made.pictures, segmentation_type="BINARY")
    headers, signed = work / "headers", work / "signed"
    headers.mkdir()
    signed.mkdir()
    keep(headers, [made.source.image])
    signature = Signature(by="person:jane", name="Jane Doe", organisation="pathology", time=made.report.issued)
    write_revision(signed, made.report.signed(signature), kept(headers), [out])


def keep_object(case: Path) -> None:
    """A result stored in a folder archive, twice, and found again."""
    archive = FolderArchive(case / "store")
    files = sorted(path for path in (case / "in").iterdir() if path.is_file())
    archive.store(files)
    archive.store(files)
    with suppress(SlideNotInArchive):
        FolderArchive(case / "in").find_series("2.25.1")  # reads the header of every file there


def pull(rng: Random, answer: str) -> Task:
    """Find, fetch and read from a PACS that misbehaves, and store there."""
    victim = rng.choice(KINDS)

    def run(case: Path) -> None:
        rogue = Rogue(rng, case / "in", victim, ANSWERS[answer])
        with running(rogue) as server:
            archive = DicomWebArchive.from_address(server.address, LIMITS)
            archive.probe()
            cache = FrameCache(case / "cache", _CACHE_BYTES)
            for entry in archive.find_series(server.study):
                pull_slide(archive, entry, cache)
            archive.store(sorted((case / "in").glob("*.dcm"))[:1])

    return Task(run, (ArchiveError, SlideError, StateError), ("cache", "copy.dcm"))


def compare_returned(case: Path) -> None:
    """What an archive gives back for a result: taken for the same only where what it says is the same."""
    [sent], [got] = (case / "in").glob("*.dcm"), (case / "returned").iterdir()
    check_same(sent, got, "The PACS")
    ours, theirs = pydicom.dcmread(sent), pydicom.dcmread(got)
    for keyword in (
        "PixelData",
        "EncapsulatedDocument",
        "ContentSequence",
        "AnnotationGroupSequence",
        "SOPInstanceUID",
    ):
        assert _said(ours.get(keyword)) == _said(theirs.get(keyword)), keyword


def _said(value: object) -> object:
    """A value without the value representations of what it holds: a reader of implicit ones takes the dictionary's."""
    if not isinstance(value, pydicom.Sequence):
        return value
    return [{int(element.tag): _said(element.value) for element in item} for item in value]


def pull_again(rng: Random, damage: str) -> Task:
    """Pull a slide from a good PACS, damage a file of the cache, and pull and read it once more."""

    def run(case: Path) -> None:
        good = Rogue(rng, case / "in", "none", ANSWERS["html"])
        with running(good) as server:
            archive = DicomWebArchive.from_address(server.address, LIMITS)
            [entry] = archive.find_series(server.study)
            pull_slide(archive, entry, FrameCache(case / "cache", _CACHE_BYTES))
            file = rng.choice(sorted(path for path in (case / "cache").rglob("*") if path.is_file()))
            if damage == "file-gone":
                file.unlink()
            else:
                file.write_bytes(DAMAGES[damage](rng, bytearray(file.read_bytes() or b"x")))
            pull_slide(archive, entry, FrameCache(case / "cache", _CACHE_BYTES))

    return Task(run, (ArchiveError, SlideError, StateError), ("cache",))


def pull_slide(archive: DicomWebArchive, entry: SeriesEntry, cache: FrameCache) -> None:
    """The moves of a case's fetch: headers, overview, the frames under the tiles; then it is read."""
    files = archive.fetch(entry, cache, wanted={}).files
    with Slide.open(files) as slide:
        wanted = overview_levels(slide)
    files = archive.fetch(entry, cache, wanted=wanted).files
    with Slide.open(files) as slide:
        picture, um_per_px = slide.overview(8.0)
        slide.thumbnail()
        everywhere = TissueMask(np.ones(picture.shape[:2], np.bool_), um_per_px, 1.0)
        wanted = frames_of(slide, plan_tiles(slide, everywhere, mpp=max(slide.levels[0].mpp, 0.25), tile_px=64))
    files = archive.fetch(entry, cache, wanted=wanted).files
    with cache.hold(files):
        read_slide(list(files))


def write_partial(slide: Path, folder: Path) -> None:
    """Every instance of a slide as a partial one that holds every other frame."""
    folder.mkdir()
    for file in sorted(slide.glob("*.dcm")):
        dataset = pydicom.dcmread(file)
        count = int(dataset.NumberOfFrames)
        frames = list(generate_frames(dataset.PixelData, number_of_frames=count))
        del dataset.PixelData
        part = PartialInstance.create(folder, dataset, count)
        part.append((number, frames[number]) for number in range(0, count, 2))


SLIDE = Task(read_folder, (ArchiveError, SlideError))
REPORT = Task(report_slide, (SlideError,), ("work", "out"))
PARTIAL = Task(read_partial, (SlideError, StateError))
RETURNED = Task(compare_returned, (ArchiveError,))
OBJECT = Task(keep_object, (ArchiveError, SlideError), ("store",))


def copied(source: Path, folder: Path) -> None:
    """A copy that may be damaged."""
    shutil.copytree(source, folder, copy_function=shutil.copyfile)
