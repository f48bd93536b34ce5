"""Errors of exporting, below the one error tree."""

from typing import Any

from gateway.operations.errors import PathserveError


class ExportError(PathserveError):
    reason, title = "export", "Export failed"


def first_line(error: BaseException) -> str:
    """What a library says of its error, as the end of a sentence; the error's name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


class GateFailed(ExportError):
    """A gate's figure is out of bounds: `figures` are all that the gate measured.

    `gates` holds every gate that was tried, the failed one last; the build sets it.
    """

    reason, title = "gate-failed", "Gate failed"

    def __init__(
        self, detail: str, gates: list[dict[str, Any]] | None = None, *, figures: dict[str, Any] | None = None
    ) -> None:
        super().__init__(detail)
        self.gates = gates or []
        self.figures = figures or {}
