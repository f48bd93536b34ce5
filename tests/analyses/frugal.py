"""An archive that brings exactly what is wanted, as partial instances: for tests of what a case asks for.

The slides are those of a folder; what is brought lies in the real frame cache.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import pydicom

from gateway.archive import FetchedSeries, FetchProgress, FolderArchive, SeriesEntry, Wanted, no_progress
from gateway.archive.cache import FrameCache
from gateway.archive.partial import PartialInstance
from gateway.operations.errors import Cancelled
from tests.slides.partials import encoded_frames, split


class FrugalArchive:
    """`asked` holds what was wanted, call by call; `frames_brought` counts frames over all calls. `after` is called
    when one ends."""

    address = "frugal"

    def __init__(self, folder: Path) -> None:
        self._folder = FolderArchive(folder)
        self.asked: list[tuple[str, Wanted]] = []
        self.frames_brought = 0
        self.after: Callable[[], None] = lambda: None

    def find_series(
        self, study: str, series: Sequence[str] = (), *, cancelled: Callable[[], bool] = lambda: False
    ) -> tuple[SeriesEntry, ...]:
        return self._folder.find_series(study, series)

    def fetch(
        self,
        entry: SeriesEntry,
        cache: FrameCache,
        *,
        wanted: Wanted | None = None,
        progress: FetchProgress = no_progress,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> FetchedSeries:
        assert wanted is not None
        if cancelled():
            raise Cancelled("The analysis was cancelled.")
        self.asked.append((entry.series, wanted))
        heads: list[Path] = []

        def done() -> int:
            parts = (PartialInstance(head).frames_file for head in heads)
            return sum(part.stat().st_size for part in parts if part.exists())

        with cache.filling(self.address, entry.study, entry.series, cancelled) as folder:
            for file in self._folder.fetch(entry, cache).files:
                sop = str(pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID)
                part = PartialInstance(folder / f"{sop}.header.dcm")
                if not part.header.exists():
                    part = split(file, folder)
                heads.append(part.header)
                if sop in wanted:
                    frames = encoded_frames(file)
                    numbers = wanted[sop]
                    missing = part.missing(range(len(frames)) if numbers is None else numbers)
                    part.append((number, frames[number]) for number in missing)
                    self.frames_brought += len(missing)
                    progress(done(), None)
        progress(done(), done())
        self.after()
        return FetchedSeries(entry.study, entry.series, tuple(sorted(heads)))
