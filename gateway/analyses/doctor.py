"""What `pathserve doctor` looks at: state folder, ledger, worker, archive, access, inference, what serves."""

import shutil
import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime

from gateway.analyses.ledger import Ledger
from gateway.analyses.protocols import PROTOCOLS
from gateway.operations import doctor as operations_doctor
from gateway.operations.certificates import still_valid
from gateway.operations.doctor import Finding
from gateway.operations.errors import ModelNotLoaded, PathserveError, StateError
from gateway.operations.settings import Settings
from gateway.operations.settings import settings as load_settings
from gateway.operations.state import prepare_state

_LEAST_FREE_BYTES = 5_000_000_000


def doctor() -> int:
    """Print one line for each part; the exit status is 1 where one is not as it should be. Raises InvalidSetting."""
    settings = load_settings()
    return operations_doctor.examine(
        {
            "state": lambda: _state(settings),
            "database": lambda: _database(settings),
            "archive": lambda: _archive(settings),
            "certificate": lambda: _certificate(settings),
            "access": lambda: _access(settings),
            "inference": lambda: _inference(settings),
            "choices": lambda: _choices(settings),
        }
    )


def _state(settings: Settings) -> Iterable[Finding]:
    prepare_state(settings)
    try:
        with tempfile.TemporaryFile(dir=settings.state) as file:
            file.write(b"x")
        free = shutil.disk_usage(settings.state).free
    except OSError as error:
        raise StateError(
            f"the folder given by PATHSERVE_STATE cannot be written ({error.strerror}); check its owner and mode"
        ) from error
    yield "state", True, "writable"
    enough = free >= _LEAST_FREE_BYTES
    yield "disk", enough, f"{free / 1e9:.0f} GB free" + ("" if enough else "; make room, slides are large")


def _database(settings: Settings) -> Iterable[Finding]:
    ledger = Ledger.open(settings.ledger_url, settings.state)
    try:
        worker = ledger.workers.latest()
    finally:
        ledger.close()
    yield "database", True, "the ledger opens"
    alive = worker is not None and worker.alive(datetime.now(UTC))
    yield "worker", True, "runs" if alive else "not running; `pathserve serve` brings one"


def _choices(settings: Settings) -> Iterable[Finding]:
    from gateway.analyses.pins import Pins
    from gateway.analyses.served import ModelState, Wanted
    from gateway.inference import ModelRepository

    repository = ModelRepository(settings.model_repository)
    ledger = Ledger.open(settings.ledger_url, settings.state)
    try:
        wanted = Wanted.now(ledger.choices.read(), ledger.pinned(), repository)
        worker = ledger.workers.latest()
    finally:
        ledger.close()
    for model, folder in wanted.current.items():
        try:
            card = repository.card(folder)
            repository.check(folder)
        except PathserveError as error:
            yield f"serving {model}", False, error.detail
            continue
        pending, refused = wanted.choices.pending(model), wanted.choices.refused(model)
        more = f"; version {pending.version} waits for a worker" if pending else ""
        more += f"; version {refused.version} was refused: {refused.reason}" if refused else ""
        yield f"serving {model}", True, f"version {card.version.version}{more}"
    for protocol in PROTOCOLS.values():
        try:
            pins = Pins.choose(protocol, wanted.choices, repository)
            yield f"protocol {protocol.name}", True, f"served by {', '.join(pins.folders.values())}"
        except ModelNotLoaded as error:  # a site need not have every protocol
            yield f"protocol {protocol.name}", True, f"not available: {error.detail}"
        except PathserveError as error:
            yield f"protocol {protocol.name}", False, error.detail
    if worker is not None and worker.alive(datetime.now(UTC)):
        # What only the worker can know: whether a model answers its golden inputs as it should.
        for item in worker.models:
            if item["state"] == ModelState.REFUSED:
                yield f"loaded {item['folder']}", False, item["reason"]


def _archive(settings: Settings) -> Iterable[Finding]:
    from gateway.archive import Access, open_archive

    access = Access.from_settings(settings)
    archive = open_archive(settings.archive_address, access)
    archive.probe()
    shown = "" if settings.archive_address.startswith("folder:") else f" ({access.describe(settings.archive_address)})"
    yield "archive", True, f"{archive.address} answers{shown}"


def _certificate(settings: Settings) -> Iterable[Finding]:
    if settings.archive_certificate is not None:
        yield still_valid("certificate", settings.archive_certificate, "PATHSERVE_ARCHIVE_CERTIFICATE")


def _access(settings: Settings) -> Iterable[Finding]:
    from gateway.operations.auth.probe import probe

    return probe(settings)


def _inference(settings: Settings) -> Iterable[Finding]:
    from gateway.inference import probe

    return probe(settings)
