"""The files of an analysis as they are read: which revision, which encoding, which name; and who read what lately."""

import hashlib
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from gateway.analyses.ledger.records import Record
from gateway.domain.analysis import State
from gateway.operations.errors import Cancelled, Conflict, NotAcceptable, NotFound, ReportNotReady

REPORTS: Mapping[str, str] = {
    "application/json": "report.json",
    "text/html": "report.html",
    "application/dicom": "report.sr.dcm",
    "application/pdf": "report.pdf",
}
"""The encodings of a report, the first one where nothing is asked for."""
_BY_SUFFIX = {
    ".json": "application/json",
    ".html": "text/html; charset=utf-8",
    ".dcm": "application/dicom",
    ".pdf": "application/pdf",
    ".geojson": "application/geo+json",
    ".jpg": "image/jpeg",
    ".png": "image/png",
}
_OTHER = "application/octet-stream"
MEDIA_TYPES = (*_BY_SUFFIX.values(), _OTHER)
"""What the files of an analysis may be."""
_DOCUMENT = re.compile(r"report(?:-(\d+))?\.sr\.dcm")
_LATELY_S = 600.0
_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class ResultFile:
    """One file of an analysis. `etag` is opaque and changes whenever the content does.

    `also`: of the report of a case of several studies, the names of its other DICOM documents.
    """

    path: Path
    media_type: str
    bytes: int
    etag: str
    revision: int
    also: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.path.name


class ResultFiles:
    """The files of one revision: its own, and of the revision before it those that it did not make anew."""

    def __init__(self, revision: int, folders: tuple[Path, ...]) -> None:
        """`folders`: the revision's own first, then those of the earlier ones."""
        self._revision = revision
        self._folders = folders

    def all(self) -> tuple[ResultFile, ...]:
        """Sorted by name."""
        found: dict[str, Path] = {}
        for folder in self._folders:
            for path in _regular_files(folder):
                found.setdefault(path.name, path)
        return tuple(self._file(found[name]) for name in sorted(found))

    def named(self, name: str) -> ResultFile:
        """Raises NotFound."""
        for folder in self._folders:
            for path in _regular_files(folder):
                if path.name == name:
                    return self._file(path)
        raise NotFound("The analysis has no file of this name; see the list at its artifacts.")

    def report(self, media_type: str) -> ResultFile:
        """The report in this encoding; of several studies, the first one's. Raises NotAcceptable, NotFound."""
        if media_type not in REPORTS:
            raise NotAcceptable(f"The report comes as {', '.join(REPORTS)}; ask for one of these.")
        file = self.named(REPORTS[media_type])
        if media_type != "application/dicom":
            return file
        return replace(file, also=tuple(each.name for each in self.documents() if each.name != file.name))

    def documents(self) -> tuple[ResultFile, ...]:
        """The DICOM structured reports, one a study, in the order of the studies."""
        numbered = [(found, file) for file in self.all() if (found := _DOCUMENT.fullmatch(file.name))]
        return tuple(file for found, file in sorted(numbered, key=lambda each: int(each[0].group(1) or 1)))

    def _file(self, path: Path) -> ResultFile:
        try:
            stat = path.stat()
        except OSError:
            raise NotFound("This file of the analysis is no longer kept.") from None
        digest = hashlib.sha256(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()[:32]
        media_type = _BY_SUFFIX.get(path.suffix, _OTHER)
        return ResultFile(path, media_type, stat.st_size, digest, self._revision)


def _regular_files(folder: Path) -> Iterator[Path]:
    try:
        for path in folder.iterdir():
            # The state folder holds regular files only; a link was put there by somebody else.
            if path.is_file() and not path.is_symlink() and not path.name.startswith("."):
                yield path
    except OSError:  # not kept any more, or not on this machine
        return


class Lately:
    """Who has read which analysis within ten minutes, so that a client that waits is audited once, not every second."""

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._lock = threading.Lock()

    def is_new(self, subject: str, analysis_id: str) -> bool:
        """Whether this reader comes to this analysis for the first time within ten minutes; notes that it came."""
        key, now = (subject, analysis_id), time.monotonic()
        with self._lock:
            while self._seen and next(iter(self._seen.values())) < now - _LATELY_S:
                self._seen.popitem(last=False)
            if key in self._seen:
                return False
            self._seen[key] = now
            if len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
            return True


def require_completed(record: Record) -> None:
    """Raise what there is instead of a report: ReportNotReady, Cancelled, Conflict (it failed)."""
    state, failure = record.analysis.state, record.analysis.failure
    if failure is not None:
        raise Conflict(
            f"The analysis failed, so there is no report: {failure.detail}", state=state.value, reason=failure.reason
        )
    if state is State.CANCELLED:
        raise Cancelled(
            "The analysis was cancelled, so there is no report. Order it again where it is needed.", state=state.value
        )
    if state is State.HELD_IDENTITY:
        raise ReportNotReady(
            "The analysis is held: its order and its slides differ. A person must release it first.", state=state.value
        )
    if state is not State.COMPLETED:
        raise ReportNotReady("The report is not ready yet. Ask again after the Retry-After time.", state=state.value)
