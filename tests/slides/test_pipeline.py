"""The frame pipeline against the plain way: crop the fully decoded level."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage

from gateway.operations.errors import Cancelled, CorruptFrame
from gateway.slides import FrameGauge, Slide, TilePlan, TissueMask, find_tissue, plan_tiles, stream_tiles
from gateway.slides.grid import frames_under
from gateway.slides.phantom import write_phantom


def whole_tissue(slide: Slide) -> TissueMask:
    """A mask that calls the whole slide tissue, so that edge tiles are read too."""
    level = slide.levels[0]
    return TissueMask(np.ones((-(-level.height_px // 8), -(-level.width_px // 8)), np.bool_), 8 * level.mpp, 1.0)


def random_tissue(slide: Slide, seed: int) -> TissueMask:
    """Scattered tissue, so that frames are needed by some of their tiles only."""
    level = slide.levels[0]
    shape = -(-level.height_px // 100), -(-level.width_px // 100)
    return TissueMask(np.random.default_rng(seed).random(shape) < 0.3, 100 * level.mpp, 1.0)


def naive_tiles(slide: Slide, plan: TilePlan) -> np.ndarray:
    """(N, tile_px, tile_px, 3): each tile cut from the decoded level, white beyond its edge, reduced by Pillow."""
    grid = plan.grid
    whole = slide.read_level(grid.level)
    canvas = np.full((grid.rows * grid.field_px, grid.columns * grid.field_px, 3), 255, np.uint8)
    canvas[: whole.shape[0], : whole.shape[1]] = whole
    tiles = []
    for row, column in zip(plan.rows_N, plan.columns_N, strict=True):
        y, x = row * grid.field_px, column * grid.field_px
        field = canvas[y : y + grid.field_px, x : x + grid.field_px]
        if grid.field_px != grid.tile_px:
            size = (grid.tile_px, grid.tile_px)
            field = np.asarray(PillowImage.fromarray(field).resize(size, PillowImage.Resampling.BICUBIC))
        tiles.append(field)
    return np.stack(tiles)


def streamed(slide: Slide, plan: TilePlan, **options) -> np.ndarray:
    batches = list(stream_tiles(slide, plan, **{"batch": 5, **options}))
    starts = [batch.start for batch in batches]
    assert starts == list(range(options.get("skip", 0), len(plan), options.get("batch", 5)))
    return np.concatenate([batch.images_BHWC for batch in batches])


@pytest.mark.parametrize("frame_px", [240, 256, 512])
@pytest.mark.parametrize(("mpp", "tile_px"), [(0.5, 224), (0.5, 223), (0.5, 448), (1.0, 224), (1.1, 101), (2.0, 64)])
def test_tiles_equal_crops_of_the_level(make_phantom, frame_px, mpp, tile_px):
    with Slide.open(make_phantom(1900, 1300, frame_px=frame_px, seed=1).files) as slide:
        for tissue in (whole_tissue(slide), random_tissue(slide, seed=frame_px)):
            plan = plan_tiles(slide, tissue, mpp=mpp, tile_px=tile_px, min_tissue=0.01)
            assert np.array_equal(streamed(slide, plan), naive_tiles(slide, plan))


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(64, 330), st.integers(64, 330)),
    frame_px=st.sampled_from([16, 32, 48, 64]),
    tile_px=st.integers(10, 130),
    batch=st.integers(1, 9),
    max_frames=st.integers(1, 40),
    seed=st.integers(0, 2**16),
)
def test_tiles_equal_crops_for_any_geometry(tmp_path_factory, size, frame_px, tile_px, batch, max_frames, seed):
    truth = write_phantom(
        tmp_path_factory.mktemp("any"), width_px=size[0], height_px=size[1], frame_px=frame_px, levels=1, seed=seed
    )
    with Slide.open(truth.files) as slide:
        tissue = random_tissue(slide, seed)
        tissue = replace(tissue, mask=tissue.mask | (np.arange(tissue.mask.size).reshape(tissue.mask.shape) == 0))
        plan = plan_tiles(slide, tissue, mpp=0.5, tile_px=tile_px, min_tissue=0.0)
        gauge = FrameGauge(limit=max_frames)
        tiles = streamed(slide, plan, batch=batch, max_frames=max_frames, gauge=gauge)
        assert np.array_equal(tiles, naive_tiles(slide, plan))
        assert gauge.decoded == plan.frames
        assert gauge.peak <= max_frames
        assert gauge.held == 0


def test_real_slide(real_files):
    with Slide.open(real_files) as slide:
        plan = plan_tiles(slide, find_tissue(slide), mpp=0.5, tile_px=224)
        assert np.array_equal(streamed(slide, plan, batch=16), naive_tiles(slide, plan))


@pytest.mark.parametrize("encoding", ["jpeg2000", "jpeg-ls", "uncompressed"])
def test_other_encodings(make_phantom, encoding):
    with Slide.open(make_phantom(150, 140, encoding=encoding, levels=1, frame_px=64).files) as slide:
        plan = plan_tiles(slide, whole_tissue(slide), mpp=0.5, tile_px=50)
        assert np.array_equal(streamed(slide, plan), naive_tiles(slide, plan))


@pytest.mark.parametrize("tile_px", [224, 223])
def test_each_frame_is_decoded_once_and_only_frames_under_tiles(slide, note_frames, tile_px):
    plan = plan_tiles(slide, random_tissue(slide, 1), mpp=0.5, tile_px=tile_px)
    image = slide.image(plan.grid.level)
    read = note_frames()
    streamed(slide, plan)
    chosen = np.zeros((plan.grid.rows, plan.grid.columns), np.bool_)
    chosen[plan.rows_N, plan.columns_N] = True
    expected = image.frame_at_RC[frames_under(image, plan.grid, chosen)]
    assert sorted(read) == sorted(expected.tolist())
    assert len(read) == plan.frames < image.frame_at_RC.size


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("max_frames", [1, 7, 256])
def test_bounds_and_workers_do_not_change_the_tiles(slide, workers, max_frames):
    plan = plan_tiles(slide, find_tissue(slide), mpp=0.5, tile_px=224)
    gauge = FrameGauge(limit=max_frames)
    tiles = streamed(slide, plan, workers=workers, max_frames=max_frames, gauge=gauge)
    assert np.array_equal(tiles, streamed(slide, plan))
    assert gauge.peak <= max_frames
    assert gauge.held == 0


def test_the_gauge_refuses_more_than_its_limit():
    gauge = FrameGauge(limit=2)
    gauge.take(2)
    with pytest.raises(AssertionError):
        gauge.take(1)


def test_a_slow_reader_holds_the_pipeline_back(slide):
    """Without a reader nothing is decoded beyond the bound."""
    plan = plan_tiles(slide, whole_tissue(slide), mpp=0.5, tile_px=224)
    gauge = FrameGauge(limit=6)
    stream = stream_tiles(slide, plan, batch=2, max_frames=6, gauge=gauge)
    next(stream)
    threading.Event().wait(0.3)
    assert gauge.decoded < plan.frames / 2
    stream.close()


@pytest.mark.parametrize("skip", [5, 10, 35])
@pytest.mark.parametrize("tile_px", [224, 223])
def test_resuming_gives_the_same_tiles_and_reads_no_finished_frames(slide, skip, tile_px):
    plan = plan_tiles(slide, find_tissue(slide), mpp=0.5, tile_px=tile_px, min_tissue=0.01)
    assert len(plan) > skip
    gauge = FrameGauge(limit=256)
    rest = streamed(slide, plan, skip=skip, gauge=gauge)
    assert np.array_equal(rest, streamed(slide, plan)[skip:])
    chosen = np.zeros((plan.grid.rows, plan.grid.columns), np.bool_)
    chosen[plan.rows_N[skip:], plan.columns_N[skip:]] = True
    assert gauge.decoded == np.count_nonzero(frames_under(slide.image(plan.grid.level), plan.grid, chosen))


def test_resuming_a_finished_plan_reads_nothing(slide):
    plan = plan_tiles(slide, find_tissue(slide), mpp=0.5, tile_px=224)
    gauge = FrameGauge(limit=256)
    assert list(stream_tiles(slide, plan, batch=1, skip=len(plan), gauge=gauge)) == []
    assert gauge.decoded == 0


def test_frames_left_out_or_missing_are_white_and_only_the_missing_are_counted(make_phantom):
    truth = make_phantom(1100, 800, sparse=True, empty_frames=(6, 7), levels=1, seed=2)
    with Slide.open(truth.files) as slide:
        plan = plan_tiles(slide, whole_tissue(slide), mpp=0.5, tile_px=224)
        absent = slide.image(0).frame_at_RC < 0
        assert absent.any()
        assert not absent.ravel()[[6, 7]].any()
        for skip, expected in ((0, {2}), (4, {0, 1, 2}), (12, {0, 1, 2})):
            counted = sum(batch.frames_missing for batch in stream_tiles(slide, plan, batch=4, skip=skip))
            assert counted in expected
        halves = [b.frames_missing for b in stream_tiles(slide, plan, batch=4)]
        resumed = [b.frames_missing for b in stream_tiles(slide, plan, batch=4, skip=8)]
        assert halves[2:] == resumed
        assert np.array_equal(streamed(slide, plan), naive_tiles(slide, plan))


def test_cancelling_ends_the_stream(slide):
    plan = plan_tiles(slide, find_tissue(slide), mpp=0.5, tile_px=224)
    seen: list[int] = []
    stream = stream_tiles(slide, plan, batch=1, max_frames=4, cancelled=lambda: len(seen) >= 2)
    with pytest.raises(Cancelled):
        seen.extend(batch.start for batch in stream)
    assert 2 <= len(seen) < len(plan)


def test_a_reader_that_stops_leaves_no_threads(slide):
    plan = plan_tiles(slide, find_tissue(slide), mpp=0.5, tile_px=224)
    stream = stream_tiles(slide, plan, batch=1, max_frames=8)
    next(stream)
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("frames")]


def test_a_damaged_frame_ends_the_stream(make_phantom, tmp_path):
    data = bytearray(make_phantom(levels=1).files[0].read_bytes())
    start = data.index(b"\xff\xd8\xff", len(data) // 2)
    data[start : start + 400] = b"\0" * 400
    (tmp_path / "damaged.dcm").write_bytes(data)
    with Slide.open([tmp_path / "damaged.dcm"]) as slide:
        plan = plan_tiles(slide, whole_tissue(slide), mpp=0.5, tile_px=224)
        with pytest.raises(CorruptFrame):
            list(stream_tiles(slide, plan, batch=4))


@pytest.mark.parametrize("options", [{"batch": 0}, {"batch": 4, "skip": 3}, {"batch": 4, "workers": 0}])
def test_arguments_that_make_no_sense(slide, options):
    plan = plan_tiles(slide, find_tissue(slide), mpp=0.5, tile_px=224)
    with pytest.raises(ValueError):
        list(stream_tiles(slide, plan, **options))
