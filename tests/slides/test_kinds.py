"""Every layout of a level: tiling, concatenations, one instance a frame, offset tables, focal planes, optical paths."""

import itertools
import os
import struct
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
import simplejpeg
from pydicom.dataset import Dataset

from gateway.operations.errors import InvalidSlide, MissingPixelSpacing, NoVolumeImage
from gateway.slides import Slide, TissueMask, plan_tiles, stream_tiles
from tests.slides.made import (
    BRIGHTFIELD,
    EPIFLUORESCENCE,
    JPEG,
    cut,
    full,
    header,
    optical_path,
    picture,
    place,
    write,
)

IMAGE = picture(150, 130, seed=2)
HEIGHT, WIDTH, _ = IMAGE.shape
FRAME = (64, 48)  # rows, columns: not square, and no divisor of the picture
ROWS, COLUMNS = 3, 4
FRAMES = [frame.tobytes() for frame in cut(IMAGE, FRAME)]
PLACES = [(1 + c * FRAME[1], 1 + r * FRAME[0]) for r in range(ROWS) for c in range(COLUMNS)]
FIXTURES = Path(os.environ.get("PATHSERVE_DATA", Path(__file__).parents[3] / "shared" / "data")) / "slides" / "fixtures"


def image(frames: int, name: str = "level") -> Dataset:
    return header((WIDTH, HEIGHT), FRAME, frames, name=name)


def pixels(*files: Path) -> np.ndarray:
    with Slide.open(files) as slide:
        assert len(slide.levels) == 1
        return slide.read_level(0)


def remarks(*files: Path) -> list[str]:
    with Slide.open(files) as slide:
        return [remark.key for remark in slide.remarks if remark.key != "colour-not-calibrated"]


def counted_missing(*files: Path) -> int:
    with Slide.open(files) as slide:
        tissue = TissueMask(np.ones((HEIGHT, WIDTH), np.bool_), 0.5, 1.0)
        plan = plan_tiles(slide, tissue, mpp=0.5, tile_px=32)
        return sum(batch.frames_missing for batch in stream_tiles(slide, plan, batch=4))


def test_tiled_full_with_frames_that_are_not_square_and_a_header_without_dimensions(tmp_path):
    """No DimensionIndexSequence, no optical path, no frame of reference, no TotalPixelMatrixOrigin."""
    assert np.array_equal(pixels(full(tmp_path / "a.dcm", IMAGE, FRAME)), IMAGE)


def test_tiled_sparse_in_any_order(tmp_path):
    order = np.random.default_rng(0).permutation(len(FRAMES)).tolist()
    dataset = image(len(FRAMES))
    place(dataset, [PLACES[i] for i in order])
    assert np.array_equal(pixels(write(tmp_path / "a.dcm", dataset, [FRAMES[i] for i in order])), IMAGE)


def test_what_a_sparse_slide_leaves_out_is_background_and_what_is_empty_is_missing(tmp_path):
    frames = [simplejpeg.encode_jpeg(frame) for frame in cut(IMAGE, FRAME)]
    kept = [0, 1, 2, 5, 6, 7, 9]
    dataset = image(len(kept))
    dataset.PhotometricInterpretation = "YBR_FULL_422"
    place(dataset, [PLACES[i] for i in kept])
    whole = write(tmp_path / "whole.dcm", dataset, [frames[i] for i in kept], JPEG)
    assert counted_missing(whole) == 0
    assert (pixels(whole)[: FRAME[0], 3 * FRAME[1] :] == 255).all()
    lacking = write(tmp_path / "lacking.dcm", dataset, [b"" if i in (5, 6) else frames[i] for i in kept], JPEG)
    assert counted_missing(lacking) == 2
    dataset = image(len(frames))
    dataset.PhotometricInterpretation = "YBR_FULL_422"
    lacking_full = write(tmp_path / "full.dcm", dataset, [b"" if i == 3 else f for i, f in enumerate(frames)], JPEG)
    assert counted_missing(lacking_full) == 1, "a frame of zero length at the end of a row"


