"""STOW-RS (PS3.18 10.5): results into the PACS one by one, each then read back and compared with what was sent."""

import json
import logging
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from gateway.archive.compare import check_same
from gateway.archive.dicomweb_answers import Transient, dicom_in
from gateway.archive.dicomweb_files import InstanceId, instance_id
from gateway.archive.dicomweb_http import DICOM_JSON, Session, text, values
from gateway.archive.dicomweb_multipart import MultipartError
from gateway.archive.metrics import PACS_BYTES, PACS_RESULTS_ALTERED
from gateway.operations.disk import disk_errors
from gateway.operations.errors import ArchiveRefused, ArchiveUnavailable

_log = logging.getLogger(__name__)

_SOP_INSTANCE, _FAILED, _STORED = "00080018", "00081198", "00081199"
_FAILURE_REASON, _WARNING_REASON = "00081197", "00081196"

# Failure Reason (PS3.3 C.12.1.1.14, PS3.18 I.2.2) is a status of the Storage service (PS3.4 B.2.3).
_DUPLICATE, _OUT_OF_RESOURCES = 0x0111, range(0xA700, 0xA800)
_REASONS = {
    0x0110: "processing failure",
    0x0117: "invalid UID",
    0x0122: "it does not take this kind of object",
    0x0124: "not authorised",
}

# As it is stored; the last form is for a PACS that knows no `*`: it then gives uncompressed objects as they are.
_ACCEPT = (
    'multipart/related; type="application/dicom"; transfer-syntax=*',
    "application/dicom; transfer-syntax=*",
    'multipart/related; type="application/dicom"',
)
_POLL_S = 0.5
_ROOM_BYTES = 2**20  # for what a PACS may add of its own


def store(session: Session, files: Sequence[Path]) -> None:
    """Store the objects in their order. Raises as `Archive.store`, and the SlideError of a file that is no DICOM."""
    for file in files:
        with disk_errors():
            wanted = instance_id(file)
            try:
                session.repeated(partial(_upload, session, file))
            except _NotStored:
                # Servers have reasons of their own for what they hold already: then it counts what that is.
                if not _is_listed(session, wanted):
                    raise
            _await_visible(session, wanted)
            session.repeated(partial(_verify, session, wanted, file))
        _log.debug("stored %s in the PACS", wanted.sop)


class _NotStored(ArchiveRefused):
    """The PACS took the request, and says that it did not store the object."""


@dataclass(frozen=True, slots=True)
class _Upload:
    """The body of one STOW-RS request; it can be sent again, after a refused token."""

    file: Path
    head: bytes
    tail: bytes

    def __iter__(self) -> Iterator[bytes]:
        yield self.head
        with self.file.open("rb") as source:
            while piece := source.read(1 << 20):
                yield piece
        yield self.tail


def _upload(session: Session, file: Path) -> None:
    boundary = uuid.uuid4().hex
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    tail = f"\r\n--{boundary}--\r\n".encode()
    size = file.stat().st_size
    headers = {
        "Accept": DICOM_JSON,
        "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
        "Content-Length": str(len(head) + size + len(tail)),
    }
    with session.request(
        "store", "POST", "/studies", headers=headers, content=_Upload(file, head, tail), content_bytes=size
    ) as response:
        # 409 and 202 carry the same data set as 200 (PS3.18 10.5.3); what was stored and what not is in there.
        if response.status_code not in (200, 202, 409):
            raise ArchiveRefused(f"The PACS refused {file.name} (HTTP {response.status_code}): see its log.")
        _check_stored(session.body(response), file.name, refused=response.status_code == 409)
    PACS_BYTES.labels("sent").inc(size)


