"""`python -m training.pathbench.encoders page`: the registry as a page."""

import argparse
import sys
from pathlib import Path

from training.files import write_atomic
from training.pathbench.encoders.page import page


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.pathbench.encoders")
    commands = parser.add_subparsers(dest="command", required=True)
    paging = commands.add_parser("page", help="write the table of the registered encoders")
    paging.add_argument("--out", type=Path, required=True, metavar="FILE")
    write_atomic(parser.parse_args(arguments).out, page().encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
