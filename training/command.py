"""What the command lines of all trainings have in common."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from gateway.operations.errors import PathserveError
from training.runs import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE [--resume] [--out DIR]."""
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--resume", action="store_true", help="continue a run that was interrupted")
    parser.add_argument("--out", type=Path, help="run folder; default: the recipe's name in PATHSERVE_RUNS")


def report(train: Callable[[], Run | None]) -> int:
    """Run a training for a command line: where its run folder is on stdout, or one sentence on stderr and status 1."""
    try:
        finished = train()
    except PathserveError as error:
        print(error.detail, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"The run folder cannot be written: {error.strerror}.", file=sys.stderr)
        return 1
    if finished is not None:
        print(finished.path)
    return 0
