"""`python -m training.pathbench.encoders page`: the registry as a page."""

import argparse
import sys
from pathlib import Path

from training import command
from training.files import write_atomic
from training.pathbench.encoders.page import page


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 1 with one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m training.pathbench.encoders")
    commands = parser.add_subparsers(dest="command", required=True)
    paging = commands.add_parser("page", help="write the table of the registered encoders")
    paging.add_argument("--out", type=Path, required=True, metavar="FILE")
    chosen = parser.parse_args(arguments)
    return command.status(lambda: write_atomic(chosen.out, page().encode()), "The page")


if __name__ == "__main__":
    sys.exit(main())
