"""Slides of which only the headers, or some frames, are there; and what is said to be wanted of them."""

import shutil

import numpy as np
import pydicom
import pytest

from gateway.operations.errors import FramesNotFetched
from gateway.slides import Slide, find_tissue, frames_of, overview_levels, plan_tiles, stream_tiles
from tests.slides.partials import EVERYTHING, encoded_frames, fetch, split

LAYOUTS = [
    {},
    {"parts": 3},
    {"sparse": True, "parts": 2},
    {"offset_table": "extended"},
    {"encoding": "uncompressed"},
    {"levels": 1, "empty_frames": (6, 7)},
]


@pytest.fixture(params=LAYOUTS, ids=str)
def whole(request, make_phantom):
    """The files of a slide's VOLUME images."""
    return [file for file in make_phantom(1100, 800, seed=4, **request.param).files if file.name != "label.dcm"]


@pytest.fixture
def parts(whole, tmp_path):
    """The same as partial instances without a frame, by SOP instance UID."""
    made = [split(file, tmp_path) for file in whole]
    return {str(pydicom.dcmread(part.header).SOPInstanceUID): part for part in made}


def plan_of(slide):
    return plan_tiles(slide, find_tissue(slide), mpp=0.5, tile_px=96, min_tissue=0.5)


def test_headers_alone_make_a_slide_without_pixels(whole, parts):
    with Slide.open(whole) as stored, Slide.open([part.header for part in parts.values()]) as slide:
        assert slide.header == stored.header
        assert slide.levels == stored.levels
        assert np.array_equal(slide.image(0).frame_at_RC, stored.image(0).frame_at_RC)
        with pytest.raises(FramesNotFetched):
            slide.thumbnail()
        with pytest.raises(FramesNotFetched):
            list(stream_tiles(slide, plan_of(stored), batch=4))


def test_the_five_steps_give_the_same_tiles_as_the_whole_slide(whole, parts):
    heads = [part.header for part in parts.values()]
    with Slide.open(heads) as slide:
        first = overview_levels(slide)
    fetch(whole, parts, first)
    with Slide.open(heads) as slide, Slide.open(whole) as stored:
        assert np.array_equal(slide.thumbnail(), stored.thumbnail())
        plan = plan_of(slide)
        assert plan.digest == plan_of(stored).digest
        fetch(whole, parts, frames_of(slide, plan))
    with Slide.open(heads) as slide, Slide.open(whole) as stored:
        ours, theirs = (list(stream_tiles(opened, plan, batch=4)) for opened in (slide, stored))
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert np.array_equal(a.images_BHWC, b.images_BHWC)
        assert a.frames_missing == b.frames_missing


def test_frames_of_a_plan_are_those_that_the_pipeline_reads(whole, note_frames):
    with Slide.open(whole) as slide:
        plan = plan_of(slide)
        image = slide.image(plan.grid.level)
        read = note_frames()
        list(stream_tiles(slide, plan, batch=4))
        wanted = []
        for uid, frames in frames_of(slide, plan).items():
            index = next(i for i, one in enumerate(image.instances) if one.file.dataset.SOPInstanceUID == uid)
            numbers = range(len(image.instances[index].frames)) if frames is EVERYTHING else frames
            assert list(numbers) == sorted(set(numbers))
            wanted += [int(image.offsets_I[index]) + number for number in numbers]
        assert sorted(read) == sorted(wanted)


def test_overview_levels_are_those_that_are_read(phantom, monkeypatch):
    with Slide.open(phantom.files) as slide:
        seen: set[str] = set()
        original = type(slide.image(0)).read_frames

        def noting(self, frames):
            seen.update(self.level.sop_instance_uids)
            return original(self, frames)

        monkeypatch.setattr(type(slide.image(0)), "read_frames", noting)
        find_tissue(slide)
        slide.thumbnail()
        wanted = overview_levels(slide)
        assert set(wanted) == seen
        assert set(wanted.values()) == {EVERYTHING}
        assert slide.levels[0].sop_instance_uids[0] not in wanted


def test_whole_and_partial_instances_mix(phantom, tmp_path):
    volumes = [file for file in phantom.files if file.name != "label.dcm"]
    mixed = [split(volumes[0], tmp_path).header, *volumes[1:]]
    with Slide.open(mixed) as slide, Slide.open(volumes) as stored:
        assert np.array_equal(slide.thumbnail(300), stored.thumbnail(300))
        with pytest.raises(FramesNotFetched):
            slide.read_level(0)


@pytest.mark.parametrize("damage", ["index gone", "index cut", "frames cut"])
def test_a_damaged_cache_is_fetched_again(phantom, tmp_path, damage):
    volumes = [file for file in phantom.files if file.name != "label.dcm"]
    part = split(volumes[-1], tmp_path)
    uid = str(pydicom.dcmread(part.header).SOPInstanceUID)
    fetch(volumes, {uid: part}, {uid: EVERYTHING})
    if damage == "frames cut":
        part.frames_file.write_bytes(part.frames_file.read_bytes()[:-10])
    else:
        index = part.header.with_name(f"{uid}.index")
        data = index.read_bytes()
        index.unlink()
        if damage == "index cut":
            index.write_bytes(data[:-3])
    with pytest.raises(FramesNotFetched), Slide.open([part.header]) as slide:
        slide.read_level(0)


@pytest.mark.parametrize("kind", ["partial", "whole"])
def test_frames_of_a_file_that_was_replaced_are_never_taken_for_those_of_the_one_that_was_opened(
    phantom, tmp_path, monkeypatch, kind
):
    """As files of levels of many instances are, which are opened when they are read."""
    monkeypatch.setattr("gateway.slides.slide._MAX_OPEN_FILES", 0)
    [stored] = [file for file in phantom.files if file.name == "level-0.dcm"]
    if kind == "partial":
        part = split(stored, tmp_path)
        frames = list(enumerate(encoded_frames(stored)))
        part.append(frames)
        file = part.header
    else:
        file = tmp_path / stored.name
        shutil.copyfile(stored, file)
    with Slide.open([file]) as slide:
        before = slide.image(0).read_frames([0])[0]
        assert len(before)
        if kind == "partial":
            part.remove()
            split(stored, tmp_path).append(frames[::-1])
        else:
            dataset = pydicom.dcmread(stored)
            dataset.ImageComments = "longer than before"
            dataset.save_as(tmp_path / "new")
            (tmp_path / "new").replace(file)
        with pytest.raises(FramesNotFetched, match="replaced"):
            slide.image(0).read_frames([0])
    with Slide.open([file]) as slide:
        assert slide.image(0).read_frames([0])[0] == before
