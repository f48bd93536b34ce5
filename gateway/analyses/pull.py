"""The slides of one case, brought from the archive: all headers first, then what is read of the pixels."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from gateway.analyses.fetched import Fetched, each_readable, not_there
from gateway.analyses.identity import Read
from gateway.analyses.slide_half import Plan, SlideTask
from gateway.archive.cache import FrameCache
from gateway.archive.protocol import Archive, SeriesEntry, Wanted
from gateway.domain.order import Order
from gateway.operations.errors import SlideError, SlideNotInArchive
from gateway.slides import frames_of, overview_levels


class CasePull:
    """One fetch of an order's slides.

    `opened` opens a slide, `check` compares the headers of all that open with the order; `plan` decides which tiles of
    a slide are read. `progress` gets (bytes done, bytes in all) over all slides, the latter None while it is not known.
    """

    def __init__(
        self,
        order: Order,
        archive: Archive,
        cache: FrameCache,
        *,
        opened: Callable[[Fetched], AbstractContextManager[SlideTask]],
        check: Callable[[Sequence[Read]], None],
        plan: Callable[[SlideTask], Plan],
        progress: Callable[[int, int | None], None],
        cancelled: Callable[[], bool],
    ) -> None:
        self._order = order
        self._archive = archive
        self._cache = cache
        self._opened = opened
        self._check = check
        self._plan = plan
        self._progress = progress
        self._cancelled = cancelled
        self._unframed = -1
        self._done: dict[str, int] = {}
        """Bytes that are there of each series, so that what is brought in turns is told as one sum."""

    def run(self) -> list[Fetched]:
        """Bring what will be read; the slides of the order, there or with the reason why not.

        Whose slides they are is checked on the headers of all of them, before a pixel is fetched. Then comes each
        slide's overview, on which its tiles are planned, and last the frames under the tiles. Raises ArchiveError,
        SlideError (where no slide can be read, the first one's reason), IdentityMismatch, DiskFull, StateError,
        FramesNotFetched (another pull needed the room), Cancelled.
        """
        slides = self._with_headers()
        with self._cache.hold([file for slide in slides for file in slide.files]):
            slides = self._checked(slides)
            slides = each_readable(slides, self._planned)
            self._unframed = sum(slide.partial for slide in slides)
            slides = each_readable(slides, self._framed)
        done = sum(self._done.values())
        self._progress(done, done)
        return slides

    def _with_headers(self) -> list[Fetched]:
        """Every slide with its headers, fresh from the archive; a folder gives its files whole."""
        fetched: list[Fetched] = []
        first: SlideError | SlideNotInArchive | None = None
        for index, specimen in enumerate(self._order.specimens):
            for reference in specimen.slides:
                try:
                    entries = self._archive.find_series(reference.study, reference.series, cancelled=self._cancelled)
                except SlideNotInArchive as error:
                    first = first or error
                    fetched += not_there(index, reference, error)
                    continue
                for entry in entries:
                    slide = Fetched(specimen=index, study=entry.study, series=entry.series)
                    try:
                        fetched.append(self._bring(slide, {}, entry))
                    except (SlideNotInArchive, SlideError) as error:
                        first = first or error
                        fetched.append(slide.unread(error))
        if first is not None and not any(slide.files for slide in fetched):
            raise first
        return fetched

    def _checked(self, slides: list[Fetched]) -> list[Fetched]:
        """The slides, those that open found to be those of the order."""
        found: list[Read] = []

        def look(slide: Fetched) -> Fetched:
            with self._opened(slide) as task:
                found.append((task.specimen, task.slide.header))
            return slide

        slides = each_readable(slides, look)
        self._check(found)
        return slides

    def _planned(self, slide: Fetched) -> Fetched:
        if slide.partial:
            with self._opened(slide) as task:
                wanted = overview_levels(task.slide)
            slide = self._bring(slide, wanted)
        with self._opened(slide) as task:
            self._plan(task)
        return slide

    def _framed(self, slide: Fetched) -> Fetched:
        if not slide.partial:
            return slide
        with self._opened(slide) as task:
            wanted = frames_of(task.slide, *self._plan(task).reads)
        self._unframed -= 1
        return self._bring(slide, wanted)

    def _bring(self, slide: Fetched, wanted: Wanted, entry: SeriesEntry | None = None) -> Fetched:
        before = self._done.get(slide.series, 0)
        others = sum(self._done.values()) - before

        def progress(done: int, total: int | None) -> None:
            self._done[slide.series] = max(before, done)
            in_all = None if total is None or self._unframed else others + total
            self._progress(others + self._done[slide.series], in_all)

        entry = entry or SeriesEntry(slide.study, slide.series)
        series = self._archive.fetch(entry, self._cache, wanted=wanted, progress=progress, cancelled=self._cancelled)
        return replace(slide, files=series.files)
