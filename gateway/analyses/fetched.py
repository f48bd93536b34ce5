"""What the fetch of an order has brought, as it lies on disk."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from gateway.domain.order import SlideReference
from gateway.operations.errors import PathserveError


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """One slide of the order: its local files, or why it is not there. File names are relative to the state folder
    where they lie inside it, so that a copied state still works."""

    specimen: int
    study: str
    series: str
    files: tuple[Path, ...]
    reason: str | None
    detail: str | None

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
        Fetched(
            specimen=specimen,
            study=reference.study,
            series=series,
            files=(),
            reason=error.reason,
            detail=error.detail,
        )
        for series in reference.series or ("",)
    ]
