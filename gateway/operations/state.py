"""The state folder: made, with the default archive in it, before anything uses it."""

from gateway.operations.errors import StateError
from gateway.operations.settings import Settings


def prepare_state(settings: Settings) -> None:
    """Create the state folder (mode 0700), and the archive folder in it where no other archive is set.

    Raises StateError where it cannot be written.
    """
    try:
        settings.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        if settings.archive is None:
            (settings.state / "archive").mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StateError(
            f"The folder given by PATHSERVE_STATE cannot be written ({error.strerror}). Check its owner and mode."
        ) from error
