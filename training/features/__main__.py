"""`python -m training.features --slides DIR --encoder NAME --out DIR [--workers N]`: tile features of whole slides.

DIR is one slide or a folder of slides; NAME a model of the repository (computed by Triton) or a registered encoder.
Each slide becomes `<series uid>.h5` in the output folder. Run it again after a kill: it goes on where it stopped.
"""

import argparse
import gc
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from gateway.operations.errors import PathserveError
from gateway.operations.settings import settings
from training.features.embedders import Options
from training.features.job import Job
from training.features.run import Progress, run


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0; 1 with one sentence on stderr where nothing could be done, or a sentence a slide that failed."""
    parser = argparse.ArgumentParser(prog="python -m training.features", description=__doc__)
    parser.add_argument("--slides", type=Path, required=True, help="a slide, or a folder of slides")
    parser.add_argument("--encoder", required=True, help="a model of the repository, or the id of a registered encoder")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the feature files")
    parser.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    parser.add_argument(
        "--profile", choices=("fixed-fov", "native"), default="fixed-fov", help="of a registered encoder"
    )
    parser.add_argument("--toolkit", choices=("pb", "tr", "native"), default="pb", help="of a registered encoder")
    parser.add_argument("--accept-licence", action="store_true", help="accept the registered encoder's licence")
    chosen = parser.parse_args(arguments)
    if chosen.workers < 1:
        parser.error("--workers must be at least 1")
    options = Options(chosen.profile, chosen.toolkit, chosen.accept_licence)
    job = Job(slides=chosen.slides.absolute(), encoder=chosen.encoder, out=chosen.out.absolute(), options=options)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("tiles", total=None)

            def tell(progress: Progress) -> None:
                done = progress.written + progress.kept + len(progress.failed)
                bar.update(
                    task,
                    total=progress.known_tiles,
                    completed=progress.tiles,
                    description=f"tiles of {progress.slides} slides ({done} done)",
                )

            progress = run(job, settings(), chosen.workers, tell)
    except PathserveError as error:
        print(error.detail, file=sys.stderr)
        return 1
    print(
        f"{progress.written} slides written, {progress.kept} were there, {len(progress.failed)} failed; "
        f"{progress.known_tiles - progress.unreadable} tiles, {progress.unreadable} not readable."
    )
    for series, detail in progress.failed.items():
        print(f"{series}: {detail}", file=sys.stderr)
    return 1 if progress.failed else 0


if __name__ == "__main__":
    gc.freeze()  # what the libraries are made of stays: looking it through would cost half a second at the end alone
    sys.exit(main())