@pytest.mark.parametrize("shuffle", list(itertools.permutations(range(3))))
def test_concatenations_in_any_order_of_files(tmp_path, shuffle):
    files = []
    for part, (begin, end) in enumerate(((0, 5), (5, 6), (6, 12))):
        dataset = image(end - begin, f"part-{part}")
        dataset.SOPInstanceUIDOfConcatenationSource = "1.2.3"
        dataset.InConcatenationNumber, dataset.InConcatenationTotalNumber = part + 1, 3
        dataset.ConcatenationFrameOffsetNumber = begin
        files.append(write(tmp_path / f"{part}.dcm", dataset, FRAMES[begin:end]))
    assert np.array_equal(pixels(*(files[i] for i in shuffle)), IMAGE)
    with pytest.raises(InvalidSlide, match="incomplete"):
        Slide.open([files[i] for i in shuffle[:2]])


def open_files(folder: Path) -> int:
    """How many of a folder's files this process holds open: what else it opens meanwhile says nothing of a slide."""
    held = [os.path.realpath(descriptor) for descriptor in Path("/proc/self/fd").iterdir()]
    return sum(Path(file).is_relative_to(folder) for file in held)


@pytest.mark.parametrize("where", ["per frame", "shared"])
def test_one_instance_a_frame(tmp_path, where):
    """More instances than files are held open at once."""
    small = (16, 16)
    frames = cut(IMAGE, small)
    columns = -(-WIDTH // small[1])
    files = []
    for i, frame in enumerate(frames):
        dataset = header((WIDTH, HEIGHT), small, 1, name=f"frame-{i}")
        dataset.InstanceNumber = len(frames) - i
        place(dataset, [(1 + i % columns * small[1], 1 + i // columns * small[0])])
        if where == "shared":
            group = dataset.PerFrameFunctionalGroupsSequence[0]
            dataset.SharedFunctionalGroupsSequence[0].PlanePositionSlideSequence = group.PlanePositionSlideSequence
            del dataset.PerFrameFunctionalGroupsSequence
        files.append(write(tmp_path / f"{i}.dcm", dataset, [frame.tobytes()]))
    with Slide.open(files) as slide:
        assert np.array_equal(slide.read_level(0), IMAGE)
        assert open_files(tmp_path) < 40 < len(files)
        assert len(slide.levels[0].sop_instance_uids) == len(frames)
    assert open_files(tmp_path) == 0
    holes = [file for i, file in enumerate(files) if i != 4]
    assert (pixels(*holes)[:16, 4 * 16 : 5 * 16] == 255).all()
    assert counted_missing(*holes) == 0


def test_levels_of_one_frame_and_of_other_frame_sizes(tmp_path):
    half = np.ascontiguousarray(IMAGE[::2, ::2])
    files = [
        full(tmp_path / "a.dcm", IMAGE, FRAME),
        full(
            tmp_path / "b.dcm", half, half.shape[:2],
            lambda i: bytes(imagecodecs.jpeg2k_encode(i, level=0, codecformat="j2k")),
            "1.2.840.10008.1.2.4.90", "YBR_RCT",
        ),
    ]  # fmt: skip
    dataset = pydicom.dcmread(files[1])
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [0.001, 0.001]
    dataset.save_as(files[1])
    with Slide.open(files) as slide:
        assert [(level.frame_width_px, level.frame_height_px) for level in slide.levels] == [(48, 64), (75, 65)]
        assert np.array_equal(slide.read_level(0), IMAGE)
        assert np.array_equal(slide.read_level(1), half)


@pytest.mark.parametrize("table", ["basic", "empty", "extended"])
def test_offset_tables_with_frames_of_odd_length(tmp_path, table):
    frames = [simplejpeg.encode_jpeg(frame) for frame in cut(IMAGE, FRAME)]
    frames = [frame + b"\0" * (i % 3) for i, frame in enumerate(frames)]
    assert {len(frame) % 2 for frame in frames} == {0, 1}
    dataset = image(len(frames))
    dataset.PhotometricInterpretation = "YBR_FULL_422"
    ours = pixels(write(tmp_path / "a.dcm", dataset, frames, JPEG, table=table))
    assert np.abs(ours.astype(int) - IMAGE).mean() < 6


@pytest.mark.parametrize("table", ["basic", "empty"])
def test_frames_in_fragments(tmp_path, table):
    frames = [simplejpeg.encode_jpeg(frame) for frame in cut(IMAGE, FRAME)]
    dataset = image(len(frames))
    dataset.PhotometricInterpretation = "YBR_FULL_422"
    whole = pixels(write(tmp_path / "a.dcm", dataset, frames, JPEG))
    parts = write(tmp_path / "b.dcm", dataset, frames, JPEG, table=table, fragments=3)
    assert np.array_equal(pixels(parts), whole)


def test_fragments_that_no_table_tells_apart(tmp_path):
    frames = [frame.tobytes() for frame in cut(IMAGE, FRAME)]
    dataset = image(len(frames))
    file = write(tmp_path / "a.dcm", dataset, frames, "1.2.840.10008.1.2.5", table="empty", fragments=2)
    with pytest.raises(InvalidSlide, match="offset table"):
        Slide.open([file])


def test_a_basic_offset_table_that_overflowed(tmp_path):
    """4 GiB of pixel data, most of it a hole of the file system: the third offset has wrapped around."""
    frames = [simplejpeg.encode_jpeg(frame) for frame in cut(IMAGE, (65, 150))]
    dataset = header((WIDTH, HEIGHT), (65, 150), 2)
    dataset.PhotometricInterpretation = "YBR_FULL_422"
    file = write(tmp_path / "a.dcm", dataset, frames, JPEG)
    whole = pixels(file)
    data = file.read_bytes()
    start = data.index(b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff") + 12
    large = 2**32 - 64
    offsets = (0, (8 + large) % 2**32)
    with file.open("wb") as out:
        out.write(data[:start] + b"\xfe\xff\x00\xe0" + struct.pack("<I2I", 8, *offsets))
        out.write(b"\xfe\xff\x00\xe0" + struct.pack("<I", large) + frames[0])
        out.seek(large - len(frames[0]), os.SEEK_CUR)
        second = frames[1] + b"\0" * (len(frames[1]) % 2)
        out.write(b"\xfe\xff\x00\xe0" + struct.pack("<I", len(second)) + second + b"\xfe\xff\xdd\xe0\0\0\0\0")
    with Slide.open([file]) as slide:
        frame = slide.image(0).read_frames([1])[0]
        assert bytes(frame) == second
        assert np.array_equal(slide.image(0).decoder(frame), whole[65:])


PLANES = [picture(WIDTH, HEIGHT, seed=20 + plane) for plane in range(3)]


def test_focal_planes_in_one_tiled_full_image(tmp_path):
    dataset = image(3 * len(FRAMES))
    dataset.TotalPixelMatrixFocalPlanes = 3
    file = write(tmp_path / "a.dcm", dataset, [f.tobytes() for plane in PLANES for f in cut(plane, FRAME)])
    assert np.array_equal(pixels(file), PLANES[1])
    assert remarks(file) == ["focal-plane-chosen"]


def test_focal_planes_in_one_sparse_image(tmp_path):
    """The scanner follows the tissue: the heights of a plane differ from place to place."""
    dataset = image(3 * len(FRAMES))
    frames = [f.tobytes() for plane in (2, 0, 1) for f in cut(PLANES[plane], FRAME)]
    place(dataset, PLACES * 3, z_um=[4.0 * plane + i / 2 for plane in (2, 0, 1) for i in range(len(PLACES))])
    file = write(tmp_path / "a.dcm", dataset, frames)
    assert np.array_equal(pixels(file), PLANES[1])
    assert remarks(file) == ["focal-plane-chosen"]


@pytest.mark.parametrize("says", ["z in the origin", "z in the shared groups", "nothing"])
def test_focal_planes_each_in_its_own_image(tmp_path, says):
    files = []
    for number, plane in enumerate((2, 0, 1)):
        dataset = image(len(FRAMES), f"plane-{plane}")
        dataset.InstanceNumber = number + 1
        item = Dataset()
        item.ZOffsetInSlideCoordinateSystem = str(plane * 1.5)
        if says == "z in the origin":
            dataset.TotalPixelMatrixOriginSequence = [item]
        elif says == "z in the shared groups":
            dataset.SharedFunctionalGroupsSequence[0].PlanePositionSlideSequence = [item]
        files.append(write(tmp_path / f"{plane}.dcm", dataset, [f.tobytes() for f in cut(PLANES[plane], FRAME)]))
    # Where nothing is said of heights, the first acquired is read.
    assert np.array_equal(pixels(*reversed(files)), PLANES[2 if says == "nothing" else 1])
    assert remarks(*files) == ["focal-plane-chosen"]


def test_heights_of_one_plane_that_vary_are_no_focal_planes(tmp_path):
    dataset = image(len(FRAMES))
    place(dataset, PLACES, z_um=[i / 3 for i in range(len(PLACES))])
    file = write(tmp_path / "a.dcm", dataset, FRAMES)
    assert np.array_equal(pixels(file), IMAGE)
    assert remarks(file) == []


OTHER = PLANES[0]


@pytest.mark.parametrize("layout", ["full", "sparse", "instances"])
@pytest.mark.parametrize("order", [("A", "B"), ("B", "A")])
def test_the_brightfield_path_is_read(tmp_path, layout, order):
    paths = {"A": optical_path("A", BRIGHTFIELD), "B": optical_path("B", EPIFLUORESCENCE)}
    pictures = {"A": IMAGE, "B": OTHER}
    frames = [f.tobytes() for name in order for f in cut(pictures[name], FRAME)]
    dataset = image(len(frames))
    dataset.OpticalPathSequence = [paths[name] for name in order]
    files = []
    if layout == "instances":
        for number, name in enumerate(order):
            single = image(len(FRAMES), name)
            single.OpticalPathSequence = [paths[name]]
            single.InstanceNumber = number
            files.append(write(tmp_path / f"{name}.dcm", single, [f.tobytes() for f in cut(pictures[name], FRAME)]))
    else:
        if layout == "sparse":
            place(dataset, PLACES * 2, paths=[name for name in order for _ in PLACES])
        files.append(write(tmp_path / "a.dcm", dataset, frames))
    assert np.array_equal(pixels(*files), IMAGE)
    assert remarks(*files) == ["optical-path-chosen"]


@pytest.mark.parametrize("lights", [(None, None), (BRIGHTFIELD, BRIGHTFIELD), (EPIFLUORESCENCE, EPIFLUORESCENCE)])
def test_optical_paths_without_a_way_to_choose(tmp_path, lights):
    dataset = image(2 * len(FRAMES))
    dataset.OpticalPathSequence = [optical_path(str(i), light) for i, light in enumerate(lights)]
    with pytest.raises(InvalidSlide, match="optical paths"):
        Slide.open([write(tmp_path / "a.dcm", dataset, FRAMES * 2)])


@pytest.mark.parametrize("named", [True, False])
def test_frames_of_one_path_under_a_header_that_lists_two(tmp_path, named):
    dataset = image(len(FRAMES))
    dataset.OpticalPathSequence = [optical_path("A", EPIFLUORESCENCE), optical_path("B", BRIGHTFIELD)]
    if named:
        item = Dataset()
        item.OpticalPathIdentifier = "B"
        dataset.SharedFunctionalGroupsSequence[0].OpticalPathIdentificationSequence = [item]
    file = write(tmp_path / "a.dcm", dataset, FRAMES)
    if named:
        assert np.array_equal(pixels(file), IMAGE)
        return
    with pytest.raises(InvalidSlide, match="incomplete"):
        Slide.open([file])


def test_optical_paths_whose_names_differ_from_level_to_level(tmp_path):
    half = np.ascontiguousarray(IMAGE[::2, ::2])
    files = [
        full(tmp_path / "a.dcm", IMAGE, FRAME, OpticalPathSequence=[optical_path("A")]),
        full(tmp_path / "b.dcm", half, FRAME, OpticalPathSequence=[optical_path("B")]),
    ]
    dataset = pydicom.dcmread(files[1])
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [0.001, 0.001]
    dataset.save_as(files[1])
    with Slide.open(files) as slide:
        assert np.array_equal(slide.read_level(1), half)
    assert remarks(*files) == []


def test_frames_of_which_nobody_says_where_they_lie(tmp_path):
    with pytest.raises(InvalidSlide, match="where they lie"):
        Slide.open([full(tmp_path / "a.dcm", IMAGE, FRAME, DimensionOrganizationType="TILED_SPARSE")])


def test_grey_fluorescence_images_beside_the_brightfield_one(tmp_path):
    grey = image(len(FRAMES), "grey")
    grey.SamplesPerPixel, grey.PhotometricInterpretation = 1, "MONOCHROME2"
    grey.OpticalPathSequence = [optical_path("DAPI", EPIFLUORESCENCE)]
    colour = image(len(FRAMES), "colour")
    colour.OpticalPathSequence = [optical_path("1", BRIGHTFIELD)]
    files = [
        write(tmp_path / "grey.dcm", grey, [f[..., 0].tobytes() for f in cut(OTHER, FRAME)]),
        write(tmp_path / "colour.dcm", colour, FRAMES),
    ]
    assert np.array_equal(pixels(*files), IMAGE)
    with pytest.raises(InvalidSlide, match="8-bit colour"):
        Slide.open(files[:1])


def test_several_series_of_one_container(tmp_path):
    files = [
        full(tmp_path / "a.dcm", IMAGE, FRAME),
        full(tmp_path / "b.dcm", OTHER, FRAME, SeriesInstanceUID="1.2.3.4"),
    ]
    with pytest.raises(InvalidSlide, match="more than one slide"):
        Slide.open(files)
    for series, expected in ((pydicom.dcmread(files[0]).SeriesInstanceUID, IMAGE), ("1.2.3.4", OTHER)):
        with Slide.open(files, series=series) as slide:
            assert np.array_equal(slide.read_level(0), expected)


def test_images_that_are_not_read_need_no_good_header(tmp_path):
    """A THUMBNAIL without spacing, a label of odd length."""
    small = np.ascontiguousarray(IMAGE[:33, :33])
    thumbnail = full(tmp_path / "t.dcm", small, (33, 33), ImageType=["DERIVED", "PRIMARY", "THUMBNAIL", "RESAMPLED"])
    dataset = pydicom.dcmread(thumbnail)
    del dataset.SharedFunctionalGroupsSequence
    dataset.save_as(thumbnail)
    label = full(tmp_path / "l.dcm", small, (33, 33), ImageType=["ORIGINAL", "PRIMARY", "LABEL", "NONE"])
    label.write_bytes(label.read_bytes()[:-1])
    assert np.array_equal(pixels(full(tmp_path / "a.dcm", IMAGE, FRAME), thumbnail, label), IMAGE)


@pytest.mark.parametrize("keyword", ["ImageType", "SharedFunctionalGroupsSequence"])
def test_a_volume_without_what_makes_it_one(tmp_path, keyword):
    file = full(tmp_path / "a.dcm", IMAGE, FRAME)
    dataset = pydicom.dcmread(file)
    del dataset[keyword]
    dataset.save_as(file)
    with pytest.raises((NoVolumeImage, MissingPixelSpacing)):
        Slide.open([file])


def test_an_empty_origin(tmp_path):
    assert np.array_equal(pixels(full(tmp_path / "a.dcm", IMAGE, FRAME, TotalPixelMatrixOriginSequence=[])), IMAGE)


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="the shared fixtures are not there")
@pytest.mark.parametrize(
    "name",
    ["ezwsi_multiframe_camelyon", "highdicom_sm_image", "highdicom_sm_image_jpegls", "highdicom_sm_image_jpegls_nobot",
     "w2d_jpeg", "w2d_jpeg2000", "w2d_raw"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:The value length .66. exceeds")
def test_files_of_other_writers(name):
    file = FIXTURES / f"{name}.dcm"
    dataset = pydicom.dcmread(file)
    frames = pydicom.pixels.pixel_array(file, raw=False).reshape(-1, dataset.Rows, dataset.Columns, 3)
    with Slide.open([file, FIXTURES / "highdicom_sm_annotations.dcm"]) as slide:
        ours, level = slide.read_level(0), slide.levels[0]
    columns = -(-level.width_px // level.frame_width_px)
    for i, frame in enumerate(frames):
        y, x = i // columns * dataset.Rows, i % columns * dataset.Columns
        part = ours[y : y + dataset.Rows, x : x + dataset.Columns].astype(int)
        assert np.abs(part - frame[: part.shape[0], : part.shape[1]]).max() <= (
            3 if "jpeg" in name or "ez" in name else 0
        )


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="the shared fixtures are not there")
def test_a_grey_slide_of_another_writer_is_refused():
    with pytest.raises(InvalidSlide, match="8-bit colour"):
        Slide.open([FIXTURES / "highdicom_sm_image_grayscale.dcm"])
