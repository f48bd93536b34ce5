"""What the command lines of training and exporting have in common."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from gateway.operations.errors import PathserveError
from training.runs import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every training takes: RECIPE [--resume] [--out DIR]."""
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--resume", action="store_true", help="continue a run that was interrupted")
    parser.add_argument("--out", type=Path, help="run folder; default: the recipe's name in PATHSERVE_RUNS")


def status(work: Callable[[], None], writes: str) -> int:
    """Do the work of a command: exit status 0, or 1 with one sentence on stderr. `writes` is what the command writes,
    for where the disk does not let it."""
    try:
        work()
    except PathserveError as error:
        print(error.detail, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{writes} cannot be written: {error.strerror}.", file=sys.stderr)
        return 1
    return 0


def report(train: Callable[[], Run | None]) -> int:
    """`status` of a training, which prints where its run folder is."""

    def work() -> None:
        if (finished := train()) is not None:
            print(finished.path)

    return status(work, "The run folder")
