"""`pathserve analyze`: a folder of DICOM files in, a report out; a bad input gives one sentence and no report."""

import json
import shutil
import subprocess
from pathlib import Path

import highdicom
import jsonschema
import pydicom
import pytest

from gateway.slides.phantom import Identity, write_phantom
from tests.e2e.conftest import Cli
from tests.support.dciodvfy import needs_dciodvfy, validate

OF_THE_CASE = {"report.json", "report.html", "report.pdf", "report.sr.dcm", "thumbnail-1.jpg", "tissue-map-1.png"}
DRAWN = {"tissue-1.seg.dcm", "tissue-1.pm.dcm", "tissue-1.ann.dcm", "tissue-1.geojson"}
FILES = OF_THE_CASE | DRAWN | {"report.pdf.dcm", "report.ko.dcm"}


def analyze(cli: Cli, slide: Path, out: Path, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return cli(
        "analyze", "--protocol", "tissue-classification", "--slide", slide, "--out", out, *more, **environment
    )  # fmt: skip


@pytest.fixture(scope="module")
def report_dir(cli: Cli, cmu_slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    done = analyze(cli, cmu_slide, out)
    assert done.returncode == 0, done.stderr
    return out


def test_writes_its_files_and_nothing_else(report_dir: Path) -> None:
    assert {path.name for path in report_dir.iterdir()} == FILES


def test_json_validates_against_the_published_schema(cli: Cli, report_dir: Path) -> None:
    schema = json.loads(cli("schema", "report").stdout)
    report = json.loads((report_dir / "report.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(report, schema)
    [tissue] = report["tissue"]
    assert sum(row["share"] for row in tissue["classes"]) + tissue["uncertain_share"] == pytest.approx(1)
    assert sum(row["tiles"] for row in tissue["classes"]) + tissue["uncertain_tiles"] == tissue["tiles"] > 40
    assert report["models"][-1]["name"] == "tissue_classification"


def test_unknown_organ_is_exploratory_without_diagnosis_words(report_dir: Path) -> None:
    text = (report_dir / "report.json").read_text().lower()
    report = json.loads(text)
    assert report["exploratory"] is True
    assert "organ-unknown" in {finding["code"]["code"] for finding in report["findings"]}
    results = json.dumps(report["tissue"])
    assert not [word for word in ("carcinoma", "cancer", "tumor", "tumour", "normal") if word in results]


@pytest.mark.validators
@needs_dciodvfy
def test_every_object_is_standards_clean(report_dir: Path) -> None:
    objects = sorted(report_dir.glob("*.dcm"))
    assert len(objects) == 6
    assert {path.name: validate(path) for path in objects} == {path.name: [] for path in objects}


def test_the_key_objects_name_every_other_object(report_dir: Path) -> None:
    text = pydicom.dcmread(report_dir / "report.ko.dcm").to_json()
    others = [path for path in report_dir.glob("*.dcm") if path.name != "report.ko.dcm"]
    assert len(others) == 5
    assert [path.name for path in others if pydicom.dcmread(path).SOPInstanceUID not in text] == []


def test_every_object_belongs_to_the_slide(report_dir: Path, cmu_slide: Path) -> None:
    source = pydicom.dcmread(next(cmu_slide.glob("*.dcm")), stop_before_pixels=True)
    objects = [pydicom.dcmread(path, stop_before_pixels=True) for path in report_dir.glob("*.dcm")]
    for keyword in (
        "StudyInstanceUID",
        "PatientID",
        "PatientName",
        "PatientBirthDate",
        "PatientSex",
        "AccessionNumber",
    ):
        assert {str(each[keyword].value) for each in objects} == {str(source[keyword].value)}
    assert len({each.SeriesInstanceUID for each in objects} | {source.SeriesInstanceUID}) == len(objects) + 1
    report = highdicom.sr.srread(report_dir / "report.sr.dcm")
    assert (report.VerificationFlag, report.CompletionFlag) == ("UNVERIFIED", "COMPLETE")


def test_unknown_organ_gets_every_object_and_each_says_that_it_is_exploratory(report_dir: Path) -> None:
    described = {
        path.name: pydicom.dcmread(path, stop_before_pixels=True).SeriesDescription for path in report_dir.glob("*.dcm")
    }
    assert [name for name, text in described.items() if "exploratory" not in text] == []
    assert json.loads((report_dir / "tissue-1.geojson").read_text())["pathserve"]["exploratory"] is True


def test_the_report_names_every_file(report_dir: Path) -> None:
    report = json.loads((report_dir / "report.json").read_text())
    named = {item["file"] for item in (*report["objects"], *report["pictures"])}
    assert named == FILES - {"report.json"}


def test_replaces_its_own_files_and_leaves_others(cli: Cli, cmu_slide: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "report.json").write_text("old")
    (tmp_path / "report-2.sr.dcm").write_text("old")
    assert analyze(cli, cmu_slide, tmp_path).returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == FILES | {"notes.txt"}
    assert json.loads((tmp_path / "report.json").read_text())["state"] == "preliminary"


def test_archive_address_and_study(cli: Cli, cmu_slide: Path, report_dir: Path, tmp_path: Path) -> None:
    study = json.loads((report_dir / "report.json").read_text())["slides"][0]["study"]
    done = cli(
        "analyze", "--protocol", "tissue-classification", "--archive", f"folder:{cmu_slide}", "--study", study,
        "--out", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((out / "report.json").read_text()) for out in (report_dir, tmp_path))
    assert first["tissue"] == second["tissue"]
    assert not (cmu_slide / "results").exists()


def test_a_changed_setting_is_used_and_named(cli: Cli, cmu_slide: Path, tmp_path: Path) -> None:
    done = analyze(cli, cmu_slide, tmp_path, "--set", "operating_point.min_probability=0")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["tissue"][0]["uncertain_tiles"] == 0
    assert [f["code"]["code"] for f in report["findings"] if f["kind"] == "setting"] == ["setting-changed"]


def test_a_region_is_all_that_is_read(cli: Cli, cmu_slide: Path, report_dir: Path, tmp_path: Path) -> None:
    done = analyze(cli, cmu_slide, tmp_path, "--region", "450,600,300,300")
    assert done.returncode == 0, done.stderr
    whole, part = (json.loads((out / "report.json").read_text())["tissue"][0] for out in (report_dir, tmp_path))
    assert 0 < part["tiles"] < whole["tiles"]


def test_several_slides_one_of_them_empty(cli: Cli, cmu_slide: Path, tmp_path: Path) -> None:
    """A slide that cannot be read is named in the report; the others are read."""
    case = tmp_path / "case"
    shutil.copytree(cmu_slide, case / "one")
    header = pydicom.dcmread(next(cmu_slide.glob("*.dcm")), stop_before_pixels=True)
    same_case = Identity(
        study_uid=header.StudyInstanceUID, patient_id=header.PatientID, accession=header.AccessionNumber
    )
    write_phantom(case / "two", width_px=1024, height_px=1024, tissue=False, identity=same_case)
    done = analyze(cli, case, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert sorted(slide["read"] for slide in report["slides"]) == [False, True]
    assert "slide-not-read" in {finding["code"]["code"] for finding in report["findings"]}


def test_slides_of_two_patients_are_refused(cli: Cli, cmu_slide: Path, tmp_path: Path) -> None:
    case = tmp_path / "case"
    shutil.copytree(cmu_slide, case / "one")
    write_phantom(case / "two", width_px=1024, height_px=1024)
    expect_refusal(analyze(cli, case, tmp_path / "out"), tmp_path / "out", "patient id", "differ")


def expect_refusal(done: subprocess.CompletedProcess[str], out: Path, *words: str) -> None:
    """One sentence on stderr, no trace, a non-zero exit, no report."""
    assert done.returncode == 1, (done.returncode, done.stderr)
    [line] = done.stderr.splitlines()
    assert line.startswith("pathserve: "), done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    for word in words:
        assert word.lower() in line.lower(), line
    assert not [path for path in out.glob("*") if path.name in FILES]


def test_unknown_protocol(cli: Cli, cmu_slide: Path, tmp_path: Path) -> None:
    done = cli("analyze", "--protocol", "palmistry", "--slide", cmu_slide, "--out", tmp_path)
    expect_refusal(done, tmp_path, "palmistry", "tissue-classification")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--set", "tissue.min_share=2"), ("between",)),
        (("--set", "nonsense=1"), ("nonsense", "tissue.min_share")),
        (("--set", "nonsense"), ("KEY=VALUE",)),
        (("--region", "1,2,3"), ("four numbers",)),
        (("--prompt", "x"), ("no prompts",)),
        (("--study", "1.2.3"), ("--archive",)),
    ],
)
def test_wrong_options(
    cli: Cli, cmu_slide: Path, tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    expect_refusal(analyze(cli, cmu_slide, tmp_path, *arguments), tmp_path, *words)


def test_no_dicom_at_all(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "slide").mkdir()
    (tmp_path / "slide" / "a.dcm").write_bytes(b"not a DICOM file" * 99)
    expect_refusal(analyze(cli, tmp_path / "slide", tmp_path / "out"), tmp_path / "out", "dicom")


def test_folder_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    expect_refusal(analyze(cli, tmp_path / "nowhere", tmp_path / "out"), tmp_path / "out", "folder")


def test_truncated_file(cli: Cli, cmu_slide: Path, tmp_path: Path) -> None:
    slide = tmp_path / "slide"
    shutil.copytree(cmu_slide, slide)
    largest = max(slide.glob("*.dcm"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-200_000])
    expect_refusal(analyze(cli, slide, tmp_path / "out"), tmp_path / "out", "incomplete", "send the slide")


def test_slide_without_tissue(cli: Cli, tmp_path: Path) -> None:
    write_phantom(tmp_path / "slide", kind="he", width_px=2048, height_px=2048, tissue=False)
    expect_refusal(analyze(cli, tmp_path / "slide", tmp_path / "out"), tmp_path / "out", "tissue")


def test_only_coarse_levels(cli: Cli, tmp_path: Path) -> None:
    write_phantom(tmp_path / "slide", kind="he", width_px=2048, height_px=2048, mpp=2.0)
    expect_refusal(analyze(cli, tmp_path / "slide", tmp_path / "out"), tmp_path / "out", "2 µm", "0.5")


def test_a_stain_that_the_model_is_not_for_gets_the_structured_report_alone(cli: Cli, tmp_path: Path) -> None:
    write_phantom(tmp_path / "slide", kind="cytology", width_px=1024, height_px=1024)
    done = analyze(cli, tmp_path / "slide", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == OF_THE_CASE
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    [finding] = [each for each in report["findings"] if each["code"]["code"] == "stain-outside"]
    assert "PAP" in finding["text"]
    assert "no segmentation" in finding["text"]


@pytest.mark.parametrize(
    ("options", "words"), [({"label_only": True}, ("VOLUME",)), ({"spacing": False}, ("spacing",))]
)
def test_slide_that_cannot_be_measured(
    cli: Cli, tmp_path: Path, options: dict[str, bool], words: tuple[str, ...]
) -> None:
    write_phantom(tmp_path / "slide", width_px=1024, height_px=1024, **options)
    expect_refusal(analyze(cli, tmp_path / "slide", tmp_path / "out"), tmp_path / "out", *words)


def test_unsupported_transfer_syntax(cli: Cli, tmp_path: Path) -> None:
    write_phantom(tmp_path / "slide", width_px=1024, height_px=1024, levels=1)
    path = max((tmp_path / "slide").glob("*.dcm"), key=lambda file: file.stat().st_size)
    image = pydicom.dcmread(path)
    image.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML
    image.save_as(path)
    expect_refusal(analyze(cli, tmp_path / "slide", tmp_path / "out"), tmp_path / "out", "transfer syntax")


def test_one_level_at_the_models_resolution_is_a_slide(cli: Cli, tmp_path: Path) -> None:
    truth = write_phantom(tmp_path / "slide", width_px=2048, height_px=2048, levels=1)
    done = analyze(cli, tmp_path / "slide", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    [slide] = json.loads((tmp_path / "out" / "report.json").read_text())["slides"]
    assert slide["tissue_area_mm2"] == pytest.approx(truth.tissue_area_mm2, rel=0.15)


def test_study_that_is_not_there(cli: Cli, cmu_slide: Path, tmp_path: Path) -> None:
    done = cli(
        "analyze", "--protocol", "tissue-classification", "--archive", f"folder:{cmu_slide}", "--study", "1.2.3",
        "--out", tmp_path,
    )  # fmt: skip
    expect_refusal(done, tmp_path, "1.2.3")


def test_triton_down(cli: Cli, cmu_slide: Path, tmp_path: Path) -> None:
    done = analyze(cli, cmu_slide, tmp_path, PATHSERVE_TRITON_URL="127.0.0.1:9")
    expect_refusal(done, tmp_path, "triton")


def test_model_not_there(cli: Cli, cmu_slide: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    done = analyze(
        cli, cmu_slide, tmp_path / "out", PATHSERVE_MODEL_REPOSITORY=str(tmp_path / "models"),
        PATHSERVE_STATE=str(tmp_path / "state"),
    )  # fmt: skip
    expect_refusal(done, tmp_path / "out", "tissue_classification")


def test_an_error_removes_the_report_of_an_earlier_run(cli: Cli, cmu_slide: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert analyze(cli, cmu_slide, out).returncode == 0
    (tmp_path / "empty").mkdir()
    expect_refusal(analyze(cli, tmp_path / "empty", out), out)
