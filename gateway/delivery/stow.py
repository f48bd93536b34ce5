"""A report's objects into the archive, one after the other: what others refer to comes first."""

from collections.abc import Callable, Sequence
from pathlib import Path

from gateway.operations.errors import StateError

Store = Callable[[Sequence[Path]], None]
"""`Archive.store`: by UID, read back and compared; the same object again has no further effect."""


def send_stow(
    files: Sequence[Path], done: int, store: Store, *, before_each: Callable[[], None], stored: Callable[[int], None]
) -> None:
    """Store the files after the first `done`, and say after each how many are stored.

    `before_each` raises what is to stop the delivery between two objects. Raises StateError where a file is gone, and
    what `before_each`, `store` and `stored` raise.
    """
    if not files or not all(file.is_file() for file in files):
        raise StateError("The report's files are gone from the state folder. Order the analysis again.")
    for number, file in enumerate(files[done:], done + 1):
        before_each()
        store([file])
        stored(number)
