"""WADO-RS (PS3.18 10.4): what a slide's series holds in the PACS, brought to the local disk as it is stored there."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx

from gateway.archive.cache import FrameCache
from gateway.archive.dicomweb_files import InstanceId, instance_id, is_whole
from gateway.archive.dicomweb_http import Session, Transient, all_pages, text
from gateway.archive.dicomweb_multipart import MultipartError, first_part, media_type
from gateway.archive.metrics import PACS_BYTES
from gateway.archive.protocol import FetchedSeries, FetchProgress, SeriesEntry, Wanted
from gateway.operations.disk import disk_errors, written_whole
from gateway.operations.errors import ArchiveRefused, ArchiveUnavailable, SlideError, SlideNotInArchive

_SOP_INSTANCE, _MODALITY = "00080018", "00080060"

# `transfer-syntax=*` asks for the stored one. Without it a PACS decompresses or recompresses the whole instance, so
# a PACS that knows neither form is refused rather than asked for transcoded pixels. The second form is for servers
# that answer in a single part only.
_ACCEPT = (
    'multipart/related; type="application/dicom"; transfer-syntax=*',
    "application/dicom; transfer-syntax=*",
)


class Retrieval:
    """How one archive's instances are pulled; remembers what it takes."""

    def __init__(self) -> None:
        self._accept: tuple[str, ...] = _ACCEPT

    def fetch(
        self,
        session: Session,
        address: str,
        entry: SeriesEntry,
        cache: FrameCache,
        *,
        wanted: Wanted | None,
        progress: FetchProgress,
    ) -> FetchedSeries:
        """`Archive.fetch` of an entry whose UIDs were checked. Raises as it."""
        with disk_errors(), cache.filling(address, entry.study, entry.series, session.cancelled) as folder:
            instances = self._instances(session, entry)
            files = [folder / f"{uid}.dcm" for uid in instances]
            # A file is renamed to its name only after it was checked, so one that is there is whole.
            done = sum(file.stat().st_size for file in files if file.exists())
            progress(done, None)
            for uid, file in zip(instances, files, strict=True):
                if not file.exists():
                    instance = InstanceId(entry.study, entry.series, uid)
                    done += self._fetch_one(session, instance, file, partial(_advanced, progress, done))
            cache.make_room(folder, 0)
            progress(done, done)
        return FetchedSeries(entry.study, entry.series, tuple(files))

    def _instances(self, session: Session, entry: SeriesEntry) -> list[str]:
        path = f"/studies/{entry.study}/series/{entry.series}/instances"
        listed = dict(all_pages(session, path, _SOP_INSTANCE))
        if not listed:
            raise SlideNotInArchive(f"The series {entry.series} is not in the PACS: send it there and order again.")
        if entry.instances is not None and len(listed) < entry.instances:
            raise ArchiveUnavailable("The PACS does not list the whole series yet: try again when it is complete.")
        return sorted(uid for uid, match in listed.items() if (text(match, _MODALITY) or "SM") == "SM")

    def _fetch_one(self, session: Session, wanted: InstanceId, file: Path, progress: Callable[[int], None]) -> int:
        session.repeated(lambda: self._download(session, wanted, file, progress))
        return file.stat().st_size

    def _download(self, session: Session, wanted: InstanceId, file: Path, progress: Callable[[int], None]) -> None:
        path = f"/studies/{wanted.study}/series/{wanted.series}/instances/{wanted.sop}"
        for accept in self._accept:
            with session.request("retrieve", "GET", path, headers={"Accept": accept}) as response:
                if response.status_code == 404:
                    raise SlideNotInArchive(f"The instance {wanted.sop} is not in the PACS any more: order again.")
                if response.status_code in (400, 406, 415):
                    continue
                if response.status_code != 200:
                    raise ArchiveRefused(f"The PACS did not give an instance (HTTP {response.status_code}).")
                self._accept = (accept,)
                self._keep(session, response, wanted, file, progress)
                return
        raise ArchiveRefused("The PACS does not give the slide as it is stored (transfer-syntax=*): see its manual.")

    def _keep(
        self,
        session: Session,
        response: httpx.Response,
        wanted: InstanceId,
        file: Path,
        progress: Callable[[int], None],
    ) -> None:
        received = PACS_BYTES.labels("received")
        try:
            with written_whole(file) as out:
                size = 0
                for piece in _dicom(response, session.pieces(response, session.limits.instance_bytes)):
                    out.write(piece)
                    size += len(piece)
                    received.inc(len(piece))
                    progress(size)
                out.flush()
                _check_received(Path(out.name), wanted, response)
        except MultipartError:
            raise ArchiveUnavailable(f"The PACS broke off in the middle of the instance {wanted.sop}.") from None


def _advanced(progress: FetchProgress, before: int, size: int) -> None:
    progress(before + size, None)


def _dicom(response: httpx.Response, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The DICOM file within an answer, of one part or of several. Raises ArchiveRefused, MultipartError."""
    kind = media_type(response.headers.get("content-type", ""))
    if kind.name == "multipart/related" and kind.boundary:
        part = first_part(pieces, kind.boundary)
        kind, pieces = media_type(part.headers.get("content-type", "application/dicom")), part.body
    if kind.name not in ("application/dicom", "application/octet-stream"):
        raise ArchiveRefused(
            "The PACS did not answer with DICOM: check that the archive's address is that of DICOMweb."
        )
    return pieces


def _check_received(file: Path, wanted: InstanceId, response: httpx.Response) -> None:
    """Raise ArchiveRefused where the file is not the instance that was asked for, Transient where it broke off.

    A slide that lies truncated in the PACS passes: what is wrong with a slide is for `gateway.slides` to say.
    """
    try:
        received = instance_id(file)
        whole = _has_an_end(response) or is_whole(file)
    except SlideError as error:
        raise ArchiveRefused(f"The PACS gave an instance that cannot be used. {error.detail}") from None
    if received != wanted:
        raise ArchiveRefused(f"The PACS gave another instance than {wanted.sop}: see its log.")
    if not whole:
        raise Transient(f"The PACS broke off in the middle of the instance {wanted.sop}.")


def _has_an_end(response: httpx.Response) -> bool:
    # Where only the closed connection ends an answer, HTTP cannot tell a broken one from a whole one (RFC 9112 8).
    multipart = media_type(response.headers.get("content-type", "")).name == "multipart/related"
    return multipart or "content-length" in response.headers or "transfer-encoding" in response.headers
