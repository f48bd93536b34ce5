"""One series in the frame cache: its instances, whole or partial, and what is known of each."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gateway.archive.partial import PartialInstance, header_of
from gateway.domain.uids import is_uid
from gateway.operations.disk import written_whole

_VERSION = 1
_RECORDS = "series.json"
_ENDINGS = (".header.dcm", ".dcm", ".frames", ".index")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is known of an instance in the cache.

    `digest` is that of the description in the archive from which its header was made, `checksum` that of the header's
    file (0 where it has none); `complete` says that `syntax` and the header are the instance's own, not presumed;
    `as_described` is False where the stored instance is known to name another patient or container than the archive
    does, so that it is not for use as a whole; `size` is the bytes of the whole instance, 0 where not known.
    """

    digest: str
    frames: int
    raw_frame_bytes: int
    syntax: str
    complete: bool = True
    as_described: bool = True
    checksum: int = 0
    size: int = 0


class CachedSeries:
    """The files of one series in `folder`, for the one who fills it. All methods may raise OSError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: dict[str, Record] = _read(folder / _RECORDS)
        self._saved = dict(self.records)

    def whole(self, sop: str) -> Path:
        """The file of a whole instance; it is there once the instance is whole."""
        return self.folder / f"{sop}.dcm"

    def partial(self, sop: str) -> PartialInstance:
        """The partial instance; it may not be there."""
        return PartialInstance(header_of(self.folder, sop))

    def file(self, sop: str) -> Path | None:
        """The instance's file, whole or the head of a partial one; None where neither is there and sound."""
        record = self.records.get(sop)
        if record is None:
            return None
        if self.whole(sop).exists():
            return self.whole(sop)
        part = self.partial(sop)
        sound = part.header.exists() and part.checksum() == record.checksum and part.is_usable(record.frames)
        return part.header if sound else None

    def is_known(self) -> bool:
        """Whether every instance of the series is there, at least as its header."""
        return bool(self.records) and all(self.file(sop) is not None for sop in self.records)

    def forget(self, sops: Iterable[str]) -> None:
        """Remove all that is there of these instances."""
        for sop in sops:
            self.records.pop(sop, None)
            self.whole(sop).unlink(missing_ok=True)
            self.partial(sop).remove()

    def sweep(self) -> None:
        """Remove the files of instances of which nothing is known, as a kill may leave them."""
        for file in self._pulled():
            ending = next(ending for ending in _ENDINGS if file.name.endswith(ending))
            if file.name.removesuffix(ending) not in self.records:
                file.unlink()

    def size(self) -> int:
        """The bytes of what was pulled of the series."""
        return sum(file.stat().st_size for file in self._pulled())

    def _pulled(self) -> list[Path]:
        return [file for file in self.folder.iterdir() if file.name.endswith(_ENDINGS)]

    def save(self) -> None:
        """Keep the records; before that, files that they do not tell of count as not there."""
        if self.records == self._saved:
            return
        with written_whole(self.folder / _RECORDS, private=True) as out:
            kept = {sop: asdict(record) for sop, record in self.records.items()}
            out.write(json.dumps({"version": _VERSION, "instances": kept}).encode())
        self._saved = dict(self.records)


def _read(file: Path) -> dict[str, Record]:
    try:
        kept = json.loads(file.read_bytes())
        if kept["version"] != _VERSION:
            return {}
        return {sop: _record(entry) for sop, entry in kept["instances"].items() if is_uid(sop)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}  # as if nothing were there: it is made anew


def _record(entry: dict[str, Any]) -> Record:
    record = Record(**entry)
    if not all(isinstance(figure, int) for figure in (record.frames, record.raw_frame_bytes, record.size)):
        raise ValueError("not a record")
    return record
