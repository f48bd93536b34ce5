"""A job from the slides to their feature files: plan, queue, watch the parts come, and put each slide together."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from gateway.operations.disk import disk_errors, locked_folder, written_whole
from gateway.operations.errors import PathserveError
from gateway.operations.settings import Settings
from training.features import files
from training.features.durable import executor_of
from training.features.errors import FeaturesInvalid
from training.features.extract import Shard
from training.features.job import Hand, Job, at_work
from training.features.slides import Planned

_LOOK_S = 0.1
_RESTARTS = 3


@dataclass(slots=True)
class Progress:
    """Tiles done and known so far, and what became of the slides."""

    tiles: int = 0
    known_tiles: int = 0
    slides: int = 0
    written: int = 0
    kept: int = 0
    unreadable: int = 0
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class _Open:
    """A slide whose parts are still coming."""

    series: str
    planned: Planned
    shards: tuple[Shard, ...]

    @property
    def missing(self) -> list[Shard]:
        return [shard for shard in self.shards if not shard.tiles.is_file()]


def run(
    job: Job, settings: Settings, workers: int, tell: Callable[[Progress], None] = lambda progress: None
) -> Progress:
    """Compute what is missing of a job's feature files with `workers` processes, this one among them.

    A slide that cannot be read is named in the progress and in features.jsonl; the others are done. A job that was
    killed goes on where it stopped when it is run again.
    Raises FeaturesMixed (the output folder holds features that were made otherwise), FeaturesInvalid (it is in use),
    and what `at_work` raises.
    """
    with _folder(job), at_work(job, settings, 0) as hand:
        for path in sorted(job.out.glob("*.h5")):
            hand.embedder.record.demand_same(files.read_record(path), path.name)
        hand.queue.take_back()
        course = _Course(job, hand)
        with _further(job, hand, workers) as look_after:
            for series in hand.slides.series:
                if job.result(series).is_file():
                    course.progress.kept += 1
                    continue
                course.begin(series)
                course.gather()
                tell(course.progress)
            while course.waiting:
                time.sleep(_LOOK_S)
                hand.check()
                if look_after():
                    course.put(course.waiting)
                course.gather()
                tell(course.progress)
    shutil.rmtree(job.work)
    return course.progress


@contextmanager
def _folder(job: Job) -> Iterator[None]:
    """The output folder, held against other jobs, with the job's own folder in it. Raises FeaturesInvalid, DiskFull."""
    with disk_errors():
        job.work.mkdir(parents=True, exist_ok=True)
    try:
        with locked_folder(job.work, wait=False):
            text = job.model_dump_json().encode()
            if not job.file.is_file() or job.file.read_bytes() != text:
                for path in job.work.iterdir():  # parts of another job
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                with disk_errors(), written_whole(job.file) as file:
                    file.write(text)
            for path in job.work.glob("*/failed.txt"):  # before anybody looks for it: failures of an earlier try
                path.unlink()
            yield
    except BlockingIOError:
        raise FeaturesInvalid("Another process fills this output folder. Wait for it, or choose another.") from None


@contextmanager
def _further(job: Job, hand: Hand, workers: int) -> Iterator[Callable[[], bool]]:
    """Processes 1, 2 … of the job. The function looks after them, true where one has died: it is started again a few
    times, and what it had in hand is put back."""
    command = [sys.executable, "-m", "training.features.worker", str(job.file)]
    running = {index: subprocess.Popen([*command, str(index)]) for index in range(1, workers)}
    restarts = dict.fromkeys(running, 0)

    def look_after() -> bool:
        died = False
        for index, process in list(running.items()):
            if process.poll() is None:
                continue
            died = True
            hand.queue.take_back(executor_of(index))
            del running[index]
            if restarts[index] < _RESTARTS:
                restarts[index] += 1
                running[index] = subprocess.Popen([*command, str(index)])
        return died

    try:
        yield look_after
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


class _Course:
    """The slides of a job from their plans to their files, and how far they are."""

    def __init__(self, job: Job, hand: Hand) -> None:
        self._job, self._hand = job, hand
        self.waiting: list[_Open] = []
        self.progress = Progress(slides=len(hand.slides.series))

    def begin(self, series: str) -> None:
        """Plan a slide and put its shards into the queue."""
        try:
            planned = self._hand.plans(series)
        except PathserveError as error:
            self._fail(series, error.detail)
            return
        count = len(planned.plan or ())
        self.progress.known_tiles += count
        shards = tuple(self._job.shard(series, first) for first in range(0, count, self._job.shard_tiles))
        self.waiting.append(_Open(series, planned, shards))
        self.put(self.waiting[-1:])

    def put(self, slides: list[_Open]) -> None:
        """Put the shards of some slides that have no part yet, and are in nobody's hand, into the queue."""
        for slide in slides:
            for shard in slide.missing:
                self._hand.queue.put(slide.series, shard.first)

    def gather(self) -> None:
        """Write the slides that are complete; drop those that failed."""
        still, missing_tiles = [], 0
        for slide in self.waiting:
            failure = self._job.failure(slide.series)
            if failure.is_file():
                self._fail(slide.series, failure.read_text(encoding="utf-8"))
            elif missing := slide.missing:
                still.append(slide)
                missing_tiles += len(slide.planned.plan or ()) * len(missing) // len(slide.shards)
            else:
                self._write(slide)
                shutil.rmtree(self._job.parts(slide.series), ignore_errors=True)
        self.waiting = still
        self.progress.tiles = self.progress.known_tiles - missing_tiles

    def _write(self, slide: _Open) -> None:
        """Put a slide's parts together in row-major order of the grid, whatever order and worker they came in."""
        said = [json.loads(shard.tiles.read_bytes()) for shard in slide.shards]
        tiles_N, unreadable_U = (
            np.array([tile for part in said for tile in part[kind]], np.int64) for kind in ("tiles", "unreadable")
        )
        series, planned, embedder = slide.series, slide.planned, self._hand.embedder
        order_N = np.zeros(0, np.int64)
        if planned.plan is not None:
            order_N = np.lexsort((planned.plan.columns_N[tiles_N], planned.plan.rows_N[tiles_N]))
        parts = [np.load(shard.features, mmap_mode="r") for shard in slide.shards]
        files.write(
            self._job.result(series),
            embedder.record,
            {
                "series_uid": series,
                "field_px": planned.field_px,
                "mpp": planned.mpp,
                "level_mpp": planned.level_mpp,
                "level_0_mpp": planned.level_0_mpp,
                "remark": planned.remark,
            },
            rows=files.gathered(parts, order_N),
            width=embedder.width,
            coords_N2=planned.corners(tiles_N[order_N]),
            unreadable_U2=planned.corners(unreadable_U),
        )
        self.progress.written += 1
        self.progress.unreadable += len(unreadable_U)
        for x, y in planned.corners(unreadable_U).tolist():
            self._log("unreadable tile", series, x_px=x, y_px=y)
        self._log("slide", series, tiles=len(tiles_N), unreadable=len(unreadable_U), remark=planned.remark)

    def _fail(self, series: str, detail: str) -> None:
        self.progress.failed[series] = detail
        self._log("slide failed", series, detail=detail)

    def _log(self, event: str, series: str, **values: object) -> None:
        """One line of features.jsonl."""
        line = {"event": event, "series": series, **values}
        with disk_errors(), (self._job.out / "features.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
