"""The phantom: clean DICOM, the same bytes every time, true to its own truth."""

import json
import shutil
import subprocess

import numpy as np
import pydicom
import pytest

from gateway.slides import Slide
from gateway.slides.phantom import Identity, write_phantom

# dciodvfy (2022) counts the frames of a full tiling, whatever the organization type and the concatenation say.
FALSE_POSITIVE = "Error - NumberOfFrames does not match expected value for tiled total pixel matrix"


def errors_of(path, options) -> list[str]:
    run = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    errors = [line for line in run.stderr.splitlines() if line.startswith("Error")]
    if "sparse" in options or "parts" in options:
        errors = [line for line in errors if not line.startswith(FALSE_POSITIVE)]
    return errors


@pytest.mark.validators
@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian package dicom3tools) is not installed")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kind": "cytology"},
        {"encoding": "jpeg2000", "levels": 1},
        {"encoding": "uncompressed", "levels": 1},
        {"sparse": True, "levels": 1},
        {"parts": 2, "levels": 1},
        {"offset_table": "extended", "levels": 1},
        {"label_only": True},
    ],
)
def test_dciodvfy_finds_no_error(make_phantom, options):
    for path in make_phantom(**options).files:
        assert errors_of(path, options) == []


def test_same_arguments_same_bytes(tmp_path):
    a = write_phantom(tmp_path / "a", width_px=700, height_px=600, seed=1)
    b = write_phantom(tmp_path / "b", width_px=700, height_px=600, seed=1)
    c = write_phantom(tmp_path / "c", width_px=700, height_px=600, seed=2)
    for path in a.files:
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
        assert path.read_bytes() != (tmp_path / "c" / path.name).read_bytes()
    assert a.series_uid == b.series_uid != c.series_uid


def test_truth(make_phantom):
    truth = make_phantom(3000, 2000, coverage=0.4, seed=6)
    assert truth.tissue_area_mm2 == pytest.approx(0.4 * 1.5 * 1.0)
    mask = truth.mask(1.0)
    assert mask.shape == (1000, 1500)
    assert mask.sum() / 1e6 == pytest.approx(truth.tissue_area_mm2, rel=0.01)
    piece = truth.tissue[0]
    assert truth.label_at(piece.x_px, piece.y_px) == piece.label
    assert truth.label_at(piece.x_px + piece.radius_x_px * 1.01, piece.y_px) != piece.label
    for piece in truth.tissue:
        assert piece.radius_x_px <= piece.x_px <= 3000 - piece.radius_x_px
        assert piece.radius_y_px <= piece.y_px <= 2000 - piece.radius_y_px
    written = json.loads((truth.files[0].parent / "phantom.json").read_text())
    assert written["series_uid"] == truth.series_uid
    assert len(written["tissue"]) == 6


def test_pixels_agree_with_the_truth_on_every_level(make_phantom):
    truth = make_phantom(2600, 1900, seed=6)
    with Slide.open(truth.files) as slide:
        for level in slide.levels[:4]:
            picture = slide.read_level(level.index)
            mask = truth.mask(level.mpp)[: level.height_px, : level.width_px]
            chroma = np.ptp(picture[: mask.shape[0], : mask.shape[1]].astype(int), axis=2)
            # Outlines are blurred by the compression; away from them tissue is coloured and glass is not.
            assert chroma[~mask].mean() < 3
            assert chroma[mask].mean() > 40


def test_identity_and_codes(make_phantom):
    identity = Identity(patient_id="P-7", accession="ACC-7", container="C-7", study_uid="1.2.3.4", series_uid="1.2.3.5")
    truth = make_phantom(identity=identity)
    with Slide.open(truth.files) as slide:
        header = slide.header
    assert (header.patient_id, header.accession, header.container_id) == ("P-7", "ACC-7", "C-7")
    assert (header.study_uid, header.series_uid) == ("1.2.3.4", "1.2.3.5") == (truth.study_uid, truth.series_uid)
    assert header.patient_name == "TEST^PHANTOM"


def test_extended_offset_table_is_written(make_phantom):
    dataset = pydicom.dcmread(make_phantom(offset_table="extended", levels=1).files[0])
    offsets = np.frombuffer(dataset.ExtendedOffsetTable, "<u8")
    lengths = np.frombuffer(dataset.ExtendedOffsetTableLengths, "<u8")
    assert len(offsets) == len(lengths) == dataset.NumberOfFrames
    assert offsets[0] == 0
    assert (np.diff(offsets) == lengths[:-1] + lengths[:-1] % 2 + 8).all()


@pytest.mark.parametrize("arguments", [{"kind": "x-ray"}, {"width_px": 100}, {"coverage": 0.9}, {"coverage": 0.0}])
def test_arguments_that_make_no_slide(tmp_path, arguments):
    with pytest.raises(ValueError):
        write_phantom(tmp_path, **{"width_px": 600, "height_px": 600, **arguments})
