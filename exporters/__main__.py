"""`python -m exporters build RUN --target onnx --out REPOSITORY`; `python -m exporters page REPOSITORY --out FILE`."""

import argparse
import sys
from pathlib import Path

from exporters.build import build
from exporters.page import page
from gateway.operations.errors import PathserveError
from training.files import write_atomic


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 1 with one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m exporters")
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build", help="build a run's model into a repository, through the gates")
    building.add_argument("run", type=Path)
    building.add_argument("--target", choices=["onnx"], required=True)
    building.add_argument("--out", type=Path, required=True, metavar="REPOSITORY")
    paging = commands.add_parser("page", help="write the table of a repository's models")
    paging.add_argument("repository", type=Path)
    paging.add_argument("--out", type=Path, required=True, metavar="FILE")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "build":
            for model in build(chosen.run, chosen.out.resolve()):
                print(chosen.out / model)
        else:
            write_atomic(chosen.out, page(chosen.repository).encode())
    except PathserveError as error:
        print(error.detail, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"The repository cannot be written: {error.strerror}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
