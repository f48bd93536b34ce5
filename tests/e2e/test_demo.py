"""`make demo` does the main job and leaves nothing running."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.pacs
def test_demo_ends_with_a_report() -> None:
    mark = f"pathserve-demo-test-{os.getpid()}"
    done = subprocess.run(
        [sys.executable, ROOT / "deploy" / "demo" / "demo.py"],
        # A proxy, as hospitals have one, must not be asked for what lies on loopback.
        env={**os.environ, "PATHSERVE_DEMO_MARK": mark, "http_proxy": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("report.json", "report.html", "report.pdf", "report.sr.dcm", "tissue-1.seg.dcm", "report.ko.dcm"):
        assert (ROOT / "build" / "demo" / name).stat().st_size > 0
        assert name in done.stdout
    assert "6 objects (ANN, KO, PDF, PM, SEG, SR) lie in the PACS" in done.stdout
    left = [p.info for p in psutil.process_iter(["pid", "name", "environ"]) if mark in str(p.info["environ"])]
    assert left == []


def test_demo_says_what_is_wrong_with_a_slide(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "deploy" / "demo" / "demo.py", "--slide", tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "no DICOM slide" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
