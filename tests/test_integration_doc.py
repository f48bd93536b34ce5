"""docs/integration.md is run: every command of it, in one shell, top to bottom, against a real server and Triton."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.orthanc import free_port

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "integration.md"
WITHIN_S = 240


def commands() -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_every_command_of_the_page_runs(tmp_path: Path) -> None:
    blocks = commands()
    assert len(blocks) >= 8
    script = "\n".join(["set -euxo pipefail", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT", *blocks])
    # Other tests may hold the ports that a reader has free.
    script = script.replace("8080", str(free_port())).replace("50051", str(free_port()))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PATHSERVE_")}
    environment = clean | {"TMPDIR": str(tmp_path), "PATHSERVE_METRICS_PORT": "0", "no_proxy": "127.0.0.1"}
    done = subprocess.run(
        ["bash"], input=script, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=WITHIN_S, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert "event: state" in done.stdout
    assert not list(tmp_path.glob("tmp.*")), "the page leaves its folder behind"