def _check_stored(answer: bytes, name: str, *, refused: bool) -> None:
    """Raise what the PACS says of a stored object; an answer that says nothing is left to the reading back.

    Failed SOP Sequence counts whatever the HTTP status is. That an object is there already is no failure: whether it
    is the same one is seen when it is read back.
    """
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        found = None
    dataset = found[0] if isinstance(found, list) and found else found
    dataset = dataset if isinstance(dataset, dict) else {}
    failures = _reasons(dataset, _FAILED, _FAILURE_REASON)
    for reason in failures:
        if reason == _DUPLICATE:
            continue
        if reason is not None and reason in _OUT_OF_RESOURCES:
            raise ArchiveUnavailable(f"The PACS is out of resources and did not store {name}: make room there.")
        meaning = "see its log" if reason is None else _REASONS.get(reason, "see its log")
        raise _NotStored(f"The PACS did not store {name} (failure reason {reason}: {meaning}).")
    if refused and not failures:
        raise _NotStored(f"The PACS did not store {name} (HTTP 409): see its log.")
    for warning in _reasons(dataset, _STORED, _WARNING_REASON):
        if warning is not None:
            PACS_RESULTS_ALTERED.inc()
            _log.warning("the PACS stored %s with warning reason %s", name, warning)


def _reasons(dataset: dict[str, object], sequence: str, reason: str) -> list[int | None]:
    """The reason of each item of a sequence of the answer; None where an item has none that is a number."""
    items = [item if isinstance(item, dict) else {} for item in values(dataset, sequence)]
    found = [next(iter(values(item, reason)), None) for item in items]
    return [value if isinstance(value, int) else None for value in found]


def _is_listed(session: Session, wanted: InstanceId) -> bool:
    path = f"/studies/{wanted.study}/series/{wanted.series}/instances"
    found = session.listing("find", path, [("SOPInstanceUID", wanted.sop)]) or []
    return any(text(match, _SOP_INSTANCE) == wanted.sop for match in found)


def _await_visible(session: Session, wanted: InstanceId) -> None:
    """Return when the PACS lists the object: some answer before they have indexed it."""
    until = time.monotonic() + session.limits.visible_s
    while not _is_listed(session, wanted):
        if time.monotonic() > until:
            raise ArchiveUnavailable("The PACS took the result but does not list it: see its log.")
        time.sleep(_POLL_S)


def _verify(session: Session, wanted: InstanceId, file: Path) -> None:
    """Read the object back. Raises ArchiveRefused where the PACS holds something else than the file."""
    path = f"/studies/{wanted.study}/series/{wanted.series}/instances/{wanted.sop}"
    most = 2 * file.stat().st_size + _ROOM_BYTES
    for accept in _ACCEPT:
        with session.request("verify", "GET", path, headers={"Accept": accept}) as response:
            if response.status_code in (400, 406, 415):
                continue
            if response.status_code == 404:
                raise Transient(f"The PACS lists {file.name} but does not give it back: see its log.")
            if response.status_code != 200:
                raise ArchiveRefused(f"The PACS does not give {file.name} back (HTTP {response.status_code}).")
            try:
                pieces = dicom_in(response, session.pieces(response, most))
                with _unlike(file, pieces) as other:
                    if other is not None:
                        check_same(file, other, "the PACS")
                return
            except MultipartError:
                raise Transient(f"The PACS broke off while it gave {file.name} back.") from None
    raise ArchiveRefused(f"The PACS does not give {file.name} back in any form that we know: see its manual.")


@contextmanager
def _unlike(file: Path, pieces: Iterator[bytes]) -> Iterator[Path | None]:
    """None where the pieces are the bytes of the file; else they as a file, which is removed at the end.

    Nothing is written as long as they are the same, which is nearly always.
    """
    other: IO[bytes] | None = None
    position = 0
    try:
        with file.open("rb") as sent:
            for piece in pieces:
                if other is None and sent.read(len(piece)) != piece:
                    other = _beginning(file, position)
                if other is not None:
                    other.write(piece)
                position += len(piece)
            if other is None and sent.read(1):
                other = _beginning(file, position)
        if other is not None:
            other.flush()
        yield None if other is None else Path(other.name)
    finally:
        if other is not None:
            other.close()


def _beginning(file: Path, size: int) -> IO[bytes]:
    """A temporary file that begins with so many bytes of the file."""
    other = tempfile.NamedTemporaryFile(prefix="pathserve-")  # noqa: SIM115 - the caller closes it
    with file.open("rb") as sent:
        while size > 0 and (piece := sent.read(min(size, 1 << 20))):
            other.write(piece)
            size -= len(piece)
    return other
