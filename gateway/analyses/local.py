"""One analysis without a server: slides from a folder or an archive, the report's files into a folder."""

import asyncio
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from gateway.analyses.ledger import Ledger
from gateway.analyses.ledger.choices import Choices
from gateway.analyses.protocols import check_order
from gateway.analyses.steps import CaseRun
from gateway.archive import Archive, SeriesEntry
from gateway.domain.analysis import Progress
from gateway.domain.order import Order, SlideReference, Specimen
from gateway.domain.uids import new_analysis_id
from gateway.operations.disk import disk_errors, locked_folder
from gateway.operations.errors import DiskFull
from gateway.operations.settings import Settings

_COMMITS = "report.json"
"""Written last: where it is, all the other files of the report are."""


def case_of(entries: tuple[SeriesEntry, ...]) -> tuple[Specimen, ...]:
    """The specimens of an order over these series: one slide a series, specimen data left to the image headers."""
    return tuple(Specimen(slides=(SlideReference(entry.study, (entry.series,)),)) for entry in entries)


async def analyze(
    order: Order, archive: Archive, out: Path, settings: Settings, progress: Callable[[Progress], None]
) -> tuple[Path, ...]:
    """Fetch, infer and report; the written files. Nothing is delivered. Work in progress lies in the state folder, and
    what was pulled of slides stays in its frame cache, for a second analysis of them.

    Raises PathserveError. What is in `out` after an error or a cancellation is the caller's to remove.
    """
    check_order(order)
    stopping = threading.Event()
    analysis_id = new_analysis_id()
    with workplace(settings.state / "local", analysis_id) as work:
        run = CaseRun(
            analysis_id,
            order,
            work,
            settings=settings,
            archive=archive,
            progress=progress,
            cancelled=stopping.is_set,
            choices=lambda: _choices(settings),
            released=None,
        )
        try:
            await run.fetch()
            await run.infer()
            await run.report()
        except asyncio.CancelledError:
            stopping.set()  # a step's thread is not cancelled with its task: it would hold up the end
            raise
        files = sorted(run.artifacts.iterdir(), key=lambda path: (path.name == _COMMITS, path.name))
        return tuple(_move(path, out) for path in files)


def _choices(settings: Settings) -> Choices:
    """The choices of the state's ledger; none where it has no ledger, which is not made for this."""
    if settings.database_url is None and not (settings.state / "pathserve.db").exists():
        return Choices()
    ledger = Ledger.open(settings.ledger_url, settings.state)
    try:
        return ledger.choices.read()
    finally:
        ledger.close()


@contextmanager
def workplace(local: Path, name: str) -> Iterator[Path]:
    """A folder `local`/`name` for the time of the block, held by a lock; those that a kill left behind are removed.

    Raises StateError, DiskFull.
    """
    with ExitStack() as held:
        with disk_errors():
            local.mkdir(mode=0o700, parents=True, exist_ok=True)
            with locked_folder(local):  # between its making and its locking a folder would look abandoned
                _remove_abandoned(local)
                work = local / name
                work.mkdir(mode=0o700)
                held.enter_context(locked_folder(work))
        held.callback(shutil.rmtree, work, ignore_errors=True)
        yield work


def _remove_abandoned(local: Path) -> None:
    for work in [path for path in local.iterdir() if path.is_dir()]:
        with suppress(BlockingIOError), locked_folder(work, wait=False):
            shutil.rmtree(work, ignore_errors=True)


def _move(path: Path, out: Path) -> Path:
    target = out / path.name
    part = out / f".{path.name}.part"
    try:
        part.write_bytes(path.read_bytes())
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise DiskFull(
            f"The output folder cannot take {path.name}: {error.strerror}. Make room, then repeat."
        ) from None
    return target
