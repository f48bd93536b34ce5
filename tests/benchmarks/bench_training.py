"""A step of self-distillation over the same networks in a bare loop; measured in .venv-training."""

from tests.benchmarks.rows import Row, measured_in_training


def measure() -> list[Row]:
    """The rows of `training_step`."""
    return measured_in_training("tests.benchmarks.training_step")
