"""The command line itself: options, errors and interruptions, where no model has to run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway import cli

PATHSERVE = Path(sys.prefix) / "bin" / "pathserve"


def run(tmp_path: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PATHSERVE, *map(str, arguments)],
        env={**os.environ, "PATHSERVE_STATE": str(tmp_path / "state"), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def expect_sentence(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """One sentence on stderr and nothing else, exit status 1."""
    assert done.returncode == 1, done.stderr
    [line] = done.stderr.splitlines()
    assert line.startswith("pathserve: ")
    for word in words:
        assert word in line


@pytest.mark.parametrize("size", [("4096", "77"), ("-5", "600")])
def test_a_phantom_of_no_use_is_refused(tmp_path: Path, size: tuple[str, str]) -> None:
    done = run(
        tmp_path, "phantom", "--kind", "he", "--out", tmp_path / "p", f"--width={size[0]}", f"--height={size[1]}"
    )
    expect_sentence(done, "phantom", "frame")


def test_a_phantom_where_nothing_can_be_written(tmp_path: Path) -> None:
    expect_sentence(run(tmp_path, "phantom", "--kind", "he", "--out", "/proc/nowhere"), "--out")


def test_a_smaller_phantom_replaces_a_larger_one(tmp_path: Path) -> None:
    for size in ("1024", "512"):
        assert (
            run(tmp_path, "phantom", "--kind", "he", "--out", tmp_path, "--width", size, "--height", size).returncode
            == 0
        )
    assert sorted(path.name for path in tmp_path.glob("*.dcm")) == ["label.dcm", "level-0.dcm", "level-1.dcm"]


def test_a_reader_who_has_seen_enough(tmp_path: Path) -> None:
    schema = subprocess.Popen(
        [PATHSERVE, "schema", "report"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert schema.stdout is not None
    assert schema.stderr is not None
    schema.stdout.close()
    assert schema.stderr.read() == ""
    schema.stderr.close()
    assert schema.wait(30) == 1


def test_a_terminal_that_knows_ascii_only(tmp_path: Path) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    done = run(tmp_path, "schema", "report", **plain)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["title"] == "pathserve report"
    done = run(
        tmp_path, "phantom", "--kind", "he", "--out", tmp_path / "Größe", "--width", 256, "--height", 256, **plain
    )
    assert (done.returncode, done.stderr) == (0, "")


def _analyze(slide: Path, out: Path, *more: str) -> list[str]:
    return ["analyze", "--protocol", "tissue-classification", "--slide", str(slide), "--out", str(out), *more]


@pytest.mark.parametrize("region", ["nan,0,10,10", "0,0,inf,10", "0,0,0,10", "-1,0,10,10", "", "1,2,3,4,5"])
def test_a_region_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], region: str) -> None:
    assert cli.main(_analyze(tmp_path, tmp_path / "out", f"--region={region}")) == 1
    assert capsys.readouterr().err.startswith("pathserve: --region takes four numbers")


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ((), ("at least one prompt",)),
        (("nuclei of colon", "unicorns in the colon"), ("unicorn", "Nearest")),
    ],
)
def test_prompts_that_cannot_be_answered(
    tmp_path: Path, cmu_slide: Path, prompts: tuple[str, ...], words: tuple[str, ...]
) -> None:
    asked = [option for prompt in prompts for option in ("--prompt", prompt)]
    done = run(tmp_path, *_analyze(cmu_slide, tmp_path / "out", "--protocol", "segmentation", *asked))
    expect_sentence(done, *words)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("wrong", [("--protocol", "palmistry"), ("--region", "x"), ("--set", "x")])
def test_wrong_usage_leaves_no_earlier_report(tmp_path: Path, wrong: tuple[str, str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    ours = {
        *("report.json", "report.html", "report.pdf", ".report.html.part", "thumbnail-1.jpg", "tissue-map-2.png"),
        *("report.sr.dcm", "report-2.sr.dcm", "report.pdf.dcm", "report.ko.dcm", "report-2.ko.dcm"),
        *("tissue-1.seg.dcm", "tissue-12.pm.dcm", "tissue-1.ann.dcm", "tissue-1.geojson", ".tissue-1.seg.dcm.part"),
    }
    theirs = {"notes.txt", "report.json.bak", "tissue.seg.dcm", "tissue-1.tif", "my-report.sr.dcm", "slide.dcm"}
    for name in ours | theirs:
        (out / name).write_text("earlier")
    assert cli.main(_analyze(tmp_path, out, *wrong)) == 1
    assert {path.name for path in out.iterdir()} == theirs


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--archive", "folder:/nowhere"), "--container"),
        (("--slide", "/nowhere", "--accession", "A1"), "--slide"),
        (("--slide", "/nowhere", "--container", "A1-1"), "--slide"),
    ],
)
def test_what_to_analyse_is_said_and_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    command = ["analyze", "--protocol", "tissue-classification", "--out", str(tmp_path / "out"), *arguments]
    assert cli.main(command) == 1
    assert said in capsys.readouterr().err


def test_an_output_folder_that_takes_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said before the work, not after it."""
    monkeypatch.setattr(cli, "_analyze_into", lambda arguments, out: ())
    assert cli.main(_analyze(tmp_path, Path("/proc/self"))) == 1
    assert "--out" in capsys.readouterr().err


def test_a_reader_who_has_gone_costs_no_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def analysed(arguments: object, out: Path) -> tuple[Path, ...]:
        (out / "report.json").write_text("{}")
        return (out / "report.json",)

    def gone(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_analyze_into", analysed)
    monkeypatch.setattr("builtins.print", gone)
    with pytest.raises(KeyboardInterrupt):
        cli.main(_analyze(tmp_path, tmp_path / "out"))
    assert (tmp_path / "out" / "report.json").exists()


def test_an_error_takes_back_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(arguments: object, out: Path) -> tuple[Path, ...]:
        (out / "report.sr.dcm").write_text("half a report")
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_analyze_into", interrupted)
    assert cli.main(_analyze(tmp_path, tmp_path / "out")) == 130
    assert list((tmp_path / "out").iterdir()) == []


def test_a_state_folder_that_cannot_be_made(tmp_path: Path) -> None:
    done = run(tmp_path, *_analyze(tmp_path, tmp_path / "out"), PATHSERVE_STATE="/proc/nowhere")
    expect_sentence(done, "PATHSERVE_STATE")


def test_an_unexpected_error_is_one_sentence_and_a_line_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATHSERVE_STATE", str(tmp_path))
    code = (
        "import sys; from gateway import cli; cli.COMMANDS['schema'] = lambda a: 1 / 0; "
        "sys.exit(cli.main(['schema', 'report']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    expect_sentence(done, "ZeroDivisionError", "report it")
    assert "ZeroDivisionError" in (tmp_path / "logs" / "pathserve.jsonl").read_text()


def test_the_parser_stands_before_the_heavy_imports() -> None:
    """Ctrl-C is handled from the parser on; what takes long to import comes after it."""
    heavy = {"numpy", "pydantic", "pydicom", "rich", "structlog"}
    code = f"import sys, gateway.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
