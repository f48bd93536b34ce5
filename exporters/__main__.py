"""`python -m exporters build | rebuild | approve | page`: the ways into a model repository, each through the gates."""

import argparse
import sys
from pathlib import Path

from exporters.approve import approve
from exporters.build import build
from exporters.model_folder import read_json
from exporters.page import page
from exporters.rebuild import rebuild
from exporters.versions import PRECISIONS, TARGETS
from training import command
from training.files import write_atomic


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 1 with one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m exporters")
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build", help="build a run's model into a repository, through the gates")
    building.add_argument("run", type=Path, help="a run folder, or encoder:ID")
    building.add_argument("--target", choices=TARGETS, required=True)
    building.add_argument("--precision", choices=PRECISIONS, help="default: fp32; fp16 for tensorrt")
    building.add_argument(
        "--accept-licence", action="store_true", help="the licence of encoder:ID was read and allows it"
    )
    building.add_argument(
        "--field-um", type=float, metavar="UM", help="the field of encoder:ID's tiles; default: its publisher's"
    )
    building.add_argument("--out", type=Path, required=True, metavar="REPOSITORY")
    rebuilding = commands.add_parser("rebuild", help="build all released runs; replace only what is not as built")
    rebuilding.add_argument("released", type=Path, help="the folder of the released runs")
    rebuilding.add_argument("--out", type=Path, required=True, metavar="REPOSITORY")
    approving = commands.add_parser("approve", help="approve a TensorRT artefact by what a GPU made of it")
    approving.add_argument("folder", type=Path, help="the model folder in its repository")
    approving.add_argument("--gpu-check", type=Path, required=True, metavar="FILE", help="gpu-check.json")
    paging = commands.add_parser("page", help="write the table of a repository's models")
    paging.add_argument("repository", type=Path)
    paging.add_argument("--out", type=Path, required=True, metavar="FILE")
    chosen = parser.parse_args(arguments)
    return command.status(lambda: _run(chosen), "The repository")


def _run(chosen: argparse.Namespace) -> None:
    if chosen.command == "build":
        repository = chosen.out.resolve()
        folders = build(
            chosen.run,
            repository,
            chosen.target,
            chosen.precision,
            accept_licence=chosen.accept_licence,
            field_um=chosen.field_um,
        )
        for folder in folders:
            print(chosen.out / folder)
        for line in _licences(repository / folders[0]):
            print(line, file=sys.stderr)
    elif chosen.command == "rebuild":
        for folder in rebuild(chosen.released, chosen.out.resolve()):
            print(chosen.out / folder)
    elif chosen.command == "approve":
        for folder in approve(chosen.folder.resolve(), chosen.gpu_check):
            print(chosen.folder.parent / folder)
    else:
        write_atomic(chosen.out, page(chosen.repository).encode())


def _licences(folder: Path) -> list[str]:
    """What binds a built model: the licences of the weights and of the data that it was made from."""
    card = read_json(folder / "card.json")
    weights = {
        f"{entry['licence']} ({entry['package']}, trained on {entry['trained_on']})" for entry in card["pretraining"]
    }
    data = sorted({entry["licence"] for entry in card["data"]})
    lines = [f"It comes from weights under: {entry}" for entry in sorted(weights)]
    return lines + ([f"It was trained on data under: {'; '.join(data)}"] if data else [])


if __name__ == "__main__":
    sys.exit(main())
