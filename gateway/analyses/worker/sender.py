"""One try of one delivery: begun, checked, sent, settled."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import structlog

from gateway.analyses.identity import IdentityHeld, differences_now
from gateway.analyses.ledger import Ledger
from gateway.archive.cache import FrameCache
from gateway.archive.protocol import Archive
from gateway.delivery import Again, Dead, Delivered, Held, Outcome, WebhookTargets, outcome_of, send_stow, send_webhook
from gateway.delivery.metrics import DELIVERY_ATTEMPTS
from gateway.delivery.outcome import pause_s
from gateway.domain.delivery import Channel, Delivery
from gateway.domain.report import ObjectKind, Report
from gateway.operations.disk import disk_errors
from gateway.operations.errors import Cancelled, PathserveError, StateError, TurnLost
from gateway.operations.settings import Settings
from gateway.reports import DICOM, from_json

log = structlog.get_logger("gateway.analyses.worker.sender")

T = TypeVar("T")


class Sender:
    """Makes the tries of one worker's deliveries. Thread-safe. Raises InvalidSetting for wrong webhook settings."""

    def __init__(self, settings: Settings, ledger: Ledger, archive: Archive, worker: str) -> None:
        self._settings = settings
        self._ledger = ledger
        self._outbox = ledger.outbox
        self._archive = archive
        self._worker = worker
        self._cache = FrameCache(settings.state / "cache", settings.cache_bytes)
        self._targets = WebhookTargets.from_settings(settings)

    def attempt(self, workflow: str, stopped: Callable[[], bool]) -> None:
        """Make the try of this name (`Outbox.due`), where it is still due; how it went is in its row then.

        Blocks for as long as the target takes. `stopped` is asked between two objects: the delivery is given back.
        What cannot be written down now is tried until it can, or until `stopped` says so; then whoever finds this
        worker gone frees the row.
        """
        try:
            delivery = self._noted(lambda: self._outbox.begin(workflow, self._worker), stopped)
        except _Stopped:
            return
        if delivery is None:
            return
        structlog.contextvars.bind_contextvars(analysis_id=delivery.analysis, delivery=delivery.id)
        began = time.monotonic()
        try:
            self._settle(delivery, self._sent(delivery, stopped), time.monotonic() - began, stopped)
        except _Stopped:
            log.info("delivery interrupted, to be taken up again")
            with suppress(StateError, TurnLost):
                self._outbox.give_back(delivery)
        except TurnLost:
            log.warning("another worker has taken the delivery over")

    def _sent(self, delivery: Delivery, stopped: Callable[[], bool]) -> Outcome:
        try:
            if delivery.channel is Channel.WEBHOOK:
                send_webhook(delivery, self._targets)
            else:
                self._store(delivery, stopped)
        except IdentityHeld as held:
            return Held(held.differences, held.detail)
        except Cancelled:
            raise _Stopped from None
        except TurnLost:
            raise
        except PathserveError as error:
            return outcome_of(error)
        except _Stopped:
            raise
        except Exception:
            log.exception("a delivery ended by an unexpected error")
            return Again("internal", "An internal error stopped the delivery; the server's log names it under this id.")
        return Delivered()

    def _store(self, delivery: Delivery, stopped: Callable[[], bool]) -> None:
        report, files = self._objects(delivery)

        def go_on() -> None:
            if stopped():
                raise _Stopped

        go_on()
        self._check_identity(delivery, report, stopped)
        send_stow(
            files,
            delivery.done,
            self._archive.store,
            before_each=go_on,
            stored=lambda done: self._noted(lambda: self._outbox.stored(delivery, done, len(files)), stopped),
        )

    def _check_identity(self, delivery: Delivery, report: Report, stopped: Callable[[], bool]) -> None:
        released = self._noted(lambda: self._ledger.released(delivery.analysis), stopped)
        if differences := differences_now(report, self._archive, self._cache, released, cancelled=stopped):
            raise IdentityHeld(differences)

    def _objects(self, delivery: Delivery) -> tuple[Report, list[Path]]:
        """The report of the delivery's revision, and the DICOM files that are new in it, in the report's order."""
        revision = self._ledger.revisions.get(delivery.analysis, delivery.revision)
        folder = self._settings.state / "analyses" / delivery.analysis / revision.folder
        if not (folder / "report.json").is_file():
            raise StateError("The report's files are gone from the state folder. Order the analysis again.")
        with disk_errors():
            report = from_json((folder / "report.json").read_bytes())
        files = [folder / item.file for item in report.objects if item.media_type == DICOM]
        if delivery.revision != 1:
            # What a later revision leaves as it was lies in the folder of an earlier one, and was stored with that; its
            # structured reports are always its own.
            own = {folder / each.file for each in report.objects if each.kind is ObjectKind.STRUCTURED_REPORT}
            files = [file for file in files if file in own or file.exists()]
        return report, files

    def _settle(self, delivery: Delivery, outcome: Outcome, seconds: float, stopped: Callable[[], bool]) -> None:
        if isinstance(outcome, Again) and delivery.tries >= self._settings.delivery_attempts:
            outcome = Dead(outcome.reason, outcome.detail)
        label = type(outcome).__name__.lower()
        DELIVERY_ATTEMPTS.labels(delivery.channel.value, label).inc()
        match outcome:
            case Delivered():
                self._noted(lambda: self._outbox.delivered(delivery, seconds), stopped)
            case Again(reason, detail, after_s):
                pause = pause_s(delivery.tries, self._settings.delivery_delay_s, after_s)
                log.warning("delivery did not succeed", reason=reason, attempt=delivery.tries, seconds=round(pause, 1))
                self._noted(lambda: self._outbox.again(delivery, pause, reason, detail), stopped)
            case Held(differences, detail):
                log.warning("delivery is held", reason=IdentityHeld.reason)
                self._noted(lambda: self._outbox.hold(delivery, differences, detail), stopped)
            case Dead(reason, detail):
                log.error("delivery is a dead letter", reason=reason, attempt=delivery.tries)
                self._noted(lambda: self._outbox.dead(delivery, reason, detail), stopped)

    def _noted(self, note: Callable[[], T], stopped: Callable[[], bool]) -> T:
        """Call the ledger, as often as it takes. Raises _Stopped where it cannot be used and this worker stops."""
        pause = 0.2
        while True:
            try:
                return note()
            except StateError as error:
                if stopped():
                    raise _Stopped from None
                log.warning("the ledger cannot be used; trying again", reason=error.reason, seconds=pause)
            time.sleep(pause)
            pause = min(5.0, 2 * pause)


class _Stopped(Exception):
    """The worker stops: the delivery is another's."""
