"""A step of self-distillation over the same networks in a bare loop; measured in .venv-training."""

import json
import subprocess
from pathlib import Path

from tests.benchmarks.rows import Row

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-training" / "bin" / "python"


def measure() -> list[Row]:
    """The rows of `training_step`."""
    command = [str(PYTHON), "-m", "tests.benchmarks.training_step"]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    return [Row(**row) for row in json.loads(result.stdout.splitlines()[-1])]
