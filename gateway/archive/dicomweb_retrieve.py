"""WADO-RS (PS3.18 10.4): what is wanted of a slide's series, brought to the frame cache the way that is fastest."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

import httpx
import pydicom
from pydicom import Dataset

from gateway.archive.cache import FrameCache
from gateway.archive.cached_series import CachedSeries, Record
from gateway.archive.costs import Costs, Need, Sample, Way, choose
from gateway.archive.dicomweb_answers import dicom_in
from gateway.archive.dicomweb_files import InstanceId, check_received, same_identity
from gateway.archive.dicomweb_frames import FrameRequests, FramesRefused, Stored
from gateway.archive.dicomweb_headers import (
    Described,
    Head,
    completed,
    head_from,
    head_in,
    metadata,
    presumed,
)
from gateway.archive.dicomweb_http import Session, Transient, all_pages, text
from gateway.archive.dicomweb_multipart import MultipartError, media_type
from gateway.archive.metrics import CACHE_FRAMES, FRAMES, PACS_BYTES
from gateway.archive.partial import PartialInstance
from gateway.archive.protocol import FetchedSeries, FetchProgress, SeriesEntry, Wanted
from gateway.operations.disk import disk_errors, written_whole
from gateway.operations.errors import (
    ArchiveRefused,
    ArchiveUnavailable,
    InvalidSlide,
    SlideNotInArchive,
)

_SOP_INSTANCE, _MODALITY = "00080018", "00080060"

# `transfer-syntax=*` asks for the stored one. Without it a PACS decompresses or recompresses the whole instance, so
# a PACS that knows neither form is refused rather than asked for transcoded pixels. The second form is for servers
# that answer in a single part only.
_ACCEPT = (
    'multipart/related; type="application/dicom"; transfer-syntax=*',
    "application/dicom; transfer-syntax=*",
)
_REFUSAL_S = 3600.0
_COMPRESSED = 0.06
"""Encoded bytes over decoded ones of a JPEG frame: presumed while no frame of the series has come."""


class Retrieval:
    """How one archive's instances are pulled. Remembers in which form it takes requests; thread-safe."""

    def __init__(self) -> None:
        self._accept: tuple[str, ...] = _ACCEPT
        self.frames = FrameRequests()
        self._refused_at: dict[str, float] = {}

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
            pull = _Pull(self, session, entry, cache, CachedSeries(folder), address, progress)
            return pull.run(wanted)

    def note_refusal(self, syntax: str) -> None:
        """The archive does not give frames of this transfer syntax as they are stored."""
        self._refused_at[syntax] = time.monotonic()

    def refuses(self, syntax: str) -> bool:
        """Whether it refused them lately; a proxy before it may have been at fault."""
        return time.monotonic() - self._refused_at.get(syntax, -math.inf) < _REFUSAL_S

    @contextmanager
    def instance(self, session: Session, operation: str, wanted: InstanceId) -> Iterator[httpx.Response]:
        """The answer that brings a stored instance as it is. Raises SlideNotInArchive, ArchiveRefused, as `request`."""
        path = f"/studies/{wanted.study}/series/{wanted.series}/instances/{wanted.sop}"
        for accept in self._accept:
            with session.request(operation, "GET", path, headers={"Accept": accept}) as response:
                if response.status_code == 404:
                    raise SlideNotInArchive(f"The instance {wanted.sop} is not in the PACS any more: order again.")
                if response.status_code in (400, 406, 415):
                    continue
                if response.status_code != 200:
                    raise ArchiveRefused(f"The PACS did not give an instance (HTTP {response.status_code}).")
                self._accept = (accept,)
                yield response
                return
        raise ArchiveRefused("The PACS does not give the slide as it is stored (transfer-syntax=*): see its manual.")


