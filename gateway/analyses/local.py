"""One analysis without a server: slides from a folder or an archive, the report's files into a folder."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.analyses.protocols import check_order
from gateway.analyses.steps import CaseRun
from gateway.archive import Archive, SeriesEntry
from gateway.domain.analysis import Progress
from gateway.domain.order import Order, SlideReference, Specimen
from gateway.domain.uids import new_analysis_id
from gateway.operations.errors import DiskFull
from gateway.operations.settings import Settings


def case_of(entries: tuple[SeriesEntry, ...]) -> tuple[Specimen, ...]:
    """The specimens of an order over these series: one slide a series, specimen data left to the image headers."""
    return tuple(Specimen(slides=(SlideReference(entry.study, (entry.series,)),)) for entry in entries)


async def analyze(
    order: Order, archive: Archive, out: Path, settings: Settings, progress: Callable[[Progress], None]
) -> tuple[Path, ...]:
    """Fetch, infer and report; the written files. Nothing is delivered, and on an error nothing is left in `out`.

    Raises PathserveError.
    """
    check_order(order)
    with _workplace() as work:
        run = CaseRun(new_analysis_id(), order, work, settings=settings, archive=archive, progress=progress)
        await run.fetch()
        await run.infer()
        await run.report()
        return tuple(_move(path, out) for path in sorted(run.artifacts.iterdir()))


@contextmanager
def _workplace() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pathserve-analyze-", ignore_cleanup_errors=True) as work:
        yield Path(work)


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
