"""What a person's command on the state folder begins with: its folder, its log and its ledger."""

from collections.abc import Iterator
from contextlib import contextmanager

from gateway.analyses.ledger import Ledger
from gateway.operations.logging import configure_logging
from gateway.operations.settings import Settings
from gateway.operations.settings import settings as load_settings
from gateway.operations.state import prepare_state


@contextmanager
def command_ledger(command: str) -> Iterator[tuple[Settings, Ledger]]:
    """The settings, and the ledger of their state folder, which is closed at the end. The log goes to the file of
    `command`, never to the terminal. Raises StateError."""
    settings = load_settings()
    prepare_state(settings)
    configure_logging(command, settings.log_level, settings.state / "logs", terminal=False)
    ledger = Ledger.open(settings.ledger_url, settings.state)
    try:
        yield settings, ledger
    finally:
        ledger.close()
