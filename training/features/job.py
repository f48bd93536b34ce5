"""One process's part in a job: its slides, its encoder, and the shards that it takes from the queue."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from gateway.operations.disk import disk_errors, written_whole
from gateway.operations.errors import DiskFull, PathserveError, StateError
from gateway.operations.settings import Settings
from training.features.durable import ShardQueue, queue
from training.features.embedders import Embedder, Options, open_embedder
from training.features.extract import Shard, extract
from training.features.slides import Planned, SlideFolder, plan_slide

_PLANS = 4
_UNEXPECTED = "An unexpected error ended the work on a part of the slide: see what its process printed, then run again."


class Job(BaseModel):
    """What to compute, the same for all its processes. `work` is the job's own folder, in the output folder;
    `shard_tiles` what a kill costs at most, a slide and a worker."""

    model_config = ConfigDict(frozen=True)

    slides: Path
    encoder: str
    out: Path
    options: Options = Options()
    shard_tiles: int = 512

    @property
    def work(self) -> Path:
        return self.out / ".features"

    @property
    def file(self) -> Path:
        return self.work / "job.json"

    def result(self, series: str) -> Path:
        return self.out / f"{series}.h5"

    def parts(self, series: str) -> Path:
        return self.work / series

    def shard(self, series: str, first: int) -> Shard:
        return Shard(series, first, first + self.shard_tiles, self.parts(series))

    def failure(self, series: str) -> Path:
        """The sentence about why a slide cannot be done, once a shard has failed."""
        return self.parts(series) / "failed.txt"


class Plans:
    """Plans of the last few slides; the same in every process, as it depends on the slide and the encoder alone."""

    def __init__(self, slides: SlideFolder, embedder: Embedder) -> None:
        self._slides, self._embedder = slides, embedder
        self._kept = lru_cache(_PLANS)(self._planned)

    def __call__(self, series: str) -> Planned:
        """Raises SlideError, ArchiveError."""
        return self._kept(series)

    def _planned(self, series: str) -> Planned:
        with self._slides.open(series) as slide:
            return plan_slide(slide, self._embedder.mpp, self._embedder.record.tile_px)


@dataclass(frozen=True, slots=True, eq=False)
class Hand:
    """A process at work: what it knows of the slides, and the queue; `troubles` that no shard gets round, if any."""

    slides: SlideFolder
    embedder: Embedder
    queue: ShardQueue
    plans: Plans
    troubles: list[PathserveError]

    def check(self) -> None:
        """Raises the first of the troubles."""
        if self.troubles:
            raise self.troubles[0]


@contextmanager
def at_work(job: Job, settings: Settings, index: int) -> Iterator[Hand]:
    """Take shards of a job until the block ends. Raises PathserveError where slides or encoder cannot be used."""
    slides = SlideFolder(job.slides)
    with open_embedder(job.encoder, settings, job.options) as embedder:
        plans = Plans(slides, embedder)
        troubles: list[PathserveError] = []
        turn, over = threading.Lock(), threading.Event()

        def work(series: str, first: int) -> None:
            shard = job.shard(series, first)
            if any(path.is_file() for path in (shard.tiles, job.failure(series), job.result(series))):
                return
            try:
                with disk_errors():
                    shard.folder.mkdir(parents=True, exist_ok=True)
                _work(shard)
            except (DiskFull, StateError) as error:  # not the slide's fault
                troubles.append(error)
                raise

        def _work(shard: Shard) -> None:
            try:
                planned = plans(shard.series)
                assert planned.plan is not None, "a slide without tissue has no shards"
                with slides.open(shard.series) as slide:
                    extract(slide, planned.plan, shard, embedder, turn)
            except (DiskFull, StateError):
                raise
            except Exception as error:  # a shard that only ended in an error would be waited for without end
                if over.is_set():  # nobody waits, and what failed may be the end of the encoder alone
                    raise
                detail = error.detail if isinstance(error, PathserveError) else _UNEXPECTED
                if detail is _UNEXPECTED:
                    logging.exception("a part of the slide %s ended in an unexpected error", shard.series)
                with disk_errors(), written_whole(job.failure(shard.series)) as file:
                    file.write(detail.encode())

        try:
            with queue(job.work, index, work) as shards:
                yield Hand(slides, embedder, shards, plans, troubles)
        finally:
            over.set()
