"""INT8 and bf16 on processors over ONNX Runtime in fp32, with the gate's verdict; measured in .venv-training."""

import json
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.rows import Row

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-training" / "bin" / "python"


def measure() -> list[Row]:
    """The rows of `cpu_engines.bench`; none, with the reason on stderr, where the public data are absent."""
    command = [str(PYTHON), "-m", "tests.benchmarks.cpu_engines", "--bench"]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    rows = json.loads(result.stdout.splitlines()[-1])
    if not rows:
        print("no public data: INT8 cannot be calibrated, nor an engine judged", file=sys.stderr)
    return [Row(**row) for row in rows]
