"""What the fetch of an order has brought, as it lies on disk."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from gateway.archive.partial import is_partial
from gateway.domain.order import SlideReference
from gateway.operations.errors import PathserveError, SlideError, SlideNotInArchive


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """One slide of the order: its local files, or why it is not there. File names are relative to the state folder
    where they lie inside it, so that a copied state still works."""

    specimen: int
    study: str
    series: str
    files: tuple[Path, ...] = ()
    reason: str | None = None
    detail: str | None = None

    @property
    def partial(self) -> bool:
        """True where some of its instances are not there whole."""
        return any(is_partial(file) for file in self.files)

    def unread(self, error: PathserveError) -> "Fetched":
        """The slide as one that cannot be read, with the reason."""
        return replace(self, files=(), reason=error.reason, detail=error.detail)

    def to_json(self, state: Path) -> dict[str, Any]:
        files = [str(path.relative_to(state) if path.is_relative_to(state) else path) for path in self.files]
        return {
            "specimen": self.specimen,
            "study": self.study,
            "series": self.series,
            "files": files,
            "reason": self.reason,
            "detail": self.detail,
        }

    @classmethod
    def from_json(cls, entry: dict[str, Any], state: Path) -> Self:
        return cls(**{**entry, "files": tuple(state / file for file in entry["files"])})


def not_there(specimen: int, reference: SlideReference, error: PathserveError) -> list[Fetched]:
    """The slides of a reference that the archive does not have."""
    return [
        Fetched(specimen=specimen, study=reference.study, series=series).unread(error)
        for series in reference.series or ("",)
    ]


def each_readable(slides: Sequence[Fetched], work: Callable[[Fetched], Fetched]) -> list[Fetched]:
    """What `work` makes of each slide that is there; one that cannot be read, or left the archive, is noted and the
    others go on. Raises the first one's error where none is left."""
    first: SlideError | SlideNotInArchive | None = None
    done: list[Fetched] = []
    for slide in slides:
        try:
            done.append(work(slide) if slide.reason is None else slide)
        except (SlideError, SlideNotInArchive) as error:
            first = first or error
            done.append(slide.unread(error))
    if first is not None and all(slide.reason is not None for slide in done):
        raise first
    return done
