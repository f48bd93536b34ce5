"""`pathserve import`: a real SVS and invented ones become DICOM slides with the same pixels, whole or not at all."""

import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pydicom
import pytest

from gateway import cli
from gateway.domain.codes import Code
from gateway.domain.tables import stain_name
from gateway.operations.errors import InvalidInput, InvalidSlide
from gateway.operations.settings import settings
from gateway.slides import Slide, importing
from gateway.slides.import_facts import slide_facts
from gateway.slides.imported import SlideFacts
from tests.conftest import data_path
from tests.support.dciodvfy import needs_dciodvfy, validate
from tests.support.disk import largest_file

PATHSERVE = Path(sys.prefix) / "bin" / "pathserve"
ENVIRONMENT = settings().import_venv
STUDY = "1.2.826.0.1.3680043.8.498.1"
KNOWN = (
    "--study", STUDY, "--accession", "ACC0001", "--patient-id", "P0001", "--patient-name", "Müller^Jürgen",
    "--container", "ACC0001-A1-1", "--stain", "HE", "--organ", "71854001,SCT,Colon",
)  # fmt: skip

pytestmark = pytest.mark.skipif(not (ENVIRONMENT / ".ready").exists(), reason="needs `make setup-import`")

APERIO = "Aperio Image Library v11.2.1\\r\\n700x500 (240x240) JPEG/RGB Q=95|AppMag = 20"
# Files as vendors write them, beside what the TIFF library sees in them.
WRITE = f"""
import numpy, os, sys, tifffile
os.chdir(sys.argv[1])
x, y = numpy.meshgrid(numpy.arange(700), numpy.arange(500))
image = numpy.stack([(x / 3).astype('u1'), (y / 2).astype('u1'), (255 - x / 4).astype('u1')], -1)
ycbcr = dict(photometric='ycbcr', compression='jpeg', compressionargs=dict(level=95))
rgb = dict(photometric='rgb', compression='jpeg', compressionargs=dict(level=95, outcolorspace='rgb'))
jpeg2000 = dict(photometric='rgb', compression=33005, compressionargs=dict(level=60))
for name, how in (
    ('ycbcr.svs', ycbcr | dict(description='{APERIO}|MPP = 0.5')),
    ('rgb.svs', rgb | dict(description='{APERIO}|MPP = 0.5')),
    ('jpeg2000.svs', jpeg2000 | dict(description='{APERIO}|MPP = 0.5')),
    ('no-spacing.svs', ycbcr | dict(description='{APERIO}')),
    ('screen.tiff', ycbcr | dict(description='a picture', resolution=(72, 72), resolutionunit='INCH')),
):
    tifffile.imwrite(name, image, tile=(240, 240), metadata=None, **how)
    numpy.save(name, tifffile.imread(name, key=0))
"""


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """`pathserve import` in this process, which has its libraries loaded."""
    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    settings.cache_clear()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            status = cli.main(["import", *map(str, arguments)])
    except SystemExit as usage:
        status = int(str(usage.code))
    finally:
        settings.cache_clear()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


def refused(done: "subprocess.CompletedProcess[str]", out: Path, *words: str) -> None:
    """One sentence, and nothing where the slide would be, nor beside it."""
    assert done.returncode == 1, done.stderr
    [line] = done.stderr.splitlines()
    assert all(word in line for word in words), line
    assert not out.exists()
    assert not list(out.parent.glob(f".{out.name}*"))


@pytest.fixture(scope="module")
def invented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("invented")
    subprocess.run([ENVIRONMENT / "bin" / "python", "-c", WRITE, folder], check=True)
    return folder


@pytest.fixture(scope="module")
def svs() -> Path:
    return data_path("slides", "fixtures", "CMU-1-Small-Region.svs")


