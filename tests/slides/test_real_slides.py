"""The slides of the data folder: real scans, and files that other libraries wrote. Skipped where it is absent."""

import os
from pathlib import Path

import numpy as np
import pytest

from gateway.operations.errors import InvalidSlide, NotDicom, NoVolumeImage
from gateway.slides import FrameGauge, Slide, find_tissue, plan_tiles, stream_tiles

DATA = Path(os.environ.get("PATHSERVE_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data") / "slides"

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="PATHSERVE_DATA holds no slides")


@pytest.mark.parametrize(
    ("name", "levels", "tissue_mm2", "tiles"),
    [("metaplasia_he", 7, 21.5, 1834), ("csf_breast_pap", 7, 1.87, 250), ("cmu_small_he", 5, 0.54, 53)],
)
def test_slides(name, levels, tissue_mm2, tiles):
    """Areas and counts of the overlays that were looked at; they may drift a little, not jump."""
    with Slide.open(sorted((DATA / name).glob("*.dcm"))) as slide:
        assert len(slide.levels) == levels
        assert slide.header.stains
        tissue = find_tissue(slide)
        assert tissue.area_mm2 == pytest.approx(tissue_mm2, rel=0.1)
        plan = plan_tiles(slide, tissue, mpp=0.5, tile_px=224)
        assert len(plan) == pytest.approx(tiles, rel=0.1)
        gauge = FrameGauge(limit=64)
        means = [
            batch.images_BHWC.mean(axis=(0, 1, 2))
            for batch in stream_tiles(slide, plan, batch=64, max_frames=64, gauge=gauge)
        ]
        assert gauge.decoded == plan.frames
    red, green, blue = np.mean(means, axis=0)
    # Hematoxylin with eosin or orange G absorbs green most; a wrong colour space turns this round.
    assert green < red < 245
    assert green < blue < 245


@pytest.mark.parametrize(
    ("name", "width_px", "mpp"),
    [
        ("ezwsi_multiframe_camelyon.dcm", 1152, 28.97),
        ("highdicom_sm_image.dcm", 50, 0.499),
        ("highdicom_sm_image_jpegls.dcm", 50, 0.499),
        ("highdicom_sm_image_jpegls_nobot.dcm", 50, 0.499),
        ("w2d_jpeg.dcm", 957, 16.78),
        ("w2d_jpeg2000.dcm", 957, 16.78),
        ("w2d_raw.dcm", 957, 16.78),
    ],
)
@pytest.mark.filterwarnings("ignore:The value length")
@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_files_of_other_writers(name, width_px, mpp):
    with Slide.open([DATA / "fixtures" / name]) as slide:
        assert slide.levels[0].width_px == width_px
        assert slide.levels[0].mpp == pytest.approx(mpp, rel=0.001)
        assert slide.read_level(0).std() > 1


@pytest.mark.filterwarnings("ignore:The value length")
@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_one_picture_in_three_encodings():
    pictures = []
    for name in ("w2d_raw.dcm", "w2d_jpeg2000.dcm", "w2d_jpeg.dcm"):
        with Slide.open([DATA / "fixtures" / name]) as slide:
            pictures.append(slide.read_level(0).astype(int))
    raw, jpeg2000, jpeg = pictures
    assert np.abs(raw - jpeg2000).mean() < 1
    assert np.abs(raw - jpeg).mean() < 5


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("CMU-1-Small-Region.svs", NotDicom),
        ("highdicom_seg_image_sm_control.dcm", NoVolumeImage),
        ("highdicom_sm_annotations.dcm", NoVolumeImage),
        ("highdicom_sm_image_grayscale.dcm", InvalidSlide),
    ],
)
def test_what_is_no_brightfield_slide(name, error):
    with pytest.raises(error):
        Slide.open([DATA / "fixtures" / name])
