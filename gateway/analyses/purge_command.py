"""`pathserve purge`: analyses, their files and cached slides, removed for good."""

import sys

from gateway.analyses.purge import Found, Purge, Purged, Which
from gateway.operations.database import open_database
from gateway.operations.errors import Conflict, InvalidInput, StateBusy
from gateway.operations.logging import configure_logging
from gateway.operations.operator import operator
from gateway.operations.settings import settings as load_settings
from gateway.operations.state import prepare_state

_NAMED = 20
_STAYED = ("cached_in_use", "begun_again")


def purge(which: Which, *, dry_run: bool, yes: bool, cancel: bool) -> int:
    """Say what is chosen, ask unless told `yes`, remove it, and say what went.

    `cancel`: what has not ended is cancelled first, and what waits to be sent is given up. Raises InvalidInput,
    Conflict where something chosen is left as it has not ended, StateBusy where slides or the database are in use;
    StateError, DiskFull.
    """
    settings = load_settings()
    prepare_state(settings)
    configure_logging("purge", settings.log_level, settings.state / "logs", terminal=False)
    engine = open_database(settings.ledger_url, settings.state)
    try:
        work = Purge(settings, engine, operator())
        found = work.find(which)
        _say(found, cancel=cancel)
        if dry_run:
            return 0
        if not yes:
            _ask()
        if cancel and found.unfinished:
            work.cancel(found.unfinished)
            found = work.find(which)
        purged = work.run(which, found.ready)
        _tell(purged)
        work.clear()
    finally:
        engine.dispose()
    if purged.cached_in_use:
        raise StateBusy("Some cached slides are being read now; repeat the command when that is over.")
    if purged.begun_again:
        raise Conflict(
            f"{purged.begun_again} analyses were begun again or signed meanwhile, and are left as they are: repeat the "
            "command when they have ended and are delivered."
        )
    if found.unfinished:
        raise Conflict(
            f"{len(found.unfinished)} analyses have not ended, or wait to be delivered, and are left as they are: "
            f"{_names(found.unfinished)}. Wait for them, or repeat the command with --cancel."
        )
    return 0


def _say(found: Found, *, cancel: bool) -> None:
    print(f"{len(found.ready)} analyses are to be purged.")
    for analysis_id in found.ready[:_NAMED]:
        print(f"  {analysis_id}")
    if len(found.ready) > _NAMED:
        print("  …")
    if found.unfinished:
        fate = "are cancelled first" if cancel else "stay"
        print(
            f"{len(found.unfinished)} have not ended, or wait to be delivered, and {fate}: {_names(found.unfinished)}"
        )


def _names(analyses: tuple[str, ...]) -> str:
    return ", ".join(analyses[:_NAMED]) + (" …" if len(analyses) > _NAMED else "")


def _ask() -> None:
    if not sys.stdin.isatty():
        raise InvalidInput("Nobody can be asked here: add --yes to purge what was listed, or --dry-run to look only.")
    if input("They cannot be brought back. Purge them? [y/N] ").strip().lower() != "y":
        raise InvalidInput("Nothing was purged.")


def _tell(purged: Purged) -> None:
    counts = {name: getattr(purged, name) for name in Purged.__slots__ if name not in _STAYED}
    print("purged: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
