"""The parts of a real worker: the archive, Triton kept running between analyses, and cases made of both."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import structlog

from gateway.analyses.keeper import EngineKeeper
from gateway.analyses.ledger import Ledger
from gateway.analyses.ledger.turns import Turn
from gateway.analyses.pins import Pins
from gateway.analyses.steps import CaseRun
from gateway.analyses.worker.process import Parts
from gateway.analyses.worker.sender import Sender
from gateway.archive import Access, open_archive
from gateway.domain.analysis import Progress
from gateway.operations.errors import Cancelled, StateError
from gateway.operations.settings import Settings

log = structlog.get_logger("gateway.analyses.worker.parts")

LEDGER_RETRY_S = 0.5

T = TypeVar("T")


@contextmanager
def open_parts(settings: Settings, ledger: Ledger, worker: str) -> Iterator[Parts]:
    """The worker's parts; Triton runs as long as the context (a guest of whoever runs it already).

    Raises InvalidSetting where the archive's address or access, or a webhook's, is not one; StateError, DiskFull.
    """
    archive = open_archive(settings.archive_address, Access.from_settings(settings))
    sender = Sender(settings, ledger, archive, worker)

    def make_case(
        turn: Turn, folder: Path, progress: Callable[[Progress], None], cancelled: Callable[[], bool]
    ) -> CaseRun:
        def note_pins(pins: Pins) -> None:
            _patiently(lambda: ledger.pin(turn.analysis, pins.to_json()), cancelled)

        return CaseRun(
            turn.analysis,
            turn.order,
            folder,
            settings=settings,
            archive=archive,
            progress=progress,
            cancelled=cancelled,
            choices=lambda: _patiently(ledger.choices.read, cancelled),
            note_pins=note_pins,
            released=lambda: turn.released,
            run=turn.run,
        )

    keeper = EngineKeeper(settings, ledger)
    keeper.start()
    try:
        yield Parts(make_case, sender.attempt, {"archive": archive.probe, "inference": keeper.check}, keeper.models)
    finally:
        keeper.stop()


def _patiently(use: Callable[[], T], cancelled: Callable[[], bool]) -> T:
    """Use the ledger, as often as it takes: no analysis ends because it is locked or full. Raises Cancelled."""
    while True:
        try:
            return use()
        except StateError as error:
            log.warning("the ledger cannot be used; trying again", reason=error.reason, seconds=LEDGER_RETRY_S)
            if cancelled():
                raise Cancelled("The analysis was cancelled.") from None
            time.sleep(LEDGER_RETRY_S)