class _Pull:
    """One fetch of one series."""

    def __init__(
        self,
        retrieval: Retrieval,
        session: Session,
        entry: SeriesEntry,
        cache: FrameCache,
        series: CachedSeries,
        address: str,
        progress: FetchProgress,
    ) -> None:
        self._retrieval = retrieval
        self._session = session
        self._entry = entry
        self._cache = cache
        self._series = series
        self._address = address
        self._progress = progress
        self._costs_file = cache.of_archive(address) / "costs.json"
        self._costs = Costs.read(self._costs_file)
        self._done = 0

    def run(self, wanted: Wanted | None) -> FetchedSeries:
        known = self._costs
        try:
            # Headers at hand serve while frames are pulled by them; whoever asks for headers gets them anew.
            if not wanted or not self._series.is_known():
                self._refresh(whole=wanted is None)
            self._done = self._series.size()
            self._progress(self._done, None)
            for sop in self._series.records if wanted is None else wanted:
                self._bring(sop, None if wanted is None else wanted[sop], whole=wanted is None)
        finally:
            self._series.save()
            if self._costs is not known:
                self._costs.write(self._costs_file)
        self._cache.make_room(self._series.folder, 0)
        self._progress(self._series.size(), self._series.size())
        files = [self._series.file(sop) for sop in sorted(self._series.records)]
        return FetchedSeries(self._entry.study, self._entry.series, tuple(file for file in files if file is not None))

    # Headers

    def _refresh(self, *, whole: bool) -> None:
        """The headers of all instances, made anew where the archive says something else than before.

        Where every instance comes whole, no headers are made: they come with the instances.
        """
        series = self._series
        described = self._described()
        series.forget(set(series.records) - set(described))
        for sop in [sop for sop, found in described.items() if found is None]:
            if not whole or series.file(sop) is not None:
                described[sop] = Described.of_head(sop, self._head(sop))
        changed = {sop: found for sop, found in described.items() if not self._holds(sop, found)}
        series.forget(changed)
        series.save()
        series.sweep()
        if whole:
            for sop, found in changed.items():
                if found is not None:
                    series.records[sop] = _record(found)
                else:
                    self._download(sop)
                    series.records[sop] = _record(Described.of_head(sop, head_in(series.whole(sop))))
                series.save()
        else:
            self._make_headers([found for found in changed.values() if found is not None])

    def _holds(self, sop: str, found: Described | None) -> bool:
        record = self._series.records.get(sop)
        if record is None or found is None or record.digest != found.digest:
            return False
        return self._series.file(sop) is not None

    def _described(self) -> dict[str, Described | None]:
        """The series' instances with what the archive says of each."""
        described = metadata(self._session, self._entry)
        if described is None:
            path = f"/studies/{self._entry.study}/series/{self._entry.series}/instances"
            listed = dict(all_pages(self._session, path, _SOP_INSTANCE))
            described = {sop: None for sop, match in listed.items() if (text(match, _MODALITY) or "SM") == "SM"}
        if not described:
            raise SlideNotInArchive(
                f"The series {self._entry.series} is not in the PACS: send it there and order again."
            )
        if self._entry.instances is not None and len(described) < self._entry.instances:
            raise ArchiveUnavailable("The PACS does not list the whole series yet: try again when it is complete.")
        return described

    def _make_headers(self, described: Sequence[Described]) -> None:
        """Heads of partial instances. What the archive leaves out is read from the series' smallest image, and presumed
        of the others until their pixels are pulled: to read it of each would cost as much as pulling the slide."""
        lacking = [found for found in described if found.syntax is None or found.without_icc]
        volumes = [found for found in lacking if found.is_volume] or lacking
        example: Head | None = None
        smallest = min(volumes, key=lambda found: found.frames * found.raw_frame_bytes, default=None)
        if smallest is not None:
            example = self._head(smallest.sop)
        has_icc = example is not None and any(example.icc_profiles)
        for found in described:
            lacks_icc = found.without_icc > 0 and (has_icc or found.names_icc)
            if found is smallest and example is not None:
                self._make_header(found, completed(found.dataset, example), complete=True, size=example.size)
            elif found.per_frame or (found.names_icc and not has_icc and found.without_icc):
                head = self._head(found.sop)
                self._make_header(found, completed(found.dataset, head), complete=True, size=head.size)
            else:
                complete = found.syntax is not None and not lacks_icc
                self._make_header(found, presumed(found, example), complete=complete, size=0)

    def _make_header(self, found: Described, dataset: Dataset, *, complete: bool, size: int) -> None:
        record = replace(_record(found), complete=complete, size=size)
        self._create(found.sop, record, dataset)

    def _create(self, sop: str, record: Record, dataset: Dataset) -> None:
        try:
            part = PartialInstance.create(self._series.folder, dataset, record.frames)
        except OSError:
            raise
        except Exception as error:
            # pydicom raises nearly anything for a value that cannot be written.
            raise InvalidSlide(
                f"The slide's header cannot be used ({type(error).__name__}). Check how the slide was converted."
            ) from None
        syntax = str(dataset.file_meta.TransferSyntaxUID)
        self._series.records[sop] = replace(record, syntax=syntax, checksum=part.checksum())

    def _complete(self, sop: str) -> None:
        """Put what was presumed of an instance right, before the first of its frames is asked for."""
        record, head = self._series.records[sop], self._head(sop)
        dataset = pydicom.dcmread(self._series.partial(sop).header)
        self._create(sop, replace(record, complete=True, size=head.size), completed(dataset, head))

    def _head(self, sop: str) -> Head:
        return self._session.repeated(lambda: self._read_head(self._id(sop)))

    def _read_head(self, wanted: InstanceId) -> Head:
        with self._retrieval.instance(self._session, "head", wanted) as response:
            return head_from(self._session, response, wanted)

    # Pixels

    def _bring(self, sop: str, frames: Sequence[int] | None, *, whole: bool) -> None:
        series, record = self._series, self._series.records.get(sop)
        if record is None or (frames and frames[-1] >= record.frames):
            raise ArchiveUnavailable("The series has changed in the PACS meanwhile: try again.")
        frames = range(record.frames) if frames is None else frames
        if series.whole(sop).exists():
            CACHE_FRAMES.labels("hit").inc(len(frames))
            return
        missing = list(frames) if whole else series.partial(sop).missing(frames)
        CACHE_FRAMES.labels("hit").inc(len(frames) - len(missing))
        CACHE_FRAMES.labels("miss").inc(len(missing))
        while missing:
            record = series.records[sop]
            need = self._need(sop, record, missing)
            if whole or (record.as_described and self._takes_whole(record, need)):
                try:
                    self._download(sop)
                    return
                except _OutOfDate:
                    series.records[sop] = replace(record, as_described=False)
                    continue
            if not record.complete:
                self._complete(sop)
                continue
            try:
                self._session.repeated(partial(self._pull_batch, sop, record, frames, need))
            except FramesRefused:
                self._retrieval.note_refusal(record.syntax)
                if not record.as_described:
                    raise ArchiveRefused(
                        f"The PACS says something else of the patient or container than its stored instance {sop}, and "
                        "gives no frames alone: have the instance corrected."
                    ) from None
            missing = series.partial(sop).missing(frames)

    def _takes_whole(self, record: Record, need: Need) -> bool:
        return self._retrieval.refuses(record.syntax) or choose(self._costs, need) is Way.WHOLE

    def _need(self, sop: str, record: Record, missing: Sequence[int]) -> Need:
        frame_bytes = self._frame_bytes(sop, record)
        batch = self._retrieval.frames.batch(self._id(sop), missing, self._address)
        # What is only presumed of the instance costs a request more.
        requests = math.ceil(len(missing) / len(batch)) + (not record.complete)
        return Need(
            instance_bytes=record.size or record.frames * frame_bytes,
            frame_bytes=len(missing) * frame_bytes,
            requests=requests,
            room_bytes=self._cache.most_bytes - self._series.size(),
        )

    def _frame_bytes(self, sop: str, record: Record) -> float:
        """The mean bytes of an encoded frame: of those that came already, else as the series' other images have it."""
        if record.checksum:
            extents_F2 = self._series.partial(sop).extents()
            lengths = (extents_F2[:, 1] - extents_F2[:, 0])[extents_F2[:, 0] >= 0]
            if len(lengths):
                return float(lengths.mean())
        whole = [other for other in self._series.records.values() if other.size and other.raw_frame_bytes]
        largest = max(whole, key=lambda other: other.size, default=None)
        if largest is not None:
            return record.raw_frame_bytes * largest.size / (largest.frames * largest.raw_frame_bytes)
        return record.raw_frame_bytes * _COMPRESSED

    def _pull_batch(self, sop: str, record: Record, frames: Sequence[int], need: Need) -> None:
        part, requests = self._series.partial(sop), self._retrieval.frames
        missing = part.missing(frames)
        batch = requests.batch(self._id(sop), missing, self._address)
        room = self._cache.room(self._series.folder, math.ceil(need.frame_bytes * len(batch) / len(missing)))
        stored = Stored(self._id(sop), record.syntax, record.raw_frame_bytes)
        began = time.monotonic()
        try:
            pulled = requests.pull(self._session, part, stored, batch, room)
        except Transient:
            raise
        except ArchiveUnavailable:
            # It was too slow for our patience: known, so that the next try may take another way.
            waited_s = time.monotonic() - began
            self._learn(Sample(True, need.instance_bytes, 0.0, waited_s, waited_s, time.time()))
            raise
        self._learn(Sample(True, need.instance_bytes, pulled.size, pulled.wait_s, pulled.seconds, time.time()))
        FRAMES.labels(Way.BATCHED if len(batch) > 1 else Way.SINGLE).inc(pulled.frames)
        self._done += pulled.size
        self._progress(self._done, None)

    def _download(self, sop: str) -> None:
        """Bring the whole instance; what there was of it in part goes."""
        began = time.monotonic()
        self._session.repeated(partial(self._stream, sop))
        size = self._series.whole(sop).stat().st_size
        self._learn(Sample(False, size, size, 0.0, time.monotonic() - began, time.time()))
        self._series.partial(sop).remove()
        if (record := self._series.records.get(sop)) is not None:
            self._series.records[sop] = replace(record, checksum=0, size=size)
            FRAMES.labels(Way.WHOLE).inc(record.frames)
        self._done += size

    def _stream(self, sop: str) -> None:
        wanted = self._id(sop)
        with self._retrieval.instance(self._session, "retrieve", wanted) as response:
            pieces = self._session.pieces(response, self._session.limits.instance_bytes)
            try:
                with written_whole(self._series.whole(sop), private=True) as out:
                    self._write(out, dicom_in(response, pieces), int(response.headers.get("content-length") or 0))
                    out.flush()
                    received, header = Path(out.name), self._series.partial(sop).header
                    check_received(received, wanted, whole=_has_an_end(response))
                    if header.exists() and not same_identity(header, received):
                        raise _OutOfDate
            except MultipartError:
                raise Transient(f"The PACS broke off in the middle of the instance {sop}.") from None

    def _write(self, out: BinaryIO, pieces: Iterator[bytes], expected: int) -> None:
        received = PACS_BYTES.labels("received")
        room = self._cache.room(self._series.folder, expected)
        size = 0
        for piece in pieces:
            room.take(len(piece))
            out.write(piece)
            size += len(piece)
            received.inc(len(piece))
            self._progress(self._done + size, None)

    def _learn(self, sample: Sample) -> None:
        self._costs = self._costs.with_sample(sample)

    def _id(self, sop: str) -> InstanceId:
        return InstanceId(self._entry.study, self._entry.series, sop)


class _OutOfDate(Exception):
    """The stored instance says something else of whose it is than the archive says today: its frames serve alone."""


def _record(found: Described) -> Record:
    """What the archive says of an instance, all of it the instance's own."""
    return Record(
        digest=found.digest, frames=found.frames, raw_frame_bytes=found.raw_frame_bytes, syntax=found.syntax or ""
    )


def _has_an_end(response: httpx.Response) -> bool:
    # Where only the closed connection ends an answer, HTTP cannot tell a broken one from a whole one (RFC 9112 8).
    multipart = media_type(response.headers.get("content-type", "")).name == "multipart/related"
    return multipart or "content-length" in response.headers or "transfer-encoding" in response.headers
