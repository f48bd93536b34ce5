"""Opening slides: what is read from the header, which levels there are, and what each bad input is answered with."""

import io
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image as PillowImage
from pydicom.encaps import encapsulate, generate_frames
from wsidicom import WsiDicom

from gateway.domain.codes import Code
from gateway.operations.errors import (
    CorruptFrame,
    InvalidSlide,
    MissingPixelSpacing,
    NotDicom,
    NoVolumeImage,
    TruncatedFile,
    UnsupportedTransferSyntax,
)
from gateway.slides import Slide


def changed(path: Path, out: Path, **values) -> Path:
    """A copy of a DICOM file with some header values changed."""
    dataset = pydicom.dcmread(path)
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    target = out / path.name
    dataset.save_as(target)
    return target


def test_header_and_levels(slide, phantom):
    header = slide.header
    assert (header.study_uid, header.series_uid) == (phantom.study_uid, phantom.series_uid)
    assert (header.patient_id, header.accession, header.container_id) == ("PHANTOM-1", "PHANTOM-ACC-1", "PHANTOM-A-1")
    assert [stain.code for stain in header.stains] == ["12710003", "36879007"]
    assert header.icc_profile
    assert header.site is None
    assert [(level.width_px, level.height_px) for level in slide.levels] == [
        (2100, 1500),
        (1050, 750),
        (525, 375),
        (263, 188),
        (132, 94),
    ]
    assert [level.mpp for level in slide.levels] == pytest.approx([0.5, 1.0, 2.0, 4.0, 8.0])
    assert [level.index for level in slide.levels] == [0, 1, 2, 3, 4]


def test_organ_is_read(make_phantom):
    colon = Code("71854001", "SCT", "Colon")
    with Slide.open(make_phantom(organ=colon).files) as slide:
        assert slide.header.site == colon


def test_source_dataset_is_the_levels_header_without_pixels(slide):
    dataset = slide.source_dataset(1)
    assert dataset.SOPInstanceUID == slide.levels[1].sop_instance_uids[0]
    assert "PixelData" not in dataset


def test_a_header_without_its_modality_is_of_the_one_that_slides_have(phantom, tmp_path):
    for file in phantom.files:
        dataset = pydicom.dcmread(file)
        del dataset.Modality
        dataset.save_as(tmp_path / file.name)
    with Slide.open(sorted(tmp_path.iterdir())) as slide:
        assert {slide.source_dataset(level.index).Modality for level in slide.levels} == {"SM"}


def test_a_header_of_more_items_than_any_slide_has(phantom, tmp_path):
    dataset = pydicom.dcmread(phantom.files[0])
    dataset.SpecimenDescriptionSequence[0].SpecimenPreparationSequence = [pydicom.Dataset()] * 101_000
    dataset.save_as(tmp_path / "level.dcm")
    with pytest.raises(InvalidSlide):
        Slide.open([tmp_path / "level.dcm"])


def test_levels_are_told_by_pixel_spacing_not_by_image_type(phantom, tmp_path):
    volumes = [path for path in phantom.files if path.name.startswith("level")]
    swapped = [changed(path, tmp_path, ImageType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]) for path in volumes]
    with Slide.open(list(reversed(swapped))) as slide:
        assert [level.width_px for level in slide.levels] == [2100, 1050, 525, 263, 132]


def test_single_level_is_a_slide(phantom):
    with Slide.open([phantom.files[0]]) as slide:
        assert len(slide.levels) == 1
        assert slide.thumbnail(300).shape == (214, 300, 3)


def test_other_series_and_other_objects_may_lie_beside(phantom, make_phantom):
    other = make_phantom(seed=9)
    report = Path(pydicom.data.get_testdata_file("reportsi.dcm"))
    files = [*phantom.files, *other.files, report]
    with Slide.open(files, series=phantom.series_uid) as slide:
        assert slide.header.series_uid == phantom.series_uid
    with pytest.raises(InvalidSlide, match="more than one slide"):
        Slide.open(files)


@pytest.mark.parametrize("encoding", ["jpeg", "jpeg2000", "jpeg-ls", "rle", "uncompressed"])
def test_pixels_of_every_encoding_equal_wsidicoms(make_phantom, encoding):
    truth = make_phantom(150, 140, encoding=encoding, levels=1, frame_px=64)
    with Slide.open(truth.files) as slide, WsiDicom.open(truth.files[0]) as reference:
        ours = slide.read_level(0)
        theirs = np.asarray(reference.read_region((0, 0), 0, (150, 140), as_array=True))[..., :3]
    # JPEG decoders may differ by a rounding step of the colour conversion.
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= (1 if encoding == "jpeg" else 0)