@pytest.fixture(scope="module")
def imported(svs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("imported") / "slide"
    done = run(svs, "--out", out, *KNOWN)
    assert (done.returncode, done.stderr) == (0, "")
    assert [Path(line) for line in done.stdout.splitlines()] == sorted(out.iterdir())
    return out


@pytest.fixture(scope="module")
def slide(imported: Path) -> Iterator[Slide]:
    with Slide.open(sorted(imported.iterdir())) as slide:
        yield slide


def frames(slide: Slide, level: int) -> list[bytes]:
    image = slide.image(level)
    return [bytes(frame) for frame in image.read_frames(range(image.frame_at_RC.size))]


def photometric(slide: Slide) -> set[str]:
    return {str(slide.source_dataset(level.index).PhotometricInterpretation) for level in slide.levels}


def test_the_pixels_are_those_of_the_slide(slide: Slide, cmu_slide: Path) -> None:
    with Slide.open(sorted(cmu_slide.iterdir())) as converted_before:
        assert np.array_equal(slide.read_level(0), converted_before.read_level(0))


def test_tiles_are_copied_unchanged(slide: Slide, svs: Path) -> None:
    """What follows the tables, which a TIFF keeps apart, stands in the file byte for byte."""
    source = svs.read_bytes()
    scans = [frame[frame.index(b"\xff\xda") :].rstrip(b"\0") for frame in frames(slide, 0)]
    assert len(scans) == 10 * 13
    assert all(scan in source for scan in scans)


def test_missing_levels_are_added(slide: Slide) -> None:
    assert [(level.width_px, level.height_px) for level in slide.levels] == [
        (2220, 2967), (1110, 1484), (555, 742), (278, 371), (139, 186)
    ]  # fmt: skip
    assert [level.mpp for level in slide.levels] == pytest.approx([0.499 * 2**n for n in range(5)], rel=0.01)
    for number in (1, 2):
        added = slide.read_level(number)
        reduced = cv2.resize(slide.read_level(0), added.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(added.astype(int) - reduced).mean() < 4
        assert np.abs(added.mean((0, 1)) - reduced.mean((0, 1))).max() < 0.5  # no colour cast


@pytest.mark.parametrize("number", range(5))
def test_header_and_streams_agree_on_the_colour_space(slide: Slide, number: int) -> None:
    """A decoder that knows the header's colour space alone sees what one sees that knows the markers alone."""
    assert slide.source_dataset(number).PhotometricInterpretation == "RGB"
    for frame in frames(slide, number)[:3]:
        told = imagecodecs.jpeg8_decode(frame, colorspace="RGB", outcolorspace="RGB")
        assert np.array_equal(told, imagecodecs.jpeg8_decode(frame))


def test_identity_and_intended_use(slide: Slide) -> None:
    header = slide.header
    assert (header.study_uid, header.accession, header.container_id) == (STUDY, "ACC0001", "ACC0001-A1-1")
    assert (header.patient_id, header.patient_name, header.specimen_id) == ("P0001", "Müller^Jürgen", "ACC0001-A1-1")
    assert stain_name(header.stains) == "HE"
    assert header.site == Code("71854001", "SCT", "Colon")
    assert header.acquired == "20091229095915"


@needs_dciodvfy
@pytest.mark.validators
def test_it_is_standards_clean(imported: Path) -> None:
    for file in imported.iterdir():
        assert validate(file) == [], file.name


def test_what_was_resampled_says_so(imported: Path) -> None:
    types = [pydicom.dcmread(imported / f"level-{n}.dcm", stop_before_pixels=True) for n in range(5)]
    assert [list(header.ImageType) for header in types] == [
        ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
        *[["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"]] * 4,
    ]
    assert [len(np.atleast_1d(header.LossyImageCompressionRatio)) for header in types] == [1, 2, 2, 2, 2]


@needs_dciodvfy
@pytest.mark.validators
def test_what_is_not_given_is_not_made_up(svs: Path, tmp_path: Path) -> None:
    out = tmp_path / "slide"
    assert run(svs, "--out", out, "--with-label").returncode == 0
    assert {"label.dcm", "overview.dcm", "level-0.dcm"} <= {file.name for file in out.iterdir()}
    with Slide.open(sorted(out.iterdir())) as slide:
        header = slide.header
    assert header.study_uid != STUDY
    assert not any((header.patient_id, header.patient_name, header.accession, header.stains, header.site))
    level = pydicom.dcmread(out / "level-0.dcm", stop_before_pixels=True)
    assert level.ContainerIdentifier == "Unknown"  # DICOM demands one
    assert "No ICC profile" in level.ContributingEquipmentSequence[0].ContributionDescription
    assert not any(validate(file) for file in out.iterdir())


def test_only_the_tissue_is_imported(imported: Path) -> None:
    """Label and overview show the patient's name on many a slide."""
    assert {file.stem for file in imported.iterdir()} == {f"level-{n}" for n in range(5)}


@pytest.mark.parametrize(("colours", "said"), [("ycbcr", "YBR_FULL_422"), ("rgb", "RGB"), ("jpeg2000", "YBR_ICT")])
def test_colours_of_every_kind(invented: Path, tmp_path: Path, colours: str, said: str) -> None:
    """Our reader and the TIFF library see the same, whichever colour space the vendor compresses in."""
    source, out = invented / f"{colours}.svs", tmp_path / "slide"
    assert run(source, "--out", out).returncode == 0
    with Slide.open(sorted(out.iterdir())) as slide:
        seen, expected = slide.read_level(0), np.load(f"{source}.npy")
        assert np.abs(seen.astype(int) - expected).max() <= 2
        assert np.abs(slide.read_level(1).mean((0, 1)) - expected.mean((0, 1))).max() < 1
        assert photometric(slide) == {said}


def test_without_pixel_spacing_there_is_none(invented: Path, tmp_path: Path) -> None:
    source, out = invented / "no-spacing.svs", tmp_path / "slide"
    refused(run(source, "--out", out), out, "no-spacing.svs", "--mpp")
    assert run(source, "--out", out, "--mpp", "0.25").returncode == 0
    header = pydicom.dcmread(out / "level-0.dcm", stop_before_pixels=True)
    assert "Pixel spacing of 0.25 um given on import" in header.ContributingEquipmentSequence[0].ContributionDescription
    with Slide.open(sorted(out.iterdir())) as slide:
        assert [level.mpp for level in slide.levels[:2]] == pytest.approx([0.25, 0.5])


def test_dots_of_a_screen_are_no_pixel_spacing(invented: Path, tmp_path: Path) -> None:
    source, out = invented / "screen.tiff", tmp_path / "slide"
    refused(run(source, "--out", out), out, "screen.tiff", "--mpp")
    assert run(source, "--out", out, "--mpp", "0.5").returncode == 0
    with Slide.open(sorted(out.iterdir())) as slide:
        assert np.abs(slide.read_level(0).astype(int) - np.load(f"{source}.npy")).mean() < 3
        assert photometric(slide) == {"YBR_FULL_422"}
    header = pydicom.dcmread(out / "level-0.dcm", stop_before_pixels=True)
    assert "Pixel data encoded anew" in header.ContributingEquipmentSequence[0].ContributionDescription


@pytest.mark.parametrize("mpp", ["0", "-1", "nan", "500", "half"])
def test_a_pixel_spacing_that_is_none(tmp_path: Path, mpp: str) -> None:
    done = run("x.svs", "--out", tmp_path / "slide", f"--mpp={mpp}")
    assert done.returncode == 2
    assert "micrometres per pixel" in done.stderr


def test_what_is_no_slide(cmu_slide: Path, tmp_path: Path) -> None:
    out = tmp_path / "slide"
    (tmp_path / "letter.svs").write_text("Dear colleague")
    refused(run(tmp_path / "letter.svs", "--out", out), out, "letter.svs", "format")
    refused(run(tmp_path / "none.svs", "--out", out), out, "none.svs")
    refused(run(tmp_path, "--out", out), out, "no file")
    dicom = next(cmu_slide.iterdir())
    refused(run(dicom, "--out", out), out, "is DICOM already")


def test_a_file_that_breaks_off(svs: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "half.svs", tmp_path / "slide"
    source.write_bytes(svs.read_bytes()[:1_000_000])
    refused(run(source, "--out", out), out, "half.svs", "incomplete")


def test_a_copy_with_a_hole(svs: Path, tmp_path: Path) -> None:
    """A transfer that died leaves zeros, which the converter would copy as tiles."""
    source, out = tmp_path / "hole.svs", tmp_path / "slide"
    data = bytearray(svs.read_bytes())
    data[600_000:700_000] = bytes(100_000)
    source.write_bytes(data)
    refused(run(source, "--out", out), out, "hole.svs", "incomplete")


def test_nothing_is_overwritten(svs: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    done = run(svs, "--out", tmp_path)
    assert (done.returncode, "--out" in done.stderr) == (1, True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_disk_without_room(svs: Path, tmp_path: Path) -> None:
    out = tmp_path / "slide"
    with largest_file(400_000):
        done = run(svs, "--out", out)
    refused(done, out, "No space")


def test_without_its_environment(svs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATHSERVE_IMPORT_VENV", str(tmp_path / "none"))
    refused(run(svs, "--out", tmp_path / "slide"), tmp_path / "slide", "make setup-import")


def environment_that_does(folder: Path, script: str) -> Path:
    interpreter = folder / "environment" / "bin" / "python"
    interpreter.parent.mkdir(parents=True)
    interpreter.write_text(f"#!/bin/sh\n{script}\n")
    interpreter.chmod(0o755)
    return interpreter.parents[1]


def test_a_converter_that_is_killed(svs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATHSERVE_IMPORT_VENV", str(environment_that_does(tmp_path, "kill -9 $$")))
    refused(run(svs, "--out", tmp_path / "slide"), tmp_path / "slide", "SIGKILL", "memory")


def test_a_converter_that_never_ends(svs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "_LEAST_TIME_S", 0.2)
    monkeypatch.setattr(importing, "_S_PER_MB", 0.0)
    environment = environment_that_does(tmp_path, "exec sleep 60")
    with pytest.raises(InvalidSlide, match="did not end"):
        importing.import_slide(svs, tmp_path / "slide", SlideFacts(), environment=environment)
    assert {path.name for path in tmp_path.iterdir()} == {"environment"}


def test_an_import_that_is_ended(svs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = environment_that_does(tmp_path, f"touch {tmp_path}/began; exec sleep 60")
    monkeypatch.setenv("PATHSERVE_IMPORT_VENV", str(environment))
    out = tmp_path / "slide"
    with subprocess.Popen([PATHSERVE, "import", svs, "--out", out], stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 20
        while not (tmp_path / "began").exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=10)
    assert (process.returncode, said) == (130, "pathserve: interrupted.\n")
    assert {path.name for path in tmp_path.iterdir()} == {"began", "environment"}


def test_options_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "known.json"
    file.write_text(
        json.dumps(
            {
                "accession": "A1",
                "patient": {"id": "P1", "issuer": "HOSPITAL", "name": "Roe^Jane", "birth_date": "19700101", "sex": "F"},
                "stain": "PAP",
                "organ": {"code": "71854001", "scheme": "SCT", "display": "Colon"},
            }
        )
    )
    facts = slide_facts(file, accession="A2", container=None, organ=None)
    assert (facts.accession, facts.patient_id, facts.patient_issuer, facts.stain) == ("A2", "P1", "HOSPITAL", "PAP")
    assert (facts.patient_birth_date, facts.patient_sex, facts.container) == ("19700101", "F", None)
    assert facts.organ == Code("71854001", "SCT", "Colon")


@pytest.mark.parametrize(
    ("written", "word"),
    [
        ("{", "known.json"),
        ('{"acession": "A1"}', "acession"),
        ('{"stain": "IHC"}', "stain"),
        ('{"organ": {}}', "organ"),
    ],
)
def test_a_file_of_facts_that_is_none(tmp_path: Path, written: str, word: str) -> None:
    (tmp_path / "known.json").write_text(written)
    with pytest.raises(InvalidInput, match=word):
        slide_facts(tmp_path / "known.json")


@pytest.mark.parametrize(
    "option",
    [{"accession": "more than sixteen characters"}, {"study": "1.2.x"}, {"container": "a\\b"}, {"patient_id": "a\nb"},
     {"organ": "71854001"}, {"patient_name": "x" * 65}],
)  # fmt: skip
def test_what_no_header_takes(option: dict[str, str]) -> None:
    with pytest.raises(InvalidInput):
        slide_facts(None, **option)
