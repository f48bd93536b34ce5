"""INT8 and bf16 on processors over ONNX Runtime in fp32, with the gate's verdict; measured in .venv-training."""

import sys

from tests.benchmarks.rows import Row, measured_in_training


def measure() -> list[Row]:
    """The rows of `cpu_engines.bench`; none, with the reason on stderr, where the public data are absent."""
    rows = measured_in_training("tests.benchmarks.cpu_engines", "--bench")
    if not rows:
        print("no public data: INT8 cannot be calibrated, nor an engine judged", file=sys.stderr)
    return rows
