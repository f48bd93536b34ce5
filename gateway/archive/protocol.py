"""The Archive protocol: where slides come from and results go. One method a need; DIMSE joins later."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gateway.archive.cache import FrameCache
from gateway.domain.uids import is_uid
from gateway.operations.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class SeriesEntry:
    """One slide series as the archive lists it (modality SM only). `instances` may be None where it cannot tell."""

    study: str
    series: str
    instances: int | None = None


@dataclass(frozen=True, slots=True)
class FetchedSeries:
    """One series as local files, ready for `gateway.slides`. The files are the archive's or its cache's: read only.

    A file is a whole instance, or the head of a partial one (`gateway.archive.partial`).
    """

    study: str
    series: str
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideQuery:
    """What a slide is looked for by; every key that is given has to match exactly. Raises InvalidInput."""

    study: str | None = None
    series: str | None = None
    accession: str | None = None
    container: str | None = None

    def __post_init__(self) -> None:
        if all(key is None for key in (self.study, self.series, self.accession, self.container)):
            raise InvalidInput("Name what to look for: a study, a series, an accession number or a container.")
        if not all(uid is None or is_uid(uid) for uid in (self.study, self.series)):
            raise InvalidInput("The study or series to look for has a UID that is not valid: correct it.")
        if not all(text is None or _is_identifier(text) for text in (self.accession, self.container)):
            raise InvalidInput("The accession number or container to look for is not one: correct it.")


def _is_identifier(text: str) -> bool:
    # PS3.5 6.2, SH and LO: no backslash, no control character, and blanks around it do not count.
    return 0 < len(text) <= 64 and text.isprintable() and "\\" not in text and text == text.strip()


Wanted = Mapping[str, Sequence[int] | None]
"""What is wanted of a series: SOP instance UID -> frames of that instance (0-based, rising), or None for all of it.

Of instances that are not named only the header is wanted; an empty mapping asks for headers alone.
"""

FetchProgress = Callable[[int, int | None], None]
"""Called with (bytes done, bytes in all or None)."""


def no_progress(done: int, total: int | None) -> None:
    """The FetchProgress that tells nobody."""


class Archive(Protocol):
    """A PACS or a folder. All methods are synchronous, thread-safe and bounded in time by their own timeouts."""

    @property
    def address(self) -> str:
        """Where it is, without credentials: fit for `pathserve doctor`, not for clients."""

    def probe(self) -> None:
        """Raise ArchiveUnavailable or ArchiveRefused where the archive cannot be used now."""

    def find_series(
        self, study: str, series: Sequence[str] = (), *, cancelled: Callable[[], bool] = lambda: False
    ) -> tuple[SeriesEntry, ...]:
        """The slide series (modality SM) of a study, or just the named ones, in a stable order.

        Raises SlideNotInArchive where the study, or one of the named series, is not there; Cancelled.
        """

    def search(self, query: SlideQuery) -> tuple[SeriesEntry, ...]:
        """The slide series (modality SM) that match, of one patient; several studies and several series a container.

        Raises InvalidInput (no key, a key that is none, more series than a case has), SlideNotInArchive (nothing
        matches), IdentityMismatch (the key is that of several patients).
        """

    def fetch(
        self,
        entry: SeriesEntry,
        cache: FrameCache,
        *,
        wanted: Wanted | None = None,
        progress: FetchProgress = no_progress,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> FetchedSeries:
        """Bring the series' instances within reach as local files, in `cache` where a copy must be made.

        `wanted` None = every instance whole. An archive may bring more than is wanted where that is faster. A repeated
        call, also after a kill, continues: what is there already is not fetched again, unless its header has changed in
        the archive. Raises SlideNotInArchive, ArchiveUnavailable, ArchiveRefused, SlideError, DiskFull, StateError (the
        series can never fit into the cache), Cancelled.
        """

    def store(self, files: Sequence[Path]) -> None:
        """Store result objects. Storing the same object (SOP instance UID) again has no further effect.

        Raises ArchiveUnavailable, ArchiveRefused (with the archive's own failure reason), DiskFull.
        """
