"""The frame pipeline: every frame under the planned tiles is fetched and decoded once, and scattered into its tiles.

The plan's strips share no frame (`gateway.slides.grid`), and inside a strip frames are taken row by row, so tiles are
finished in plan order and only a few batches are open at a time. Memory depends on `max_frames` and the batch, not on
the slide.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from gateway.operations.errors import Cancelled
from gateway.slides.decode import visible
from gateway.slides.grid import TilePlan
from gateway.slides.metrics import FRAME_BYTES, FRAMES_DECODED, FRAMES_MISSING
from gateway.slides.slide import WHITE, LevelImage, Slide

_TASK_FRAMES = 16
"""Frames fetched and decoded by one task of the pool: enough that reads are in bulk and the hand-over costs little."""


@dataclass(frozen=True, slots=True, eq=False)
class TileBatch:
    """Tiles `start`, `start + 1`, … of the plan: `images_BHWC` (B, tile_px, tile_px, 3) uint8 RGB.

    `missing`: (row, column) of the frames that should be there and are empty (white here) whose first tile is in this
    batch. What a sparse slide leaves out is background, not missing.
    """

    start: int
    images_BHWC: NDArray[np.uint8]
    missing: tuple[tuple[int, int], ...] = ()

    @property
    def frames_missing(self) -> int:
        return len(self.missing)


@dataclass(slots=True, eq=False)
class _OpenBatch:
    fields_BHWC: NDArray[np.uint8]
    missing: list[tuple[int, int]] = field(default_factory=list)
    """Missing frames (row, column): a list, because appending to it is atomic."""


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """Some needed frames of one frame row, in rising order."""

    row: int
    columns: tuple[int, ...]


@dataclass(slots=True, eq=False)
class FrameGauge:
    """Frames fetched or decoded and not yet dropped. Refuses to pass the limit; `peak` is for tests and figures."""

    limit: int
    held: int = 0
    peak: int = 0
    decoded: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, frames: int) -> None:
        with self.lock:
            self.held += frames
            self.peak = max(self.peak, self.held)
        assert self.held <= self.limit, "more frames in memory than allowed"

    def drop(self, frames: int, decoded: int) -> None:
        with self.lock:
            self.held -= frames
            self.decoded += decoded


def stream_tiles(
    slide: Slide,
    plan: TilePlan,
    *,
    batch: int,
    skip: int = 0,
    workers: int = 2,
    max_frames: int = 256,
    cancelled: Callable[[], bool] = lambda: False,
    gauge: FrameGauge | None = None,
) -> Iterator[TileBatch]:
    """The plan's tiles, batch by batch: batch k is always tiles `[k * batch, (k + 1) * batch)` of the plan.

    `skip` tiles (a multiple of `batch`) are done already: frames that only they need are not read. At most `max_frames`
    frames are fetched or decoded at a time; the pipeline works ahead of its reader up to that bound. Frames that the
    slide leaves out or lacks, and what lies beyond its edge, are white. Where the level is finer than the model's
    resolution, tiles are reduced with an antialiased bicubic filter. A caller's own `gauge` brings its own limit in
    place of `max_frames`.

    Raises CorruptFrame, TruncatedFile, FramesNotFetched, Cancelled (when `cancelled()` turns true).
    """
    if batch < 1 or skip % batch or workers < 1:
        raise ValueError("batch and workers must be positive, skip a multiple of batch")
    gauge = gauge or FrameGauge(limit=max_frames)
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="frames") as pool:
        image = slide.image(plan.grid.level)
        stream = _Stream(image, plan, batch, skip, gauge, pool)
        try:
            yield from stream.batches(image.at_once(min(_TASK_FRAMES, gauge.limit // (2 * workers))), cancelled)
        finally:
            stream.stop()


def _overlaps(size_px: int, frame_px: int, field_px: int) -> list[list[tuple[int, slice, slice]]]:
    """Along one axis: for every frame the tiles that it overlaps, each with the pixels of the frame and of the tile
    that coincide. Pixels of the last frame beyond the image are left out."""
    frames = []
    for start in range(0, size_px, frame_px):
        end = min(start + frame_px, size_px)
        tiles = []
        for tile in range(start // field_px, -(-end // field_px)):
            low, high = max(start, tile * field_px), min(end, (tile + 1) * field_px)
            in_frame = slice(low - start, high - start)
            tiles.append((tile, in_frame, slice(low - tile * field_px, high - tile * field_px)))
        frames.append(tiles)
    return frames


class _Stream:
    def __init__(
        self, image: LevelImage, plan: TilePlan, batch: int, skip: int, gauge: FrameGauge, pool: ThreadPoolExecutor
    ) -> None:
        self._image = image
        self._plan = plan
        self._batch = batch
        self._skip = skip
        self._gauge = gauge
        self._pool = pool
        self._next = skip // batch
        self._open: dict[int, _OpenBatch] = {}
        self._opening = threading.Lock()
        self._pending: deque[tuple[Future[None], int, int]] = deque()
        self._scratch = threading.local()
        self._stopped = False
        grid, level = plan.grid, image.level
        self._rows = _overlaps(level.height_px, level.frame_height_px, grid.field_px)
        self._columns = _overlaps(level.width_px, level.frame_width_px, grid.field_px)
        self._tile_at_RC = np.full((grid.rows, grid.columns), -1, np.int32)
        self._tile_at_RC[plan.rows_N, plan.columns_N] = np.arange(len(plan), dtype=np.int32)

    def batches(self, task_frames: int, cancelled: Callable[[], bool]) -> Iterator[TileBatch]:
        """Submit tasks up to the frame bound, wait for the oldest, hand out what it completed."""
        ahead = 0
        for runs, frames, complete in self._tasks(task_frames):
            while ahead + frames > self._gauge.limit:
                ahead -= yield from self._finish_oldest(cancelled)
            ahead += frames
            self._gauge.take(frames)
            self._pending.append((self._pool.submit(self._read, runs), frames, complete))
        while self._pending:
            yield from self._finish_oldest(cancelled)

    def stop(self) -> None:
        """Let running tasks end and drop the rest."""
        self._stopped = True
        for future, _, _ in self._pending:
            future.cancel()

    def _finish_oldest(self, cancelled: Callable[[], bool]) -> Generator[TileBatch, None, int]:
        """Wait for the oldest task and hand out the batches that are complete with it; returns its frames."""
        if cancelled():
            raise Cancelled("The analysis was cancelled while the slide was read.")
        future, frames, complete = self._pending.popleft()
        future.result()
        while (start := self._next * self._batch) < complete:
            if min(start + self._batch, len(self._plan)) > complete:
                break
            opened = self._open.pop(self._next)
            self._next += 1
            FRAMES_MISSING.inc(len(opened.missing))
            yield TileBatch(start, self._as_model_sees(opened.fields_BHWC), tuple(opened.missing))
        return frames

    def _as_model_sees(self, fields_BHWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        tile_px = self._plan.grid.tile_px
        if self._plan.grid.field_px == tile_px:
            return fields_BHWC
        images = np.empty((len(fields_BHWC), tile_px, tile_px, 3), np.uint8)

        def reduce(index: int) -> None:
            picture = PillowImage.fromarray(fields_BHWC[index])
            images[index] = np.asarray(picture.resize((tile_px, tile_px), PillowImage.Resampling.BICUBIC))

        for _ in self._pool.map(reduce, range(len(fields_BHWC))):
            pass
        return images

    def _tasks(self, task_frames: int) -> Iterator[tuple[list[_Run], int, int]]:
        """Neighbouring runs as tasks of at most `task_frames` frames: (runs, frames, tiles complete with it)."""
        runs: list[_Run] = []
        frames = complete = 0
        for run, after in self._runs(task_frames):
            if runs and frames + len(run.columns) > task_frames:
                yield runs, frames, complete
                runs, frames = [], 0
            runs.append(run)
            frames, complete = frames + len(run.columns), after
        if runs:
            yield runs, frames, complete

    def _runs(self, run_frames: int) -> Iterator[tuple[_Run, int]]:
        """The runs of frames in reading order, each with the number of tiles complete once it and all before are in."""
        grid, level, plan = self._plan.grid, self._image.level, self._plan
        frame_rows, frame_columns = self._image.frame_at_RC.shape
        strips = plan.columns_N // plan.strip_tiles
        for strip in np.unique(strips[self._skip :]):
            first = max(self._skip, int(np.searchsorted(strips, strip, "left")))
            last = int(np.searchsorted(strips, strip, "right"))
            rows_T, columns_T = plan.rows_N[first:last], plan.columns_N[first:last]
            left = int(strip) * plan.strip_tiles * grid.field_px // level.frame_width_px
            right = -(-(int(strip) + 1) * plan.strip_tiles * grid.field_px // level.frame_width_px)
            right = min(right, frame_columns)
            last_rows_T = np.minimum(((rows_T + 1) * grid.field_px - 1) // level.frame_height_px, frame_rows - 1)
            first_row = int(rows_T[0]) * grid.field_px // level.frame_height_px
            for row in range(first_row, int(last_rows_T[-1]) + 1):
                # Tiles of the strip are sorted by row, so those that overlap this frame row are neighbours.
                begin = int(np.searchsorted(last_rows_T, row, "left"))
                end = int(np.searchsorted(rows_T * grid.field_px, (row + 1) * level.frame_height_px, "left"))
                if begin >= end:
                    continue
                needed = np.zeros(right - left, np.bool_)
                for column in np.unique(columns_T[begin:end]).tolist():
                    start_px = column * grid.field_px
                    end_px = min(start_px + grid.field_px, level.width_px)
                    needed[start_px // level.frame_width_px - left : -(-end_px // level.frame_width_px) - left] = True
                columns = (np.flatnonzero(needed) + left).tolist()
                before = first + begin
                after = first + int(np.searchsorted(last_rows_T, row, "right"))
                for i in range(0, len(columns), run_frames):
                    run = _Run(row, tuple(columns[i : i + run_frames]))
                    yield run, after if i + run_frames >= len(columns) else before

    def _read(self, runs: list[_Run]) -> None:
        """Fetch each run's frames in bulk, decode them and copy them into their tiles. On the pool; no two tasks of a
        stream hold the same frame, so none write the same pixels."""
        level, decode, scratch = self._image.level, self._image.decoder, self._scratch_image()
        for run in runs:
            decoded = size = 0
            try:
                if self._stopped:
                    continue
                numbers = self._image.frame_at_RC[run.row, list(run.columns)].tolist()
                height_px = min(level.frame_height_px, level.height_px - run.row * level.frame_height_px)
                encoded = iter(self._image.read_frames([number for number in numbers if number >= 0]))
                for column, number in zip(run.columns, numbers, strict=True):
                    if number < 0:
                        self._scatter(None, run.row, column, missing=False)
                        continue
                    data = next(encoded)
                    width_px = min(level.frame_width_px, level.width_px - column * level.frame_width_px)
                    frame = None
                    if data:
                        frame = visible(decode(data, scratch), height_px, width_px)
                        decoded, size = decoded + 1, size + len(data)
                    self._scatter(frame, run.row, column, missing=frame is None)
            finally:
                self._gauge.drop(len(run.columns), decoded)
                FRAMES_DECODED.inc(decoded)
                FRAME_BYTES.inc(size)

    def _scatter(self, frame: NDArray[np.uint8] | None, row: int, column: int, *, missing: bool) -> None:
        """Copy a frame (None: white) into the planned tiles that it overlaps and that are not done yet."""
        seen = False
        for tile_row, from_y, to_y in self._rows[row]:
            for tile_column, from_x, to_x in self._columns[column]:
                tile = self._tile_at_RC.item(tile_row, tile_column)
                if tile < 0:
                    continue
                if tile >= self._skip:
                    batch = self._batch_of(tile)
                    part = WHITE if frame is None else frame[from_y, from_x]
                    batch.fields_BHWC[tile % self._batch, to_y, to_x] = part
                    if missing and not seen:
                        batch.missing.append((row, column))
                seen = True

    def _batch_of(self, tile: int) -> _OpenBatch:
        number = tile // self._batch
        opened = self._open.get(number)
        if opened is None:
            with self._opening:
                opened = self._open.get(number) or self._open.setdefault(number, self._new_batch(number))
        return opened

    def _new_batch(self, number: int) -> _OpenBatch:
        start, end = number * self._batch, min((number + 1) * self._batch, len(self._plan))
        field_px, level = self._plan.grid.field_px, self._image.level
        fields = np.empty((end - start, field_px, field_px, 3), np.uint8)
        rows, columns = self._plan.rows_N[start:end], self._plan.columns_N[start:end]
        beyond = ((rows + 1) * field_px > level.height_px) | ((columns + 1) * field_px > level.width_px)
        fields[beyond] = WHITE
        return _OpenBatch(fields)

    def _scratch_image(self) -> NDArray[np.uint8]:
        """This thread's own image to decode into: it stays in the processor's cache."""
        if not hasattr(self._scratch, "image"):
            level = self._image.level
            self._scratch.image = np.empty((level.frame_height_px, level.frame_width_px, 3), np.uint8)
        image: NDArray[np.uint8] = self._scratch.image
        return image
