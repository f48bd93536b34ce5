"""A PACS over DICOMweb (PS3.18): QIDO-RS to find, STOW-RS to store; `dicomweb_retrieve` fetches by WADO-RS."""

import json
import logging
import ssl
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

from gateway.archive.cache import FrameCache
from gateway.archive.dicomweb_files import InstanceId, instance_id
from gateway.archive.dicomweb_http import DICOM_JSON, Endpoint, Limits, Session, all_pages, never, text, values
from gateway.archive.dicomweb_retrieve import Retrieval
from gateway.archive.metrics import PACS_BYTES
from gateway.archive.protocol import FetchedSeries, FetchProgress, SeriesEntry, Wanted, no_progress
from gateway.domain.uids import is_uid
from gateway.operations.disk import disk_errors
from gateway.operations.errors import (
    ArchiveRefused,
    ArchiveUnavailable,
    InvalidInput,
    SlideNotInArchive,
)

_log = logging.getLogger(__name__)

_SOP_INSTANCE, _MODALITY, _SERIES, _SERIES_INSTANCES = "00080018", "00080060", "0020000E", "00201209"
_FAILED, _FAILURE_REASON = "00081198", "00081197"


# Failure Reason (PS3.3 C.12.1.1.14, PS3.18 I.2.2) is a status of the Storage service (PS3.4 B.2.3).
_DUPLICATE, _OUT_OF_RESOURCES = 0x0111, range(0xA700, 0xA800)
_REASONS = {
    0x0110: "processing failure",
    0x0117: "invalid UID",
    0x0122: "it does not take this kind of object",
    0x0124: "not authorised",
}


class DicomWebArchive:
    """An `Archive` behind DICOMweb. Thread-safe: every operation has a connection of its own."""

    def __init__(self, endpoint: Endpoint, limits: Limits | None = None) -> None:
        self._endpoint = endpoint
        self._limits = limits or Limits()
        self._retrieval = Retrieval()

    @classmethod
    def from_address(cls, address: str, limits: Limits | None = None) -> Self:
        """The archive at `dicomweb://[USER:PASSWORD@]HOST[:PORT]/PATH`. Raises InvalidSetting."""
        return cls(Endpoint.from_address(address), limits)

    @property
    def address(self) -> str:
        return self._endpoint.address

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        if self._endpoint.url.startswith("http:"):
            return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody, and spares the loading of authorities
        # The operating system's authorities: a hospital installs its own there.
        return ssl.create_default_context()

    def _session(self, cancelled: Callable[[], bool] = never) -> Session:
        return Session(self._endpoint, self._limits, self._tls, cancelled)

    def probe(self) -> None:
        # A search that matches nothing costs the PACS least, and brings no patient here.
        with self._session() as session:
            if session.listing("probe", "/studies", [("StudyInstanceUID", "2.25.0"), ("limit", "1")]) is None:
                raise ArchiveRefused("There is no DICOMweb service at the archive's address: check its path.")

    def find_series(self, study: str, series: Sequence[str] = ()) -> tuple[SeriesEntry, ...]:
        _check_uids(study, *series)
        with self._session() as session:
            found = dict(all_pages(session, f"/studies/{study}/series", _SERIES))
        if not found:
            raise SlideNotInArchive(f"The study {study} is not in the PACS: send it there and order again.")
        # Modality is filtered here: as a search key it is ignored by some servers and matches nothing on others.
        slides = {uid: match for uid, match in found.items() if text(match, _MODALITY) == "SM"}
        if missing := [uid for uid in series if uid not in slides]:
            raise SlideNotInArchive(f"The study holds no slide series {missing[0]}: check the order.")
        if not slides:
            raise SlideNotInArchive(f"The study {study} holds no slide (modality SM): check the order.")
        return tuple(SeriesEntry(study, uid, _count(slides[uid])) for uid in (dict.fromkeys(series) or sorted(slides)))

    def fetch(
        self,
        entry: SeriesEntry,
        cache: FrameCache,
        *,
        wanted: Wanted | None = None,
        progress: FetchProgress = no_progress,
        cancelled: Callable[[], bool] = never,
    ) -> FetchedSeries:
        _check_uids(entry.study, entry.series)
        with self._session(cancelled) as session:
            return self._retrieval.fetch(session, self.address, entry, cache, wanted=wanted, progress=progress)

    def store(self, files: Sequence[Path]) -> None:
        with self._session() as session:
            for file in files:
                with disk_errors():
                    wanted = instance_id(file)
                    session.repeated(partial(self._upload, session, wanted, file))
                self._await_visible(session, wanted)
                _log.debug("stored %s in the PACS", wanted.sop)

    def _upload(self, session: Session, wanted: InstanceId, file: Path) -> None:
        boundary = uuid.uuid4().hex
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        size = file.stat().st_size
        headers = {
            "Accept": DICOM_JSON,
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Content-Length": str(len(head) + size + len(tail)),
        }
        with session.request("store", "POST", "/studies", headers=headers, content=_body(head, file, tail)) as response:
            answer = session.body(response)
            # 409 and 202 carry the same data set as 200 (PS3.18 10.5.3); what was stored and what not is in there.
            if response.status_code not in (200, 202, 409):
                raise ArchiveRefused(f"The PACS refused the result (HTTP {response.status_code}): see its log.")
            _check_stored(answer, refused=response.status_code == 409)
        PACS_BYTES.labels("sent").inc(size)

    def _await_visible(self, session: Session, wanted: InstanceId) -> None:
        """Return when the PACS lists the object: some answer before they have indexed it."""
        until = time.monotonic() + self._limits.visible_s
        path = f"/studies/{wanted.study}/series/{wanted.series}/instances"
        while True:
            found = session.listing("find", path, [("SOPInstanceUID", wanted.sop)]) or []
            if any(text(match, _SOP_INSTANCE) == wanted.sop for match in found):
                return
            if time.monotonic() > until:
                raise ArchiveUnavailable("The PACS took the result but does not list it: see its log.")
            time.sleep(0.5)


def _check_uids(*uids: str) -> None:
    for uid in uids:
        if not is_uid(uid):
            raise InvalidInput("The order names a study or series whose UID is not valid: correct the order.")


def _count(series: dict[str, Any]) -> int | None:
    found = values(series, _SERIES_INSTANCES)
    return found[0] if found and isinstance(found[0], int) else None


def _body(head: bytes, file: Path, tail: bytes) -> Iterator[bytes]:
    yield head
    with file.open("rb") as source:
        while piece := source.read(1 << 20):
            yield piece
    yield tail


def _check_stored(answer: bytes, *, refused: bool) -> None:
    """Raise what the PACS says of a stored object; an answer that says nothing is left to the search that follows.

    Failed SOP Sequence counts whatever the HTTP status is. An object that is there already counts as stored.
    """
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        found = None
    dataset = found[0] if isinstance(found, list) and found else found
    failures = values(dataset, _FAILED) if isinstance(dataset, dict) else []
    for failure in failures:
        reason = next(iter(values(failure, _FAILURE_REASON) if isinstance(failure, dict) else []), None)
        if reason == _DUPLICATE:
            continue
        if isinstance(reason, int) and reason in _OUT_OF_RESOURCES:
            raise ArchiveUnavailable("The PACS is out of resources and did not store the result: make room there.")
        meaning = _REASONS.get(reason, "see its log") if isinstance(reason, int) else "see its log"
        raise ArchiveRefused(f"The PACS did not store the result (failure reason {reason}: {meaning}).")
    if refused and not failures:
        raise ArchiveRefused("The PACS did not store the result (HTTP 409): see its log.")