def test_colours_of_the_real_slide(real_files):
    """RGB streams with an Adobe marker on the finest level; on the others YCbCr streams (JFIF) under a header that says
    RGB. The marker in the stream is right: believing the header turns white glass to red (244, 128, 128)."""
    with Slide.open(real_files) as slide:
        for level in slide.levels:
            ours = slide.read_level(level.index)
            path = next(p for p in real_files if level.sop_instance_uids[0] in p.name)
            dataset = pydicom.dcmread(path)
            frames = generate_frames(dataset.PixelData, number_of_frames=int(dataset.NumberOfFrames))
            for i, data in enumerate(frames):
                y, x = (position * 240 for position in divmod(i, -(-level.width_px // 240)))
                theirs = np.asarray(PillowImage.open(io.BytesIO(data)).convert("RGB"))
                part = ours[y : y + 240, x : x + 240]
                difference = np.abs(part.astype(int) - theirs[: part.shape[0], : part.shape[1]].astype(int))
                assert difference.max() <= 1
            glass = ours[: level.height_px // 30, level.width_px // 2 :].reshape(-1, 3).mean(axis=0)
            assert (glass > 230).all()
            assert np.ptp(glass) < 5


def test_thumbnail_shows_tissue_where_the_truth_has_it(slide, phantom):
    thumbnail = slide.thumbnail(525)
    assert thumbnail.shape == (375, 525, 3)
    mask = phantom.mask(2.0)
    assert thumbnail[~mask].mean() > 235
    assert thumbnail[mask].mean() < 215


def test_thumbnail_from_one_level_equals_that_from_the_pyramid(slide, phantom):
    with Slide.open([phantom.files[0]]) as single:
        difference = slide.thumbnail(500).astype(int) - single.thumbnail(500).astype(int)
    # The palettes of the levels differ in grain, not in place or colour.
    assert np.abs(difference.mean(axis=(0, 1))).max() < 4


@pytest.mark.parametrize("options", [{"parts": 3}, {"sparse": True}, {"sparse": True, "parts": 2}])
@pytest.mark.parametrize("offset_table", ["basic", "extended", "empty"])
def test_concatenations_sparse_tiling_and_offset_tables(make_phantom, options, offset_table):
    plain = make_phantom(seed=5)
    other = make_phantom(seed=5, offset_table=offset_table, **options)
    with Slide.open(plain.files) as a, Slide.open(other.files) as b:
        for index in (0, 1):
            full, tiled = a.read_level(index), b.read_level(index)
            absent = b.image(index).frame_at_RC < 0
            assert absent.any() == ("sparse" in options)
            missing = absent.repeat(256, axis=0).repeat(256, axis=1)[: full.shape[0], : full.shape[1]]
            assert np.array_equal(full[~missing], tiled[~missing])
            assert (tiled[missing] == 255).all()
            assert full[missing].min(initial=255) > 235


def test_missing_part_of_a_concatenation(make_phantom):
    truth = make_phantom(parts=3)
    files = [path for path in truth.files if path.name != "level-0-1.dcm"]
    with pytest.raises(InvalidSlide, match="incomplete"):
        Slide.open(files)


def test_fragmented_frames_are_joined(phantom, tmp_path):
    dataset = pydicom.dcmread(phantom.files[1])
    frames = list(generate_frames(dataset.PixelData, number_of_frames=int(dataset.NumberOfFrames)))
    dataset.PixelData = encapsulate(frames, fragments_per_frame=3, has_bot=True)
    dataset.save_as(tmp_path / "fragments.dcm")
    with Slide.open([tmp_path / "fragments.dcm"]) as fragmented, Slide.open([phantom.files[1]]) as whole:
        assert np.array_equal(fragmented.read_level(0), whole.read_level(0))


def test_not_dicom(tmp_path):
    (tmp_path / "notes.txt").write_text("not a slide")
    with pytest.raises(NotDicom, match=r"notes\.txt"):
        Slide.open([tmp_path / "notes.txt"])


def test_no_files():
    with pytest.raises(NoVolumeImage):
        Slide.open([])


@pytest.mark.parametrize("share", [0.001, 0.003, 0.5, 0.999])
def test_truncated_file(make_phantom, tmp_path, share):
    source = make_phantom(levels=1).files[0]
    data = source.read_bytes()
    (tmp_path / "cut.dcm").write_bytes(data[: max(200, int(len(data) * share))])
    with pytest.raises(TruncatedFile, match=r"cut\.dcm"):
        Slide.open([tmp_path / "cut.dcm"])


@pytest.mark.parametrize(
    "options", [{"offset_table": "empty"}, {"offset_table": "extended"}, {"encoding": "uncompressed"}]
)
def test_truncated_pixel_data_of_every_layout(make_phantom, tmp_path, options):
    data = make_phantom(levels=1, **options).files[0].read_bytes()
    (tmp_path / "cut.dcm").write_bytes(data[:-2000])
    with pytest.raises(TruncatedFile):
        Slide.open([tmp_path / "cut.dcm"])


def test_file_cut_between_header_and_pixels(make_phantom, tmp_path):
    dataset = pydicom.dcmread(make_phantom(levels=1).files[0])
    del dataset.PixelData
    dataset.save_as(tmp_path / "cut.dcm")
    with pytest.raises(TruncatedFile):
        Slide.open([tmp_path / "cut.dcm"])


def test_label_only(make_phantom):
    with pytest.raises(NoVolumeImage, match="LABEL"):
        Slide.open(make_phantom(label_only=True).files)


def test_no_slide_among_dicom():
    with pytest.raises(NoVolumeImage):
        Slide.open([Path(pydicom.data.get_testdata_file("reportsi.dcm"))])


def test_missing_pixel_spacing(make_phantom):
    with pytest.raises(MissingPixelSpacing):
        Slide.open(make_phantom(spacing=False).files)


@pytest.mark.parametrize("spacing_mm", ["0", "-0.0005", "0.5", "5", "0.000001"])
def test_absurd_pixel_spacing(make_phantom, tmp_path, spacing_mm):
    dataset = pydicom.dcmread(make_phantom(levels=1).files[0])
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [spacing_mm, spacing_mm]
    del dataset.ImagedVolumeWidth, dataset.ImagedVolumeHeight
    dataset.save_as(tmp_path / "absurd.dcm")
    if spacing_mm == "0.5":
        with Slide.open([tmp_path / "absurd.dcm"]) as slide:
            assert slide.levels[0].mpp == 500.0
        return
    with pytest.raises(MissingPixelSpacing, match="spacing"):
        Slide.open([tmp_path / "absurd.dcm"])


def test_pixels_that_are_not_square(make_phantom, tmp_path):
    dataset = pydicom.dcmread(make_phantom(levels=1).files[0])
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = ["0.0005", "0.00052"]
    dataset.save_as(tmp_path / "oblong.dcm")
    with pytest.raises(InvalidSlide, match="not square"):
        Slide.open([tmp_path / "oblong.dcm"])


def test_unsupported_transfer_syntax(make_phantom, tmp_path):
    data = make_phantom(levels=1).files[0].read_bytes()
    other = data.replace(b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1.2.4.58")
    assert other != data
    (tmp_path / "retired.dcm").write_bytes(other)
    with pytest.raises(UnsupportedTransferSyntax, match=r"1\.2\.840\.10008\.1\.2\.4\.58"):
        Slide.open([tmp_path / "retired.dcm"])


@pytest.mark.parametrize("keyword", ["TotalPixelMatrixColumns", "Rows", "SamplesPerPixel", "PhotometricInterpretation"])
def test_header_without_what_it_needs(make_phantom, tmp_path, keyword):
    dataset = pydicom.dcmread(make_phantom(levels=1).files[0])
    delattr(dataset, keyword)
    dataset.save_as(tmp_path / "bad.dcm")
    with pytest.raises(InvalidSlide, match=keyword):
        Slide.open([tmp_path / "bad.dcm"])


@pytest.mark.parametrize(
    "values",
    [
        {"TotalPixelMatrixColumns": 5000},
        {"NumberOfFrames": 999},
        {"NumberOfFrames": 2},
        {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2"},
        {"BitsAllocated": 16, "BitsStored": 16, "HighBit": 15},
        {"PhotometricInterpretation": "PALETTE COLOR"},
        {"Rows": 10},
    ],
)
def test_inconsistent_header(make_phantom, tmp_path, values):
    path = changed(make_phantom(levels=1).files[0], tmp_path, **values)
    with pytest.raises((InvalidSlide, TruncatedFile)):
        Slide.open([path])


@pytest.mark.parametrize(
    ("element", "damaged"),
    [
        (b"\x28\x00\x10\x00US", b"\x28\x00\x10\x00\x55\x01"),
        (b"\x10\x00\x20\x00LO", b"\x10\x00\x20\x00\x4c\x01"),
        (b"\x08\x00\x20\x00DA", b"\x08\x00\x20\x00\x44\x01"),
        (b"\x20\x00\x13\x00IS\x02\x001 ", b"\x20\x00\x13\x00IS\x02\x00\x11 "),
    ],
)
def test_damaged_values_in_the_header(make_phantom, tmp_path, element, damaged):
    """They are decoded only when they are asked for, and pydicom raises errors of many kinds."""
    data = make_phantom(levels=1).files[0].read_bytes()
    assert data.count(element) == 1
    (tmp_path / "damaged.dcm").write_bytes(data.replace(element, damaged))
    with pytest.raises(InvalidSlide, match="header"):
        Slide.open([tmp_path / "damaged.dcm"])


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
@pytest.mark.parametrize("uid", ["../../../tmp/x", "..", "1.2\\1.3", "1", "x"])
def test_identifiers_that_are_no_uids(make_phantom, tmp_path, keyword, uid):
    """They name folders and files."""
    with pytest.raises(InvalidSlide, match=r"header|is not a UID"):
        Slide.open([changed(make_phantom(levels=1).files[0], tmp_path, **{keyword: uid})])


@pytest.mark.parametrize("keyword", ["PatientID", "IssuerOfPatientID", "AccessionNumber", "ContainerIdentifier"])
def test_images_that_contradict_each_other_about_whose_they_are(phantom, tmp_path, keyword):
    """The header of one image speaks for all."""
    others = [file for file in phantom.files if file.name != "level-2.dcm"]
    [last] = [file for file in phantom.files if file.name == "level-2.dcm"]
    first = changed(others[0], tmp_path, **{keyword: "THIS"})
    with pytest.raises(InvalidSlide, match=f"differ in {keyword}"):
        Slide.open([first, *others[1:], changed(last, tmp_path, **{keyword: "THAT"})])
    with pytest.raises(InvalidSlide, match=f"differ in {keyword}"):
        Slide.open([*phantom.files, changed(last, tmp_path, **{keyword: "THAT"}), first])


def test_a_frame_left_of_the_slide(make_phantom, tmp_path):
    dataset = pydicom.dcmread(make_phantom(levels=1, sparse=True).files[0])
    position = dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSlideSequence[0]
    position.ColumnPositionInTotalImagePixelMatrix = 1 - 256
    dataset.save_as(tmp_path / "left.dcm")
    with pytest.raises(InvalidSlide, match="outside"):
        Slide.open([tmp_path / "left.dcm"])


def test_a_matrix_that_no_memory_holds(make_phantom, tmp_path):
    path = make_phantom(levels=1, sparse=True).files[0]
    size = {"TotalPixelMatrixColumns": 2**31, "TotalPixelMatrixRows": 2**31}
    with pytest.raises(InvalidSlide, match="cannot be a slide"):
        Slide.open([changed(path, tmp_path, **size)])


def test_levels_that_do_not_cover_the_same_area(phantom, make_phantom, tmp_path):
    same = {"StudyInstanceUID": phantom.study_uid, "SeriesInstanceUID": phantom.series_uid}
    other = changed(make_phantom(2500, 1500, levels=1).files[0], tmp_path, **same)
    with pytest.raises(InvalidSlide, match="same area"):
        Slide.open([phantom.files[1], other])


def test_damaged_frame(make_phantom, tmp_path):
    data = bytearray(make_phantom(levels=1).files[0].read_bytes())
    start = data.index(b"\xff\xd8\xff", len(data) // 2)
    data[start : start + 400] = b"\0" * 400
    (tmp_path / "damaged.dcm").write_bytes(data)
    with Slide.open([tmp_path / "damaged.dcm"]) as slide, pytest.raises(CorruptFrame):
        slide.read_level(0)


def test_details_hold_no_path(tmp_path, make_phantom):
    shutil.copy(make_phantom(levels=1).files[0], tmp_path / "whole.dcm")
    data = (tmp_path / "whole.dcm").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(data[: len(data) // 2])
    with pytest.raises(TruncatedFile) as caught:
        Slide.open([tmp_path / "cut.dcm"])
    assert str(tmp_path) not in caught.value.detail


def test_large_level_is_not_read_at_once(slide, monkeypatch):
    monkeypatch.setattr("gateway.slides.slide._MAX_LEVEL_PX", 1000)
    with pytest.raises(InvalidSlide, match="too large"):
        slide.read_level(0)
